//! A real model: SmolLM2-135M-Instruct from a GGUF file, against what transformers answers for the same
//! weights. The expected values are made by `fixtures/smollm2.py`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::support::{Span, argmax, fixtures, options};
use backend::ReferenceBackend;
use model::{CausalLm, Checkpoint, Decoder, load};
use serde_json::Value;
use tokenizers::Tokenizer;

/// Logits reach about 30; two correct 32-bit implementations differ by less than this.
const TOLERANCE: f64 = 2e-3;

/// The file that `cargo xtask assets` fetches. Nothing where it is absent, except under `CI=true`.
fn gguf() -> Option<PathBuf> {
    const FILE: &str = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/assets"),
        PathBuf::from,
    );
    let path = assets.join(FILE);
    if path.exists() {
        return Some(path);
    }
    let message = format!("{FILE} is missing; `cargo xtask assets` fetches it");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
    eprintln!("skipped: {message}");
    None
}

struct Answer {
    text: String,
    ids: Vec<u32>,
    top: Vec<u32>,
    logits: Vec<(usize, f64)>,
    greedy: Vec<u32>,
}

fn answers() -> Vec<Answer> {
    let text =
        std::fs::read(fixtures().join("smollm2.json")).expect("the expected values are committed");
    let answers: Vec<Value> = serde_json::from_slice(&text).expect("valid JSON");
    let ids =
        |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).expect("token ids") };
    answers
        .iter()
        .map(|answer| Answer {
            text: answer["text"].as_str().expect("a prompt").to_owned(),
            ids: ids(&answer["ids"]),
            top: ids(&answer["top"]),
            logits: answer["logits"]
                .as_object()
                .expect("logits by id")
                .iter()
                .map(|(id, logit)| {
                    (
                        id.parse().expect("an id"),
                        logit.as_f64().expect("a number"),
                    )
                })
                .collect(),
            greedy: ids(&answer["greedy"]),
        })
        .collect()
}

#[test]
fn token_ids_equal_those_of_an_independent_tokenizer() {
    let Some(path) = gguf() else { return };
    let checkpoint = Checkpoint::open(&path).expect("the file opens");
    let text = checkpoint.text();
    assert_eq!(text.bos_token.as_deref(), Some("<|im_start|>"));
    assert_eq!(text.eos_token.as_deref(), Some("<|im_end|>"));
    assert_eq!(text.eos_token_ids, [2]);
    assert_eq!(text.add_bos_token, Some(false));
    assert!(text.chat_templates[0].1.contains("<|im_start|>"));
    assert_eq!(checkpoint.vocab_size(), Some(49_152));
    let json = std::str::from_utf8(&text.tokenizer_json).expect("UTF-8");
    let tokenizer = Tokenizer::from_str(json).expect("the rebuilt tokenizer loads");
    for answer in answers() {
        let encoding = tokenizer
            .encode(answer.text.as_str(), true)
            .expect("text tokenises");
        assert_eq!(encoding.get_ids(), answer.ids, "{:?}", answer.text);
        let decoded = tokenizer
            .decode(encoding.get_ids(), false)
            .expect("ids decode");
        assert_eq!(decoded, answer.text);
    }
}

#[test]
fn logits_and_greedy_text_equal_those_of_transformers() {
    let Some(path) = gguf() else { return };
    let answers = answers();
    let checkpoint = Checkpoint::open(&path).expect("the file opens");
    let mut options = options(Some(256));
    options.kv_cache_bytes = 1 << 30;
    options.max_num_seqs = answers.len();
    let mut decoder =
        load(&checkpoint, ReferenceBackend, &options, &mut |_, _| {}).expect("the model loads");
    assert_eq!(
        (decoder.info().logit_width, decoder.info().vocab_size),
        (49_152, 49_152)
    );

    let mut sequences: Vec<Vec<u32>> = answers.iter().map(|answer| answer.ids.clone()).collect();
    let rows = last_rows(&mut decoder, &sequences, &vec![0; sequences.len()]);
    for (answer, row) in answers.iter().zip(&rows) {
        for (id, expected) in &answer.logits {
            let error = (f64::from(row[*id]) - expected).abs();
            assert!(
                error < TOLERANCE,
                "{:?}: logit {id} off by {error}",
                answer.text
            );
        }
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]));
        assert_eq!(order[0], answer.top[0], "{:?}", answer.text);
    }
    let mut next: Vec<u32> = rows.iter().map(|row| argmax(row, row.len())).collect();
    for step in 0..answers[0].greedy.len() {
        for ((sequence, token), answer) in sequences.iter_mut().zip(&next).zip(&answers) {
            assert_eq!(
                *token, answer.greedy[step],
                "{:?} at token {step}",
                answer.text
            );
            sequence.push(*token);
        }
        let starts: Vec<usize> = sequences
            .iter()
            .map(|sequence| sequence.len() - 1)
            .collect();
        next = last_rows(&mut decoder, &sequences, &starts)
            .iter()
            .map(|row| argmax(row, row.len()))
            .collect();
    }
}

/// The logits after the last token of every sequence, computed from its start on, eight blocks each.
fn last_rows(
    decoder: &mut Decoder<ReferenceBackend>,
    sequences: &[Vec<u32>],
    starts: &[usize],
) -> Vec<Vec<f32>> {
    let spans: Vec<Span> = sequences
        .iter()
        .zip(starts)
        .enumerate()
        .map(|(index, (sequence, start))| Span {
            tokens: &sequence[*start..],
            start: *start,
            first_block: index as u32 * 8,
        })
        .collect();
    let mut batch = crate::support::batch(&spans);
    let mut end = 0;
    batch.logit_rows = spans
        .iter()
        .map(|span| {
            end += span.tokens.len();
            end - 1
        })
        .collect();
    let (logits, _) = decoder.logits(&batch).expect("the step runs");
    logits
        .data
        .chunks_exact(logits.columns)
        .map(<[f32]>::to_vec)
        .collect()
}
