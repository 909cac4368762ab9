//! Sampling on the target, against the reference sampler and row against row.

use std::sync::Arc;

use super::scene::{matrix, plain_step};
use super::{TestBackend, Tolerances};
use crate::{
    RowOutput, RowTask, SampleBatch, SampleOutput, SampleRow, SamplingParams, TokenCount, TokenId,
    sample_row,
};

const VOCAB_SIZE: usize = 1000;
/// Wider than the vocabulary: the rest is padding.
const LOGIT_WIDTH: usize = 1024;

/// Tokens equal those of the reference sampler, log-probabilities are close, and broken rows are
/// reported as such.
pub fn sample_matches_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    for seed in 0..8 {
        let rows = rows(seed);
        let logits = logits(rows.len());
        let found = sample(target, &rows, &logits);
        for (i, (row, found)) in rows.iter().zip(&found.rows).enumerate() {
            let logits = &logits[i * LOGIT_WIDTH..(i + 1) * LOGIT_WIDTH];
            let expected = sample_row(logits, row, VOCAB_SIZE);
            assert_close(found, &expected, tolerances.logprob, (i, row));
        }
    }
}

fn assert_close(found: &RowOutput, expected: &RowOutput, bound: f32, case: impl std::fmt::Debug) {
    let (found, expected) = match (found, expected) {
        (RowOutput::Token(found), RowOutput::Token(expected)) => (found, expected),
        _ => return assert_eq!(found, expected, "{case:?}"),
    };
    assert_eq!(found.token_id, expected.token_id, "{case:?}");
    let close = |a: f32, b: f32| (a - b).abs() <= bound;
    assert!(
        close(found.logprob, expected.logprob),
        "{} is not {}; {case:?}",
        found.logprob,
        expected.logprob
    );
    assert_eq!(found.top.len(), expected.top.len(), "{case:?}");
    for (found, expected) in found.top.iter().zip(&expected.top) {
        let same = found.0 == expected.0 && close(found.1, expected.1);
        assert!(same, "{found:?} is not {expected:?}; {case:?}");
    }
}

/// A row has the same outcome, to the last bit, alone and beside rows with other parameters, NaN,
/// infinities or nothing left to draw.
pub fn sampled_rows_do_not_depend_on_each_other<B: TestBackend>(target: &mut B) {
    let rows = rows(3);
    let logits = logits(rows.len());
    let together = sample(target, &rows, &logits);
    assert_eq!(together.rows.len(), rows.len());
    for (i, row) in rows.iter().enumerate() {
        let logits = &logits[i * LOGIT_WIDTH..(i + 1) * LOGIT_WIDTH];
        let alone = sample(target, std::slice::from_ref(row), logits);
        assert_eq!(alone.rows[0], together.rows[i], "row {i}: {row:?}");
    }
}

fn sample<B: TestBackend>(target: &mut B, rows: &[SampleRow], logits: &[f32]) -> SampleOutput {
    let step = plain_step(target, rows.len(), (0..rows.len()).collect());
    let logits = target.upload(rows.len(), LOGIT_WIDTH, logits);
    let batch = SampleBatch {
        rows: rows.to_vec(),
        vocab_size: VOCAB_SIZE,
    };
    target
        .sample(logits, &batch, step)
        .expect("one row of logits per row of the batch")
}

/// One row for each way to choose, repeated tasks and broken rows included. The order fixes which
/// logits a row sees.
fn rows(seed: u64) -> Vec<SampleRow> {
    let base = SamplingParams::default;
    let params = [
        SamplingParams::greedy(),
        SamplingParams {
            num_logprobs: Some(20),
            ..SamplingParams::greedy()
        },
        base(),
        SamplingParams {
            temperature: 0.3,
            num_logprobs: Some(0),
            ..base()
        },
        SamplingParams { top_k: 7, ..base() },
        SamplingParams {
            top_p: 0.6,
            ..base()
        },
        SamplingParams {
            min_p: 0.2,
            ..base()
        },
        SamplingParams {
            temperature: 1.7,
            top_k: 300,
            top_p: 0.9,
            min_p: 0.01,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            repetition_penalty: 1.3,
            logit_bias: vec![(3, 2.0), (900, -5.0)],
            num_logprobs: Some(5),
        },
    ];
    let mut rows: Vec<SampleRow> = params
        .into_iter()
        .enumerate()
        .map(|(i, params)| SampleRow {
            counts: if params.has_penalties() {
                counts()
            } else {
                Vec::new()
            },
            params: Arc::new(params),
            task: RowTask::Draw,
            seed: seed * 1000 + i as u64,
            position: 40 + i as u32,
            banned: Arc::from([]),
        })
        .collect();
    let scored = SampleRow {
        task: RowTask::Score(17),
        ..rows[1].clone()
    };
    let whole = SampleRow {
        task: RowTask::Distribution,
        ..rows[1].clone()
    };
    let banned = SampleRow {
        banned: (0..990).collect::<Vec<TokenId>>().into(),
        ..rows[2].clone()
    };
    // These four meet the broken rows of `logits`.
    let broken = [&rows[0], &rows[2], &rows[5], &scored].map(Clone::clone);
    rows.extend([scored, whole, banned]);
    rows.extend(broken);
    rows
}

fn counts() -> Vec<TokenCount> {
    (0..200)
        .map(|i| TokenCount {
            token_id: i * 5,
            num_generated: i % 4,
        })
        .collect()
}

/// Sharp and flat rows; the last four hold NaN, +∞, nothing at all, and NaN in the padding only.
fn logits(rows: usize) -> Vec<f32> {
    let mut logits = matrix(51, rows, LOGIT_WIDTH);
    for (i, row) in logits.chunks_mut(LOGIT_WIDTH).enumerate() {
        let sharpness = 2.0 + (i % 3) as f32 * 4.0;
        row.iter_mut().for_each(|x| *x *= sharpness);
        row[VOCAB_SIZE..].fill(1e4);
        // An exact tie at the top.
        (row[123], row[321]) = (sharpness, sharpness);
        match rows - 1 - i {
            3 => row[77] = f32::NAN,
            2 => row[999] = f32::INFINITY,
            1 => row[..VOCAB_SIZE].fill(f32::NEG_INFINITY),
            0 => row[VOCAB_SIZE..].fill(f32::NAN),
            _ => {}
        }
    }
    logits
}
