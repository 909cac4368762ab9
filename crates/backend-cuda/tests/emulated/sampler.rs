//! The sampler on the emulated device against the one on the host: outcomes equal to the last bit.

use std::sync::Arc;

use backend::conformance::TestBackend;
use backend::{
    Backend, Batch, BatchSequence, RowOutput, RowTask, SampleBatch, SampleRow, SamplingParams,
    TokenCount, sample_row,
};
use backend_cuda::Precision;
use cuda_emulation::Profile;

use crate::device::target;

const NEG: f32 = f32::NEG_INFINITY;
/// Two ids behind the vocabulary are padding.
const PADDING: usize = 2;

fn rows(size: usize) -> Vec<Vec<f32>> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let wide: Vec<f32> = (0..size).map(|_| next() * 12.0).collect();
    let with = |at: usize, x: f32| {
        let mut row = wide.clone();
        row[at % size] = x;
        row
    };
    vec![
        wide.clone(),
        vec![1.25; size],
        (0..size).map(|i| [-0.0, 0.0][i % 2]).collect(),
        (0..size).map(|i| [NEG, 0.5, 0.25][i % 3]).collect(),
        (0..size).map(|i| (i % 40) as f32 * -0.693).collect(),
        vec![NEG; size],
        with(17, f32::NAN),
        with(size - 1, f32::INFINITY),
        with(3, f32::MAX),
    ]
}

fn all_params() -> Vec<SamplingParams> {
    let base = SamplingParams::default;
    let mut all = vec![
        SamplingParams {
            num_logprobs: Some(5),
            ..SamplingParams::greedy()
        },
        SamplingParams {
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            repetition_penalty: 1.3,
            logit_bias: vec![(0, 1.5), (4, -3.0), (7, NEG), (100_000, 1.0), (5, 2.0)],
            top_p: 0.9,
            num_logprobs: Some(2),
            ..base()
        },
        SamplingParams {
            logit_bias: vec![(2, f32::INFINITY)],
            ..base()
        },
        SamplingParams {
            temperature: f32::NAN,
            ..base()
        },
    ];
    for (temperature, top_k, top_p, min_p) in [
        (1.0, 0, 1.0, 0.0),
        (0.7, 40, 1.0, 0.0),
        (1.7, u32::MAX, 0.95, 0.0),
        (1.0, 0, 0.5, 0.0),
        (1.0, 0, 0.0, 0.05),
        (1e-6, 3, 0.999, 1.0),
        (f32::INFINITY, 33, 0.9, 0.001),
    ] {
        all.push(SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..base()
        });
    }
    all
}

/// The first `num_params` ways to sample.
fn check((profile, order): (Profile, u32), size: usize, seeds: u64, num_params: usize) {
    // What meets a token that another list names too stands far behind, with another warp.
    let behind = (0..40).map(|i| 100_000 + i);
    let banned: Arc<[u32]> = behind.clone().chain([5, size as u32]).collect();
    let counts: Vec<TokenCount> = behind
        .map(|token_id| (token_id, 1))
        .chain([(1, 0), (4, 3), (9, 1)])
        .map(|(token_id, num_generated)| TokenCount {
            token_id,
            num_generated,
        })
        .collect();
    let mut target = target(profile, order, Precision::Int8);
    let rows = rows(size);
    let columns = size + PADDING;
    let padding = [f32::NAN; PADDING];
    let flat: Vec<f32> = rows
        .iter()
        .flat_map(|row| [&row[..], &padding].concat())
        .collect();
    for (index, params) in all_params().into_iter().take(num_params).enumerate() {
        let params = Arc::new(params);
        for seed in 0..seeds {
            let task = match (index + seed as usize) % 5 {
                4 => RowTask::Score(size as u32 - 1),
                _ => RowTask::Draw,
            };
            let sample_rows: Vec<SampleRow> = (0..rows.len())
                .map(|position| SampleRow {
                    params: Arc::clone(&params),
                    task,
                    seed: seed * 977,
                    position: position as u32,
                    counts: counts.clone(),
                    banned: Arc::clone(&banned),
                })
                .collect();
            let batch = SampleBatch {
                rows: sample_rows,
                vocab_size: size,
            };
            let step = target
                .begin_step(&one_token_each(rows.len()))
                .expect("a step");
            let logits = target.upload(rows.len(), columns, &flat);
            let found = target.sample(logits, &batch, step).expect("it samples");
            for (row, (found, task)) in found.rows.iter().zip(&batch.rows).enumerate() {
                let expected = sample_row(&flat[row * columns..][..columns], task, size);
                assert_eq!(*found, expected, "row {row} of {size}, {task:?}");
            }
        }
    }
}

/// A draw that falls on the very border between two shares: 2⁻³⁰ of all seeds do, this one by search.
fn check_border(profile: Profile) {
    let (size, seed) = (64, 102_736_342);
    let mut target = target(profile, 0, Precision::Int8);
    let row = vec![1.25; size];
    let task = SampleRow {
        params: Arc::default(),
        task: RowTask::Draw,
        seed,
        position: 0,
        counts: Vec::new(),
        banned: Arc::from([]),
    };
    let expected = sample_row(&row, &task, size);
    assert!(matches!(&expected, RowOutput::Token(sampled) if sampled.token_id == 3));
    let batch = SampleBatch {
        rows: vec![task],
        vocab_size: size,
    };
    let step = target.begin_step(&one_token_each(1)).expect("a step");
    let logits = target.upload(1, size, &row);
    let found = target.sample(logits, &batch, step).expect("it samples");
    assert_eq!(found.rows, [expected]);
}

fn one_token_each(count: usize) -> Batch {
    let sequence = BatchSequence {
        num_tokens: 1,
        num_computed_tokens: 0,
        block_table: vec![0],
    };
    Batch {
        token_ids: vec![0; count],
        sequences: vec![sequence; count],
        logit_rows: (0..count).collect(),
        copies: Vec::new(),
    }
}

#[test]
fn tokens_and_log_probabilities_are_those_of_the_host() {
    for (size, seeds) in [(1, 1), (33, 2), (3000, 2)] {
        check((Profile::Fast80, 1), size, seeds, usize::MAX);
    }
}

#[test]
fn the_sampler_passes_every_check() {
    check((Profile::Checked80, 0), 300, 1, usize::MAX);
    check((Profile::Checked75, 12_345), 2100, 1, 2);
    check_border(Profile::Checked80);
}
