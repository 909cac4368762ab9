//! A real model: SmolLM2-135M-Instruct from a GGUF file, against what transformers answers for the same
//! weights as the `gguf` package dequantises them. The expected values are made by `fixtures/smollm2.py`.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use backend::{BLOCK_SIZE, RowOutput, RowTask, SampleBatch, SampleRow, Sampled, SamplingParams};
use backend_cpu::{CpuBackend, CpuConfig};
use model::{CausalLm, Checkpoint, load};
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::support::{Span, batch, fixtures, options};

/// Logits reach about 30; two correct 32-bit implementations differ by less than this.
const TOLERANCE: f64 = 2e-3;

/// The same model as its makers' plug-in carries it, and with the types of Q4_K_M, which llama.cpp gave it:
/// the name of the file, the fixture, and what the matrices are.
const FILES: [(&str, &str, &str); 2] = [
    ("Q4_1", "smollm2.json", "GGUF Q4_1/Q8_0"),
    ("Q4_K_M", "smollm2-q4_k_m.json", "GGUF Q5_0/Q4K/Q8_0/Q6K"),
];

/// A file that `cargo xtask assets` fetches or makes. Nothing where it is absent, except under `CI=true`.
fn gguf(types: &str) -> Option<PathBuf> {
    let file = format!("smollm2/SmolLM2-135M-Instruct.{types}.gguf");
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/assets"),
        PathBuf::from,
    );
    let path = assets.join(&file);
    if path.exists() {
        return Some(path);
    }
    let message = format!("{file} is missing; `cargo xtask assets` fetches it");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
    eprintln!("skipped: {message}");
    None
}

struct Answer {
    text: String,
    ids: Vec<u32>,
    top: Vec<u32>,
    logits: Vec<(u32, f64)>,
    greedy: Vec<u32>,
}

fn answers(fixture: &str) -> Vec<Answer> {
    let text = std::fs::read(fixtures().join(fixture)).expect("the expected values are committed");
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
    let Some(path) = gguf("Q4_1") else { return };
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
    for answer in answers("smollm2.json") {
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
    for (types, fixture, matrices) in FILES {
        let Some(path) = gguf(types) else { return };
        let checkpoint = Checkpoint::open(&path).expect("the file opens");
        assert_eq!(checkpoint.description(), matrices);
        assert!(checkpoint.is_requantised(), "the server says so");
        compare(&checkpoint, &answers(fixture));
    }
}

fn compare(checkpoint: &Checkpoint, answers: &[Answer]) {
    let backend = CpuBackend::new(CpuConfig::default()).expect("the CPU target starts");
    let mut options = options(Some(BLOCKS_EACH * BLOCK_SIZE));
    options.kv_cache_bytes = 1 << 30;
    options.max_num_seqs = answers.len();
    let mut decoder = load(checkpoint, backend, &options, &mut |_, _| {}).expect("the model loads");
    assert_eq!(
        (decoder.info().logit_width, decoder.info().vocab_size),
        (49_152, 49_152)
    );

    let mut sequences: Vec<Vec<u32>> = answers.iter().map(|answer| answer.ids.clone()).collect();
    let scored: Vec<Vec<RowTask>> = answers
        .iter()
        .map(|answer| {
            answer
                .logits
                .iter()
                .map(|(id, _)| RowTask::Score(*id))
                .chain([RowTask::Draw])
                .collect()
        })
        .collect();
    let first = step(&mut decoder, &sequences, &vec![0; sequences.len()], &scored);
    for (answer, row) in answers.iter().zip(&first) {
        // Differences of log-probabilities are differences of logits.
        let best = answer
            .logits
            .iter()
            .position(|(id, _)| *id == answer.top[0])
            .expect("the best id is stored");
        for ((id, expected), found) in answer.logits.iter().zip(row) {
            let difference = f64::from(found.logprob) - f64::from(row[best].logprob);
            let error = (difference - (expected - answer.logits[best].1)).abs();
            assert!(
                error < TOLERANCE,
                "{:?}: logit {id} off by {error}",
                answer.text
            );
        }
    }
    let mut next: Vec<u32> = first
        .iter()
        .map(|row| row[row.len() - 1].token_id)
        .collect();
    let drawn = vec![vec![RowTask::Draw]; sequences.len()];
    for index in 0..answers[0].greedy.len() {
        for ((sequence, token), answer) in sequences.iter_mut().zip(&next).zip(answers) {
            assert_eq!(
                *token, answer.greedy[index],
                "{:?} at token {index}",
                answer.text
            );
            sequence.push(*token);
        }
        let starts: Vec<usize> = sequences
            .iter()
            .map(|sequence| sequence.len() - 1)
            .collect();
        let rows = step(&mut decoder, &sequences, &starts, &drawn);
        next = rows.iter().map(|row| row[0].token_id).collect();
    }
}

/// Cache blocks of each sequence.
const BLOCKS_EACH: usize = 8;

/// Computes every sequence from its start on and answers the tasks of its last token.
fn step(
    model: &mut dyn CausalLm,
    sequences: &[Vec<u32>],
    starts: &[usize],
    tasks: &[Vec<RowTask>],
) -> Vec<Vec<Sampled>> {
    let spans: Vec<Span> = sequences
        .iter()
        .zip(starts)
        .enumerate()
        .map(|(index, (sequence, start))| Span {
            tokens: &sequence[*start..],
            start: *start,
            first_block: (index * BLOCKS_EACH) as u32,
        })
        .collect();
    let mut batch = batch(&spans);
    batch.logit_rows.clear();
    let mut samples = SampleBatch {
        rows: Vec::new(),
        vocab_size: model.info().vocab_size,
    };
    let mut end = 0;
    for (span, tasks) in spans.iter().zip(tasks) {
        end += span.tokens.len();
        for task in tasks {
            batch.logit_rows.push(end - 1);
            samples.rows.push(SampleRow {
                params: Arc::new(SamplingParams::greedy()),
                task: *task,
                seed: 0,
                position: (span.start + span.tokens.len()) as u32,
                counts: Vec::new(),
                banned: Arc::from([]),
            });
        }
    }
    let output = model.forward(&batch, &samples).expect("the step runs");
    let mut rows = output.rows.into_iter().map(|row| match row {
        RowOutput::Token(sampled) => sampled,
        RowOutput::NonFinite => panic!("logits are not finite"),
    });
    tasks
        .iter()
        .map(|tasks| rows.by_ref().take(tasks.len()).collect())
        .collect()
}
