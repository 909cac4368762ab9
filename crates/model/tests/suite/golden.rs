//! Tiny random checkpoints of every family against the logits of transformers, and against themselves
//! however the tokens are scheduled. The files are made by `fixtures/make.py`.

use crate::support::{Span, argmax, checkpoint_dir, fixtures, logits, logits_in_chunks, reference};
use model::CausalLm;
use safetensors::SafeTensors;

/// Folder, case, and the context to load with where it is not the checkpoint's own.
pub const CASES: &[(&str, &str, Option<usize>)] = &[
    ("llama", "default", None),
    ("llama", "llama3", None),
    ("llama", "linear", None),
    ("llama", "yarn", None),
    // The table of dynamic scaling follows the context; transformers computed 37 tokens.
    ("llama", "dynamic", Some(37)),
    ("llama-tied", "default", None),
    ("mistral", "window", None),
    ("mistral", "no-window", None),
    ("qwen2", "window", None),
    ("qwen2", "no-window", None),
    ("qwen3", "default", None),
    ("qwen3", "window", None),
    ("gpt-neox", "parallel", None),
    ("gpt-neox", "sequential", None),
    ("gpt-neox", "tanh", None),
    ("gpt2", "default", None),
    ("gpt2", "by-layer", None),
    ("gpt2", "unscaled", None),
    ("stablelm", "sequential", None),
    ("stablelm-parallel", "default", None),
    ("gptj", "default", None),
    ("phi", "default", None),
    ("phi-qk-norm", "default", None),
    ("phi3", "window", None),
    // The table of LongRoPE follows the context too.
    ("phi3", "long", None),
    ("phi3", "short", Some(16)),
    ("gemma", "default", None),
    ("gemma2", "default", None),
    ("gemma2", "epsilon", None),
    ("gemma3", "default", None),
    ("falcon", "default", None),
    ("falcon-grouped", "two-norms", None),
    ("falcon-one-norm", "default", None),
    ("falcon-sequential", "default", None),
    ("olmo2", "default", None),
    ("smollm3", "default", None),
    ("granite", "default", None),
    ("mixtral", "default", None),
    ("qwen3-moe", "default", None),
    ("qwen3-moe", "normalised", None),
];

/// Agreement with transformers, as a share of the largest logit.
pub const TOLERANCE: f32 = 5e-5;

pub struct Expected {
    pub ids: Vec<u32>,
    pub logits: Vec<f32>,
    greedy: Option<Vec<u32>>,
}

pub fn expected(name: &str, case: &str) -> Expected {
    let path = fixtures()
        .join(name)
        .join(format!("{case}.expected.safetensors"));
    let bytes = std::fs::read(path).expect("the expected values are committed");
    let tensors = SafeTensors::deserialize(&bytes).expect("valid safetensors");
    let words = |tensor: &str| -> Option<Vec<u32>> {
        let data = tensors.tensor(tensor).ok()?.data().to_vec();
        Some(
            data.as_chunks::<4>()
                .0
                .iter()
                .map(|word| u32::from_le_bytes(*word))
                .collect(),
        )
    };
    Expected {
        ids: words("ids").expect("ids"),
        logits: words("logits")
            .expect("logits")
            .into_iter()
            .map(f32::from_bits)
            .collect(),
        greedy: words("greedy"),
    }
}

/// The largest difference as a share of the largest logit.
pub fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    // `max` would pass over what is no number.
    assert!(found.iter().all(|x| x.is_finite()), "logits are not finite");
    let largest = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .fold(0.0f32, |max, (a, b)| max.max((a - b).abs()));
    worst / largest
}

#[test]
fn logits_equal_those_of_transformers() {
    for (name, case, max_model_len) in CASES {
        let expected = expected(name, case);
        for spelling in ["tf5", "tf4"] {
            let dir = checkpoint_dir(name, &format!("{case}.{spelling}.json"));
            let mut decoder = reference(dir.path(), *max_model_len);
            let found = logits_in_chunks(&mut decoder, &expected.ids, expected.ids.len());
            let error = error(&found, &expected.logits);
            assert!(error < TOLERANCE, "{name} {case} {spelling}: {error:e}");
            assert_eq!(
                (decoder.info().logit_width, decoder.info().vocab_size),
                (96, 90)
            );
        }
    }
}

#[test]
fn gguf_logits_equal_those_of_transformers() {
    for name in ["llama", "qwen2"] {
        let expected = expected("gguf", name);
        let path = fixtures().join(format!("gguf/{name}.gguf"));
        let mut decoder = reference(&path, None);
        let found = logits_in_chunks(&mut decoder, &expected.ids, expected.ids.len());
        let error = error(&found, &expected.logits);
        assert!(error < TOLERANCE, "{name}: {error:e}");
    }
}

