//! The sampler against a naive one: every token sorted, every sum in double precision.

mod distribution;
mod oracle;

use std::sync::Arc;

use super::*;
use crate::{SamplingParams, TokenCount};

const NEG: f32 = f32::NEG_INFINITY;

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

fn sampled(logits: &[f32], row: &SampleRow) -> Sampled {
    match sample_row(logits, row, logits.len()) {
        RowOutput::Token(sampled) => sampled,
        RowOutput::NonFinite => panic!("{logits:?} are finite: {row:?}"),
    }
}

fn draw(logits: &[f32], row: &SampleRow, u: f64) -> Option<TokenId> {
    super::draw(
        &ReferenceOps,
        (logits, ReferenceOps.finite_max(logits)?),
        row,
        u,
    )
}

fn token(logits: &[f32], params: SamplingParams) -> TokenId {
    sampled(logits, &row(params)).token_id
}

/// Parameters that allow the best token only, greedy or not.
fn ways_to_take_the_best() -> [SamplingParams; 5] {
    let base = SamplingParams::default;
    [
        SamplingParams::greedy(),
        SamplingParams { top_k: 1, ..base() },
        SamplingParams {
            top_p: 0.0,
            ..base()
        },
        SamplingParams {
            top_p: 1e-6,
            ..base()
        },
        SamplingParams {
            temperature: 1e-6,
            top_k: 1,
            min_p: 1.0,
            ..base()
        },
    ]
}

#[test]
fn the_lowest_id_wins_an_exact_tie() {
    for params in ways_to_take_the_best() {
        for (logits, expected) in [
            (vec![1.0, 3.0, 3.0, NEG], 1),
            (vec![3.0; 40], 0),
            (vec![NEG, -0.0, 0.0], 1),
            (vec![NEG, NEG, NEG, -1e30], 3),
            (vec![f32::MIN, f32::MIN], 0),
            (vec![7.5], 0),
        ] {
            for position in 0..20 {
                let mut row = row(params.clone());
                row.position = position;
                let found = sampled(&logits, &row).token_id;
                assert_eq!(found, expected, "{logits:?} {params:?}");
            }
        }
    }
}

#[test]
fn ties_are_broken_after_bias_and_penalties() {
    for params in ways_to_take_the_best() {
        let params = SamplingParams {
            presence_penalty: 1.0,
            logit_bias: vec![(3, 0.5)],
            ..params
        };
        let mut row = row(params);
        row.counts = vec![TokenCount {
            token_id: 0,
            num_generated: 3,
        }];
        assert_eq!(sampled(&[3.0, 2.0, 2.5, 2.0], &row).token_id, 2);
    }
}

