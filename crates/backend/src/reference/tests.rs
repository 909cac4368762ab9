use std::sync::Arc;

use super::*;
use crate::conformance::Tolerances;
use crate::{RowOutput, RowTask, SampleRow, SamplingParams, TokenCount};

mod suite {
    use super::*;

    crate::conformance_suite!(ReferenceBackend, Tolerances::F32);
}

fn row(params: SamplingParams) -> SampleRow {
    SampleRow {
        params: Arc::new(params),
        task: RowTask::Draw,
        seed: 1,
        position: 0,
        counts: Vec::new(),
        banned: Arc::from([]),
    }
}

fn token(output: RowOutput) -> u32 {
    match output {
        RowOutput::Token(token) => token.token_id,
        RowOutput::NonFinite => panic!("finite logits"),
    }
}

#[test]
fn greedy_takes_the_lowest_id_among_the_largest() {
    let logits = [1.0, 3.0, 3.0, f32::NEG_INFINITY];
    assert_eq!(
        token(sample_row(&logits, &row(SamplingParams::greedy()), 4)),
        1
    );
    let mut banned = row(SamplingParams::greedy());
    banned.banned = Arc::from([1]);
    assert_eq!(token(sample_row(&logits, &banned, 4)), 2);
}

#[test]
fn padding_is_never_drawn_and_does_not_count() {
    let logits = [0.0, 0.0, 9.0];
    let RowOutput::Token(sampled) = sample_row(&logits, &row(SamplingParams::greedy()), 2) else {
        panic!("finite")
    };
    assert_eq!(sampled.token_id, 0);
    assert!((sampled.logprob - 0.5f32.ln()).abs() < 1e-6);
}

#[test]
fn non_finite_rows_are_reported() {
    for bad in [f32::NAN, f32::INFINITY] {
        assert_eq!(
            sample_row(&[0.0, bad], &row(SamplingParams::greedy()), 2),
            RowOutput::NonFinite
        );
    }
    assert_eq!(
        sample_row(&[f32::NEG_INFINITY; 2], &row(SamplingParams::default()), 2),
        RowOutput::NonFinite
    );
    // Padding may hold anything.
    assert_eq!(
        token(sample_row(
            &[0.0, f32::NAN],
            &row(SamplingParams::greedy()),
            1
        )),
        0
    );
}

#[test]
fn penalties_and_bias_change_the_choice() {
    let logits = [2.0, 1.9, 1.0];
    for (params, counts, expected) in [
        (
            SamplingParams {
                presence_penalty: 0.5,
                ..SamplingParams::greedy()
            },
            vec![(0, 1)],
            1,
        ),
        (
            SamplingParams {
                frequency_penalty: 0.06,
                ..SamplingParams::greedy()
            },
            vec![(0, 1)],
            0,
        ),
        (
            SamplingParams {
                frequency_penalty: 0.06,
                ..SamplingParams::greedy()
            },
            vec![(0, 2)],
            1,
        ),
        (
            SamplingParams {
                presence_penalty: 0.5,
                ..SamplingParams::greedy()
            },
            vec![(0, 0)],
            0,
        ),
        (
            SamplingParams {
                repetition_penalty: 1.2,
                ..SamplingParams::greedy()
            },
            vec![(0, 0)],
            1,
        ),
        (
            SamplingParams {
                logit_bias: vec![(2, 1.5)],
                ..SamplingParams::greedy()
            },
            vec![],
            2,
        ),
    ] {
        let mut row = row(params.clone());
        row.counts = counts
            .iter()
            .map(|(token_id, num_generated)| TokenCount {
                token_id: *token_id,
                num_generated: *num_generated,
            })
            .collect();
        assert_eq!(token(sample_row(&logits, &row, 3)), expected, "{params:?}");
    }
}

#[test]
fn top_logprobs_are_raw_and_ordered() {
    let params = SamplingParams {
        num_logprobs: Some(3),
        temperature: 0.1,
        ..SamplingParams::default()
    };
    let RowOutput::Token(sampled) =
        sample_row(&[0.0, 1.0, 1.0, f32::NEG_INFINITY], &row(params), 4)
    else {
        panic!("finite")
    };
    let ids: Vec<u32> = sampled.top.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [1, 2, 0]);
    let sum = 1.0 + 2.0 * 1f32.exp();
    assert!((sampled.top[0].1 - (1.0 - sum.ln())).abs() < 1e-6);
}

#[test]
fn restricted_draws_stay_inside_their_set() {
    let logits: Vec<f32> = (0..1000).map(|i| (i % 97) as f32 * 0.1).collect();
    for (params, allowed) in [
        (
            SamplingParams {
                top_k: 1,
                ..SamplingParams::default()
            },
            1,
        ),
        (
            SamplingParams {
                top_k: 5,
                ..SamplingParams::default()
            },
            5,
        ),
        (
            SamplingParams {
                top_p: 1e-6,
                ..SamplingParams::default()
            },
            1,
        ),
        (
            SamplingParams {
                min_p: 0.999,
                ..SamplingParams::default()
            },
            10,
        ),
    ] {
        let mut seen = std::collections::BTreeSet::new();
        for position in 0..300 {
            let mut row = row(params.clone());
            row.position = position;
            seen.insert(token(sample_row(&logits, &row, 1000)));
        }
        assert!(
            seen.len() <= allowed && seen.iter().all(|id| id % 97 == 96),
            "{params:?}: {seen:?}"
        );
        assert!(seen.len() > allowed / 2, "{params:?}: {seen:?}");
    }
}

#[test]
fn draws_follow_the_distribution_and_the_seed() {
    let logits = [0.0f32, 1.0, 2.0, 3.0];
    let total: f32 = logits.iter().map(|x| x.exp()).sum();
    let mut counts = [0u32; 4];
    let draws = 20_000;
    for position in 0..draws {
        let mut row = row(SamplingParams::default());
        row.position = position;
        let first = token(sample_row(&logits, &row, 4));
        assert_eq!(
            first,
            token(sample_row(&logits, &row, 4)),
            "the same seed and position draw the same token"
        );
        counts[first as usize] += 1;
    }
    let chi_square: f32 = logits
        .iter()
        .zip(counts)
        .map(|(x, count)| {
            let expected = x.exp() / total * draws as f32;
            (count as f32 - expected).powi(2) / expected
        })
        .sum();
    assert!(
        chi_square < 16.3,
        "three degrees of freedom, p = 0.001: {chi_square}"
    );
}