#[test]
fn the_list_of_families_is_what_is_compared() {
    let model_types: Vec<String> = CASES
        .iter()
        .map(|(name, case, _)| {
            let path = fixtures().join(name).join(format!("{case}.tf5.json"));
            let text = std::fs::read(path).expect("the configuration is committed");
            let config: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
            config["model_type"].as_str().expect("a name").to_owned()
        })
        .collect();
    let mut table = "| `model_type` | models | files |\n|---|---|---|\n".to_owned();
    for family in model::supported() {
        let found = model_types.iter().any(|found| found == family.model_type);
        assert!(found, "{} has no golden logits", family.model_type);
        let gguf = if family.reads_gguf() { ", GGUF" } else { "" };
        table += &format!(
            "| `{}` | {} | safetensors{gguf} |\n",
            family.model_type, family.examples
        );
    }
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(readme).expect("the README is committed");
    assert!(
        readme.contains(&table),
        "the README's table is not\n{table}"
    );
}

#[test]
fn gguf_logits_of_every_family_equal_those_of_transformers() {
    for name in [
        "falcon",
        "falcon-two-norms",
        "gemma",
        "gemma2",
        "gemma3",
        "gpt2",
        "gptneox",
        "gptneox-sequential",
        "granite",
        "mixtral",
        "olmo2",
        "phi2",
        "phi3",
        "phi3-long",
        "qwen3",
        "qwen3moe",
        "smollm3",
        "stablelm",
        "stablelm-parallel",
    ] {
        let expected = expected("gguf-families", name);
        let path = fixtures().join(format!("gguf-families/{name}.gguf"));
        let mut decoder = reference(&path, None);
        let found = logits_in_chunks(&mut decoder, &expected.ids, expected.ids.len());
        let error = error(&found, &expected.logits);
        assert!(error < TOLERANCE, "{name}: {error:e}");
    }
}

#[test]
fn greedy_tokens_equal_those_of_transformers() {
    for (name, case, max_model_len) in CASES {
        let expected = expected(name, case);
        let Some(greedy) = expected.greedy else {
            continue;
        };
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        let mut decoder = reference(dir.path(), *max_model_len);
        let info = decoder.info().clone();
        let mut ids = expected.ids[..12].to_vec();
        let mut start = 0;
        for token in &greedy {
            let span = Span {
                tokens: &ids[start..],
                start,
                first_block: 0,
            };
            let all = logits(&mut decoder, &[span]);
            let last = &all[all.len() - info.logit_width..];
            start = ids.len();
            ids.push(argmax(last, info.vocab_size));
            assert_eq!(
                ids.last(),
                Some(token),
                "{name} {case} after {start} tokens"
            );
        }
    }
}

#[test]
fn scheduling_changes_no_bit() {
    for (name, case, max_model_len) in CASES {
        let ids = expected(name, case).ids;
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        let mut decoder = reference(dir.path(), *max_model_len);
        let whole = logits_in_chunks(&mut decoder, &ids, ids.len());
        for chunk in [1, 5, 32] {
            decoder.reset().expect("a new cache");
            let chunked = logits_in_chunks(&mut decoder, &ids, chunk);
            assert!(
                same_bits(&whole, &chunked),
                "{name} {case} in chunks of {chunk}"
            );
        }
        let other: Vec<u32> = ids.iter().rev().take(9).copied().collect();
        decoder.reset().expect("a new cache");
        let alone = logits_in_chunks(&mut decoder, &other, other.len());
        decoder.reset().expect("a new cache");
        let spans = [(&ids[..], 2), (&other[..], 0)].map(|(tokens, first_block)| Span {
            tokens,
            start: 0,
            first_block,
        });
        let together = logits(&mut decoder, &spans);
        let (first, second) = together.split_at(whole.len());
        assert!(
            same_bits(&whole, first),
            "{name} {case}: the long sequence in a batch"
        );
        assert!(
            same_bits(&alone, second),
            "{name} {case}: the short sequence in a batch"
        );
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Elements of the matrices of the fixtures, of experts the chosen ones only.
#[test]
fn active_weights_are_those_that_a_token_meets() {
    let attention = |q: u64, kv: u64| 48 * (q + 2 * kv) + 48 * q;
    let llama = 4 * (attention(72, 24) + 3 * 48 * 112);
    let mixtral = 3 * (attention(48, 24) + 5 * 48 + 2 * 3 * 48 * 32);
    for (name, layers) in [("llama", llama), ("mixtral", mixtral)] {
        let dir = checkpoint_dir(name, "default.tf5.json");
        let found = reference(dir.path(), None).info().active_weights;
        assert_eq!((found.layers, found.head), (layers, 96 * 48), "{name}");
    }
}