#[test]
fn padding_is_never_drawn_and_does_not_count() {
    for padding in [9.0, f32::NAN, f32::INFINITY] {
        let params = SamplingParams {
            num_logprobs: Some(3),
            ..SamplingParams::greedy()
        };
        let RowOutput::Token(sampled) = sample_row(&[0.0, 0.0, padding], &row(params), 2) else {
            panic!("the valid part is finite")
        };
        assert_eq!(sampled.token_id, 0);
        assert!((sampled.logprob - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(sampled.top.len(), 2);
    }
}

#[test]
fn a_distribution_lists_every_token_in_order_of_id() {
    let row = SampleRow {
        task: RowTask::Distribution,
        ..row(SamplingParams::default())
    };
    let logits = [1.0, 3.0, NEG, 3.0, 9.0];
    let RowOutput::Token(sampled) = sample_row(&logits, &row, 4) else {
        panic!("the logits are finite")
    };
    assert_eq!(sampled.token_id, 1);
    assert!(sampled.top.iter().map(|(id, _)| *id).eq(0..4));
    let sum: f64 = sampled.top.iter().map(|(_, p)| f64::from(*p).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-6, "{sum}");
    assert_eq!(sampled.top[3].1, sampled.logprob);
    assert!((sampled.top[0].1 - (sampled.logprob - 2.0)).abs() < 1e-6);
}

#[test]
fn rows_without_an_answer_are_reported() {
    let of_task = |task| SampleRow {
        task,
        ..row(SamplingParams::greedy())
    };
    let scored = [of_task(RowTask::Score(1)), of_task(RowTask::Distribution)];
    let drawn = ways_to_take_the_best().map(row);
    for row in drawn.iter().chain(&scored) {
        for logits in [
            vec![0.0, f32::NAN],
            vec![f32::NAN, 0.0],
            vec![0.0, f32::INFINITY],
            vec![NEG; 20],
            vec![],
        ] {
            let outcome = sample_row(&logits, row, logits.len());
            assert_eq!(outcome, RowOutput::NonFinite, "{logits:?} {row:?}");
        }
    }
}

#[test]
fn nothing_left_to_draw_is_reported() {
    for params in ways_to_take_the_best() {
        let mut all_banned = row(params.clone());
        all_banned.banned = Arc::from([2, 0, 1]);
        assert_eq!(sample_row(&[1.0; 3], &all_banned, 3), RowOutput::NonFinite);
        // Bias does not bring a banned token back.
        let mut biased = row(SamplingParams {
            logit_bias: vec![(1, 100.0)],
            ..params
        });
        biased.banned = Arc::from([1]);
        assert_eq!(sampled(&[0.0, 5.0, 1.0], &biased).token_id, 2);
    }
}

#[test]
fn values_that_validation_refuses_do_not_panic() {
    let base = SamplingParams::default;
    let nan = f32::NAN;
    #[rustfmt::skip]
    let cases = [
        SamplingParams { temperature: -1.0, ..base() },
        SamplingParams { temperature: nan, ..base() },
        SamplingParams { temperature: f32::INFINITY, ..base() },
        SamplingParams { temperature: f32::MIN_POSITIVE, ..base() },
        SamplingParams { top_p: -1.0, ..base() },
        SamplingParams { top_p: nan, ..base() },
        SamplingParams { min_p: 2.0, ..base() },
        SamplingParams { min_p: nan, ..base() },
        SamplingParams { top_k: u32::MAX, ..base() },
        SamplingParams { presence_penalty: nan, ..base() },
        SamplingParams { repetition_penalty: 0.0, ..base() },
        SamplingParams { logit_bias: vec![(0, f32::INFINITY)], ..base() },
        SamplingParams { num_logprobs: Some(u32::MAX), ..base() },
    ];
    for params in cases {
        let mut row = row(params);
        row.counts = vec![TokenCount {
            token_id: 0,
            num_generated: u32::MAX,
        }];
        if let RowOutput::Token(sampled) = sample_row(&[1.0, NEG, -2.0], &row, 3) {
            assert!([0, 2].contains(&sampled.token_id), "{row:?}");
        }
    }
}

#[test]
fn ids_outside_the_vocabulary_have_no_effect() {
    let logits: Vec<f32> = (0..50).map(|i| (i * 37 % 11) as f32 * 0.5).collect();
    let params = |logit_bias| SamplingParams {
        presence_penalty: 0.5,
        num_logprobs: Some(5),
        logit_bias,
        ..SamplingParams::default()
    };
    for position in 0..50 {
        let mut plain = row(params(vec![]));
        plain.position = position;
        let mut outside = row(params(vec![
            (40, 9.0),
            (49, 9.0),
            (50, 9.0),
            (u32::MAX, 9.0),
        ]));
        outside.position = position;
        outside.banned = Arc::from([40, 50, u32::MAX]);
        outside.counts = [40, 50, u32::MAX]
            .map(|token_id| TokenCount {
                token_id,
                num_generated: 1,
            })
            .to_vec();
        let expected = sample_row(&logits, &plain, 40);
        assert_eq!(sample_row(&logits, &outside, 40), expected);
    }
}

#[test]
fn penalties_count_what_they_say() {
    let greedy = SamplingParams::greedy;
    #[rustfmt::skip]
    let cases = [
        (SamplingParams { presence_penalty: 0.5, ..greedy() }, 1, 1),
        (SamplingParams { presence_penalty: 0.05, ..greedy() }, 9, 0),
        (SamplingParams { frequency_penalty: 0.06, ..greedy() }, 1, 0),
        (SamplingParams { frequency_penalty: 0.06, ..greedy() }, 2, 1),
        // A token of the prompt only.
        (SamplingParams { presence_penalty: 0.5, ..greedy() }, 0, 0),
        (SamplingParams { frequency_penalty: 0.5, ..greedy() }, 0, 0),
        (SamplingParams { repetition_penalty: 1.2, ..greedy() }, 0, 1),
    ];
    for (params, num_generated, expected) in cases {
        let mut row = row(params);
        row.counts = vec![TokenCount {
            token_id: 0,
            num_generated,
        }];
        assert_eq!(
            sampled(&[2.0, 1.9, 1.0], &row).token_id,
            expected,
            "{row:?}"
        );
    }
    // A negative logit is multiplied, so that a penalty is one there too.
    let mut row = row(SamplingParams {
        repetition_penalty: 2.0,
        ..greedy()
    });
    row.counts = vec![TokenCount {
        token_id: 1,
        num_generated: 0,
    }];
    assert_eq!(sampled(&[-1.5, -1.0], &row).token_id, 0);
}

#[test]
fn logprobs_are_of_the_raw_logits() {
    let logits = [0.0, 1.0, 1.0, NEG, -40.0];
    let params = SamplingParams {
        num_logprobs: Some(5),
        temperature: 0.1,
        logit_bias: vec![(0, 50.0)],
        ..SamplingParams::default()
    };
    let sampled = sampled(&logits, &row(params));
    let log_sum = (1.0 + 2.0 * 1f64.exp() + (-40f64).exp()).ln();
    let expected = [
        (1, 1.0 - log_sum),
        (2, 1.0 - log_sum),
        (0, -log_sum),
        (4, -40.0 - log_sum),
        (3, -9999.0),
    ];
    assert_eq!(sampled.token_id, 0);
    assert!((f64::from(sampled.logprob) + log_sum).abs() < 1e-6);
    assert_eq!(sampled.top.len(), expected.len());
    for (found, expected) in sampled.top.iter().zip(expected) {
        assert_eq!(found.0, expected.0);
        assert!((f64::from(found.1) - expected.1).abs() < 1e-5, "{found:?}");
    }
}

#[test]
fn a_known_token_is_scored_whatever_the_parameters() {
    let logits = [0.0, 2.0, NEG];
    for params in ways_to_take_the_best() {
        for (token_id, expected) in [(0, -2.0 - 0.126_928), (1, -0.126_928), (2, -9999.0)] {
            let mut row = row(params.clone());
            row.task = RowTask::Score(token_id);
            row.banned = Arc::from([token_id]);
            let sampled = sampled(&logits, &row);
            assert_eq!(sampled.token_id, token_id);
            assert!((sampled.logprob - expected).abs() < 1e-5, "{sampled:?}");
        }
        let mut outside = row(params);
        outside.task = RowTask::Score(3);
        assert_eq!(sample_row(&logits, &outside, 3), RowOutput::NonFinite);
    }
}

#[test]
fn large_vocabularies_lose_nothing() {
    let logits: Vec<f32> = (0..152_064u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 65_536.0)
        .collect();
    let best = token(&logits, SamplingParams::greedy());
    assert!(logits.iter().all(|x| *x <= logits[best as usize]));
    let params = SamplingParams {
        num_logprobs: Some(20),
        ..SamplingParams::greedy()
    };
    let top = sampled(&logits, &row(params)).top;
    let mut ids: Vec<TokenId> = (0..152_064).collect();
    ids.sort_by(|a, b| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.partial_cmp(&x).expect("no NaN").then(a.cmp(b))
    });
    let found: Vec<TokenId> = top.iter().map(|(id, _)| *id).collect();
    assert_eq!(found, ids[..20]);
}
