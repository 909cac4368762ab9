//! What 8 bits cost each family, measured on the tiny checkpoints: Kullback-Leibler divergence from the
//! 32-bit form. Their weights are random, so the bound is not that of a quality tier for real models; it
//! is twice what is measured, and scales that are lost along the way cost far more.

use std::path::Path;
use std::sync::Arc;

use backend::{RowOutput, RowTask, SampleBatch, SampleRow, SamplingParams};
use backend_cpu::{CpuBackend, CpuConfig, Precision};
use half::{bf16, f16};
use model::{CausalLm, Checkpoint, load};
use quant::{Granularity, Quantised};
use safetensors::tensor::Dtype;

use crate::golden::CASES;
use crate::support::{Span, batch, checkpoint_dir, edit_tensors, options};

/// Ids of the fixtures' vocabulary.
const VOCAB: u32 = 90;
const POSITIONS: usize = 16;
/// Mean divergence in nats that 8 bits may cost a tiny checkpoint.
const BOUND: f64 = 0.005;
/// How many times that, at least, lost scales cost.
const LOST: f64 = 10.0;

/// Log-probabilities of all ids after each position.
fn log_probabilities(dir: &Path, len: Option<usize>, precision: Precision) -> Vec<f64> {
    let config = CpuConfig {
        precision,
        ..CpuConfig::default()
    };
    let target = CpuBackend::new(config).expect("the CPU target starts");
    let checkpoint = Checkpoint::open(dir).expect("opens");
    let loaded = load(&checkpoint, target, &options(len), &mut |_, _| {});
    let mut decoder = loaded.expect("loads");
    let ids: Vec<u32> = (0..POSITIONS as u32)
        .map(|i| (7 * i * i + 3 * i + 5) % VOCAB)
        .collect();
    let mut batch = batch(&[Span {
        tokens: &ids,
        start: 0,
        first_block: 0,
    }]);
    batch.logit_rows = (0..POSITIONS)
        .flat_map(|row| std::iter::repeat_n(row, VOCAB as usize))
        .collect();
    let row = |row: usize, id: u32| SampleRow {
        params: Arc::new(SamplingParams::greedy()),
        task: RowTask::Score(id),
        seed: 0,
        position: row as u32 + 1,
        counts: Vec::new(),
        banned: Arc::from([]),
    };
    let rows = (0..POSITIONS).flat_map(|position| (0..VOCAB).map(move |id| row(position, id)));
    let samples = SampleBatch {
        rows: rows.collect(),
        vocab_size: decoder.info().vocab_size,
    };
    let output = decoder.forward(&batch, &samples).expect("the step runs");
    let logprob = |row: &RowOutput| match row {
        RowOutput::Token(found) => f64::from(found.logprob),
        RowOutput::NonFinite => panic!("logits are not finite"),
    };
    output.rows.iter().map(logprob).collect()
}

/// Mean over the positions of the divergence of `found` from `expected`.
fn divergence(found: &[f64], expected: &[f64]) -> f64 {
    let terms = found.iter().zip(expected);
    let sum: f64 = terms.map(|(q, p)| p.exp() * (p - q)).sum();
    sum / POSITIONS as f64
}

fn words<const N: usize>(bytes: &[u8], widen: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let words = bytes.as_chunks().0.iter();
    words.map(|word| widen(*word)).collect()
}

/// Rounds every matrix of the layers to 8 bits with a scale per 32 inputs, and back.
fn round_to_groups(dir: &Path, scales: impl Fn(usize, &[f32]) -> f32) {
    edit_tensors(dir, |tensors| {
        for (name, dtype, shape, data) in tensors.iter_mut() {
            let &[rows, columns] = &shape[..] else {
                continue;
            };
            let in_a_layer = name.split('.').any(|part| part.parse::<usize>().is_ok());
            if !in_a_layer {
                continue;
            }
            let floats: Vec<f32> = match *dtype {
                Dtype::F32 => words(data, f32::from_le_bytes),
                Dtype::BF16 => words(data, |word| bf16::from_le_bytes(word).to_f32()),
                Dtype::F16 => words(data, |word| f16::from_le_bytes(word).to_f32()),
                other => panic!("{name} has type {other:?}"),
            };
            *dtype = Dtype::F32;
            let rounded = Quantised::new(&floats, rows, columns, Granularity::Groups(32));
            let rounded = rounded.expect("finite weights");
            *data = (0..rows)
                .flat_map(|row| {
                    let (values, own) = (rounded.row(row), rounded.row_scales(row));
                    let scaled = values.iter().enumerate();
                    scaled
                        .map(|(i, q)| f32::from(*q) * scales(i / 32, own))
                        .collect::<Vec<_>>()
                })
                .flat_map(f32::to_le_bytes)
                .collect();
        }
    });
}

#[test]
fn eight_bits_cost_every_family_little() {
    let mut faults = Vec::new();
    // The tied Llama has its weights in shards, which are not rewritten here.
    for (name, case, len) in CASES.iter().filter(|(name, ..)| *name != "llama-tied") {
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        let expected = log_probabilities(dir.path(), *len, Precision::F32);
        let cost = |dir: &Path, precision: Precision| {
            divergence(&log_probabilities(dir, *len, precision), &expected)
        };
        let groups = cost(dir.path(), Precision::Int8);
        let fast = cost(dir.path(), Precision::Int8Fast);
        round_to_groups(dir.path(), |group, scales| scales[group]);
        let narrow = cost(dir.path(), Precision::F32);
        let dir = checkpoint_dir(name, &format!("{case}.tf5.json"));
        round_to_groups(dir.path(), |_, scales| scales[0]);
        let lost = cost(dir.path(), Precision::F32);
        eprintln!("{name} {case}: {groups:.5} {fast:.5} {narrow:.5}, scales lost {lost:.3}");
        let within = |cost: &f64| (-1e-6..BOUND).contains(cost);
        let costs = [groups, fast, narrow];
        let most = costs.into_iter().fold(0.0, f64::max);
        if !costs.iter().all(within) || lost < LOST * most {
            faults.push(format!("{name} {case}: {groups} {fast} {narrow} {lost}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
