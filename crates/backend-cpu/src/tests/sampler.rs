//! The sampler against the reference: outcomes equal to the last bit, on every level.

use ::backend::{ReferenceOps, RowTask, SamplerOps, sample_row, sample_row_with};

use super::*;
use crate::sampler::CpuSampler;

const NEG: f32 = f32::NEG_INFINITY;
const VOCAB_SIZE: usize = 151_936;

/// A name and a row, which may hold ties, infinities or NaN.
type NamedRow = (&'static str, Vec<f32>);

fn scaled(seed: usize, len: usize, scale: f32) -> Vec<f32> {
    numbers(seed, len).into_iter().map(|x| x * scale).collect()
}

fn awkward_rows() -> Vec<NamedRow> {
    let with = |at: usize, x: f32| {
        let mut row = scaled(at, 100, 5.0);
        row[at] = x;
        row
    };
    vec![
        ("one token", vec![-3.5]),
        ("two tokens, one possible", vec![NEG, 2.0]),
        ("nothing", vec![]),
        ("nothing possible", vec![NEG; 33]),
        ("ties everywhere", vec![1.25; 1000]),
        ("zeros of both signs", [0.0, -0.0].repeat(40)),
        ("some ties", (0..777).map(|i| (i * 7 % 5) as f32).collect()),
        ("every other impossible", [NEG, 0.5, 0.25].repeat(50)),
        ("steep", (0..500).map(|i| i as f32 * -0.7).collect()),
        ("rising", (0..3000).map(|i| i as f32 * 1e-3).collect()),
        // Masses around 2²⁰, 2¹⁰ and 1, where the ranges of digits meet.
        (
            "halves",
            (0..2000)
                .map(|i| (i % 40) as f32 * -std::f32::consts::LN_2)
                .collect(),
        ),
        (
            "of one digit",
            (0..2000).map(|i| (i % 3) as f32 * -1e-7).collect(),
        ),
        ("wide", scaled(1, 4099, 30.0)),
        ("NaN", with(17, f32::NAN)),
        ("+∞", with(99, f32::INFINITY)),
        ("huge", with(3, f32::MAX)),
        ("lowest", vec![f32::MIN; 50]),
    ]
}

fn params() -> Vec<SamplingParams> {
    let base = SamplingParams::default;
    let mut all = vec![
        SamplingParams::greedy(),
        SamplingParams {
            num_logprobs: Some(20),
            ..SamplingParams::greedy()
        },
        SamplingParams {
            num_logprobs: Some(u32::MAX),
            ..SamplingParams::greedy()
        },
        SamplingParams {
            presence_penalty: 0.5,
            repetition_penalty: 1.3,
            logit_bias: vec![(0, 1.5), (40, -3.0), (7, NEG)],
            top_p: 0.9,
            ..base()
        },
    ];
    for temperature in [1.0, 0.6, 1.7, 1e-6, f32::MIN_POSITIVE, f32::INFINITY] {
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (1, 1.0, 0.0),
            (50, 1.0, 0.0),
            (u32::MAX, 1.0, 0.0),
            (0, 0.95, 0.0),
            (0, 1e-6, 0.0),
            (0, 0.0, 0.0),
            (0, 0.999_999, 0.0),
            (0, f32::NAN, f32::NAN),
            (0, 1.0, 0.02),
            (0, 1.0, 1.0),
            (333, 0.9, 0.001),
            (64, 0.5, 0.0),
        ] {
            all.push(SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                ..base()
            });
        }
    }
    all
}

fn row(params: SamplingParams, position: u32) -> SampleRow {
    SampleRow {
        params: Arc::new(params),
        task: RowTask::Draw,
        seed: 9,
        position,
        counts: vec![],
        banned: Arc::from([]),
    }
}

/// Outcomes are compared whole; no log-probability is NaN, so equal ones have equal bits but for the
/// sign of a zero.
fn check(name: &str, logits: &[f32], row: &SampleRow) {
    let expected = sample_row(logits, row, logits.len());
    for isa in Isa::supported() {
        let found = sample_row_with(&CpuSampler(isa), logits, row, logits.len());
        assert_eq!(found, expected, "{name} on {isa}: {row:?}");
    }
}

#[test]
fn awkward_rows_have_the_outcomes_of_the_reference() {
    for (name, logits) in awkward_rows() {
        for params in params() {
            for position in 0..3 {
                check(name, &logits, &row(params.clone(), position));
            }
        }
        for task in [RowTask::Score(5), RowTask::Distribution] {
            let row = SampleRow {
                task,
                ..row(SamplingParams::default(), 0)
            };
            check(name, &logits, &row);
        }
    }
}

#[test]
fn draws_at_the_ends_of_shares_are_those_of_the_reference() {
    for (name, logits) in awkward_rows() {
        let Some(max) = ReferenceOps.finite_max(&logits) else {
            continue;
        };
        for params in params().into_iter().filter(|p| p.temperature > 0.0) {
            for u in [0.0, 0.25, 0.5, 0.75, 1.0 - f64::EPSILON / 2.0] {
                let expected = ReferenceOps.choose(&logits, max, &params, u);
                for isa in Isa::supported() {
                    let found = CpuSampler(isa).choose(&logits, max, &params, u);
                    assert_eq!(found, expected, "{name} on {isa} at {u}: {params:?}");
                }
            }
        }
    }
}

#[test]
fn wide_vocabularies_have_the_outcomes_of_the_reference() {
    let peaked = |sharpness: f32| {
        let row = numbers(3, VOCAB_SIZE).into_iter();
        // A normal bulk would do as well; the cube gives a few tokens most of the mass.
        row.map(|x| x * x * x * sharpness).collect()
    };
    let rows: [(&str, Vec<f32>); 5] = [
        ("flat", vec![0.5; VOCAB_SIZE]),
        ("nearly flat", scaled(5, VOCAB_SIZE, 0.01)),
        ("random weights", scaled(6, VOCAB_SIZE, 3.0)),
        ("peaked", peaked(30.0)),
        ("rising", (0..VOCAB_SIZE).map(|i| i as f32 * 1e-4).collect()),
    ];
    let base = SamplingParams::default;
    #[rustfmt::skip]
    let params = [
        SamplingParams { num_logprobs: Some(20), ..SamplingParams::greedy() },
        SamplingParams { top_p: 0.95, ..base() },
        SamplingParams { top_k: 50, temperature: 0.8, ..base() },
        SamplingParams { top_k: 100_000, top_p: 0.8, min_p: 1e-4, ..base() },
    ];
    for (name, logits) in rows {
        for params in &params {
            check(name, &logits, &row(params.clone(), 1));
        }
    }
}
