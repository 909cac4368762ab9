//! The real all-MiniLM-L6-v2 against what sentence-transformers computes with it.

use std::path::{Path, PathBuf};

use encoder::{Encode, TruncationSide};

use crate::support::{fixtures, json, open, vector};

/// The folder that `cargo xtask test assets` fetches. Nothing where it is absent, except under `CI=true`.
fn folder() -> Option<PathBuf> {
    let assets = std::env::var_os("OCTET_ASSETS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/assets"),
        PathBuf::from,
    );
    let path = assets.join("minilm");
    if path.join("model.safetensors").exists() {
        return Some(path);
    }
    let message = "minilm is missing; `cargo xtask test assets` fetches it";
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{message}");
    eprintln!("skipped: {message}");
    None
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let Some(folder) = folder() else { return };
    let mut loaded = open(&folder).expect("it loads");
    let cases = json(&fixtures().join("minilm.json"));
    let cases = cases.as_array().expect("a list");
    assert!(cases.len() > 30);
    let max = loaded.info.max_tokens;
    let mut num_cut = 0;
    let inputs: Vec<Vec<u32>> = cases
        .iter()
        .map(|case| {
            let text = case["text"].as_str().expect("a text");
            let whole = loaded.tokenizer.encode(text).expect("it encodes");
            num_cut += usize::from(whole.len() > max);
            loaded
                .tokenizer
                .encode_truncated(text, max, TruncationSide::Right)
                .expect("it encodes")
        })
        .collect();
    assert!(num_cut > 0);
    // Together, so that all but the longest are padded.
    let batch: Vec<&[u32]> = inputs.iter().map(|ids| &ids[..]).collect();
    let vectors = loaded.encoder.encode(&batch).expect("it computes");
    let similarities = vectors
        .iter()
        .zip(cases)
        .map(|(found, case)| (cosine(found, &vector(&case["vector"])), &case["text"]));
    let worst = similarities
        .min_by(|a, b| a.0.total_cmp(&b.0))
        .expect("texts");
    eprintln!(
        "lowest cosine similarity {:.7} of {} texts",
        worst.0,
        cases.len()
    );
    assert!(worst.0 >= 0.9999, "{worst:?}");
}
