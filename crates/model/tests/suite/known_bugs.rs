//! Mistakes that loaders of these families have made, quiet and loud: each, made here in the settings or
//! the weights of a fixture, must show in its golden logits. What the test of settings and that of single
//! tensors do not reach stands here.

use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::{Value, json};

use crate::families::distance;
use crate::golden::TOLERANCE;
use crate::support::{Stored, checkpoint_dir, edit_config, edit_tensors};

/// What a mistake does to a checkpoint.
enum Mistake {
    Settings(Value),
    Weights(fn(&mut [Stored])),
}

use Mistake::{Settings, Weights};

/// Every 32-bit element of a tensor.
fn elements(tensor: &mut Stored) -> &mut [[u8; 4]] {
    tensor.3.as_chunks_mut::<4>().0
}

fn scale(tensor: &mut Stored, factor: f32) {
    if tensor.1 == Dtype::BF16 {
        let words = tensor.3.as_chunks::<2>().0;
        tensor.3 = words
            .iter()
            .flat_map(|&[low, high]| [0, 0, low, high])
            .collect();
        tensor.1 = Dtype::F32;
    }
    for element in elements(tensor) {
        *element = (f32::from_le_bytes(*element) * factor).to_le_bytes();
    }
}

/// The tensors whose names hold a part.
fn named<'a>(tensors: &'a mut [Stored], part: &str) -> Vec<&'a mut Stored> {
    let found = tensors.iter_mut().filter(|tensor| tensor.0.contains(part));
    let found: Vec<_> = found.collect();
    assert!(!found.is_empty(), "{part}");
    found
}

/// Pairs neighbours where the first half of a head pairs with the second: heads of 24 rows.
fn pair_neighbours(tensors: &mut [Stored]) {
    for part in ["q_proj", "k_proj"] {
        for tensor in named(tensors, part) {
            let columns = tensor.2.get(1).copied().unwrap_or(1);
            let rows: Vec<Vec<[u8; 4]>> = elements(tensor)
                .chunks(columns)
                .map(<[_]>::to_vec)
                .collect();
            for (head, rows) in rows.chunks(24).enumerate() {
                let order = (0..24).step_by(2).chain((1..24).step_by(2));
                for (to, from) in order.enumerate() {
                    let at = (24 * head + to) * columns;
                    elements(tensor)[at..at + columns].copy_from_slice(&rows[from]);
                }
            }
        }
    }
}

fn swap_gate_and_up(tensors: &mut [Stored]) {
    for tensor in tensors {
        tensor.0 = match tensor.0.contains("gate_proj") {
            true => tensor.0.replace("gate_proj", "up_proj"),
            false => tensor.0.replace("up_proj", "gate_proj"),
        };
    }
}

/// Takes the row of the next position.
fn next_position(tensors: &mut [Stored]) {
    for tensor in named(tensors, "wpe.weight") {
        let row = tensor.3.len() / tensor.2[0];
        tensor.3.rotate_left(row);
    }
}

/// Scales queries as heads of 16 features ask, which have 24.
fn scale_of_another_head_size(tensors: &mut [Stored]) {
    for tensor in named(tensors, "q_proj") {
        scale(tensor, (24.0f32 / 16.0).sqrt());
    }
}

/// √48 is 6.928, in bfloat16 6.938: the same as writing less to the stream.
fn rounded_embedding_scale(tensors: &mut [Stored]) {
    for part in ["o_proj", "down_proj"] {
        for tensor in named(tensors, part) {
            scale(tensor, 48.0f32.sqrt() / 6.9375);
        }
    }
}

fn no_query_bias(tensors: &mut [Stored]) {
    for tensor in named(tensors, "q_proj.bias") {
        scale(tensor, 0.0);
    }
}

#[test]
fn known_mistakes_show_in_the_logits() {
    let rope = |rope: Value| Settings(json!({ "rope_parameters": rope }));
    let plain = || rope(json!({"rope_type": "default", "rope_theta": 10000.0}));
    for (mistake, name, case, made) in [
        (
            "tanh GELU for erf",
            "gpt-neox",
            "parallel",
            Settings(json!({"hidden_act": "gelu_new"})),
        ),
        (
            "erf GELU for tanh",
            "gpt2",
            "default",
            Settings(json!({"activation_function": "gelu"})),
        ),
        (
            "ε 1e-5 for 1e-6",
            "mistral",
            "window",
            Settings(json!({"rms_norm_eps": 1e-5})),
        ),
        (
            "ε 1e-6 for 1e-5",
            "llama",
            "default",
            Settings(json!({"rms_norm_eps": 1e-6})),
        ),
        (
            "√h in bfloat16",
            "gemma",
            "default",
            Weights(rounded_embedding_scale),
        ),
        ("llama3 ignored", "llama", "llama3", plain()),
        ("linear ignored", "llama", "linear", plain()),
        ("yarn ignored", "llama", "yarn", plain()),
        (
            "yarn's factor forgotten",
            "llama",
            "yarn",
            rope(
                json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                "original_max_position_embeddings": 16, "attention_factor": 1.0}),
            ),
        ),
        (
            "scale of another head size",
            "llama",
            "default",
            Weights(scale_of_another_head_size),
        ),
        (
            "window one too wide",
            "mistral",
            "window",
            Settings(json!({"sliding_window": 10})),
        ),
        (
            "window one too narrow",
            "qwen2",
            "window",
            Settings(json!({"sliding_window": 8})),
        ),
        (
            "window forgotten",
            "qwen3",
            "window",
            Settings(json!({"use_sliding_window": false, "layer_types": null})),
        ),
        (
            "parallel as sequential",
            "gpt-neox",
            "parallel",
            Settings(json!({"use_parallel_residual": false})),
        ),
        (
            "learned position + 1",
            "gpt2",
            "default",
            Weights(next_position),
        ),
        (
            "wrong pairing",
            "llama",
            "default",
            Weights(pair_neighbours),
        ),
        (
            "gate and up swapped",
            "llama",
            "default",
            Weights(swap_gate_and_up),
        ),
        ("dropped bias", "llama", "default", Weights(no_query_bias)),
        (
            "SiLU for GELU",
            "qwen3",
            "default",
            Settings(json!({"hidden_act": "gelu"})),
        ),
    ] {
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        make(dir.path(), made);
        let distance = distance(dir.path(), name, case);
        eprintln!("{mistake}: {distance:.1e} of the largest logit");
        assert!(distance > TOLERANCE, "{mistake}: {distance:e}");
    }
}

fn make(dir: &Path, mistake: Mistake) {
    match mistake {
        Settings(fields) => edit_config(dir, &fields),
        Weights(edit) => edit_tensors(dir, |tensors| edit(tensors)),
    }
}
