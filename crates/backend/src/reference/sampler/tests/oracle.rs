//! Candidate sets and draws against a full sort in double precision, for parameters of every kind.

use std::collections::HashSet;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;

/// A token that may be drawn.
#[derive(Debug)]
struct Candidate {
    id: TokenId,
    weight: f64,
}

/// The candidates in the order of the draw, that of ids.
#[derive(Debug)]
struct Candidates {
    all: Vec<Candidate>,
    /// Whether rounding to 32 bits could change the set.
    ambiguous: bool,
}

/// The parts of the best token's weight that weights are rounded to.
const ONE: f64 = (1u32 << 30) as f64;
/// Margins around the borders of min-p and top-p that 32-bit weights cannot resolve: of one weight, and
/// as a share of their sum.
const WEIGHT_MARGIN: f64 = 1e-5;
const SUM_MARGIN: f64 = 2e-6;

fn candidates(logits: &[f32], row: &SampleRow) -> Option<Candidates> {
    let params = &row.params;
    let mut values: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
    for id in row.banned.iter() {
        values[*id as usize] = f64::NEG_INFINITY;
    }
    for (id, bias) in &params.logit_bias {
        values[*id as usize] += f64::from(*bias);
    }
    for count in &row.counts {
        let x = &mut values[count.token_id as usize];
        let factor = f64::from(params.repetition_penalty);
        *x = if *x > 0.0 { *x / factor } else { *x * factor };
        if count.num_generated > 0 {
            *x -= f64::from(params.presence_penalty);
            *x -= f64::from(params.frequency_penalty) * f64::from(count.num_generated);
        }
    }
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return None;
    }
    let mut all: Vec<Candidate> = (0..)
        .zip(values)
        .map(|(id, x)| Candidate {
            id,
            weight: ((x - max) / f64::from(params.temperature)).exp(),
        })
        .collect();
    let min_p = f64::from(params.min_p);
    let mut ambiguous = all
        .iter()
        .any(|c| min_p > 0.0 && c.weight < 1.0 && (c.weight - min_p).abs() < WEIGHT_MARGIN);
    for c in &mut all {
        let parts = c.weight * ONE;
        ambiguous |= parts < 64.0 && (parts.fract() - 0.5).abs() < 2e-5;
        c.weight = parts.round() / ONE;
    }
    all.retain(|c| c.weight > 0.0 && c.weight >= min_p);
    if params.top_k > 0 || params.top_p < 1.0 {
        all.sort_by(|a, b| {
            let order = b.weight.partial_cmp(&a.weight).expect("no NaN");
            order.then(a.id.cmp(&b.id))
        });
    }
    if params.top_k > 0 {
        all.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let total: f64 = all.iter().map(|c| c.weight).sum();
        let target = f64::from(params.top_p) * total;
        let mut sum = 0.0;
        let mut kept = 0;
        for c in &all {
            if kept > 0 && sum >= target {
                break;
            }
            sum += c.weight;
            kept += 1;
            ambiguous |= (sum - target).abs() < SUM_MARGIN * total;
        }
        all.truncate(kept);
    }
    all.sort_by_key(|c| c.id);
    Some(Candidates { all, ambiguous })
}

/// Checks the draw in the middle of every candidate's share, and at both ends.
fn check(logits: &[f32], row: &SampleRow) {
    let Some(expected) = candidates(logits, row) else {
        assert_eq!(draw(logits, row, 0.5), None, "{row:?}");
        return;
    };
    let ends = [0.0, 1.0 - f64::EPSILON / 2.0];
    if expected.ambiguous {
        for u in ends {
            assert!(draw(logits, row, u).is_some(), "{row:?}");
        }
        return;
    }
    let ids: HashSet<TokenId> = expected.all.iter().map(|c| c.id).collect();
    for u in ends {
        let found = draw(logits, row, u).expect("there are candidates");
        assert!(ids.contains(&found), "{found} at {u}: {row:?}");
    }
    let total: f64 = expected.all.iter().map(|c| c.weight).sum();
    let mut start = 0.0;
    for c in &expected.all {
        if c.weight / total > 1e-4 {
            let middle = (start + c.weight / 2.0) / total;
            let found = draw(logits, row, middle);
            assert_eq!(found, Some(c.id), "at {middle}: {row:?} {logits:?}");
        }
        start += c.weight;
    }
}

/// Multiples of 1/8 between −12 and 12, so that bias and penalties are exact and ties frequent; a few
/// are −∞.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    let eighths = (-96i32..96).prop_map(|i| i as f32 / 8.0);
    let logit = prop_oneof![9 => eighths, 1 => Just(NEG)];
    prop::collection::vec(logit, 1..400)
}

fn params() -> impl Strategy<Value = SamplingParams> {
    let eighths = || prop_oneof![Just(0.0f32), (-16i32..16).prop_map(|i| i as f32 / 8.0)];
    (
        prop_oneof![Just(1.0f32), 0.1f32..3.0],
        prop_oneof![Just(0u32), 1u32..500],
        prop_oneof![Just(1.0f32), 0.0f32..1.0],
        prop_oneof![Just(0.0f32), 0.0f32..1.0],
        (
            eighths(),
            eighths(),
            prop_oneof![Just(1.0f32), Just(2.0), Just(0.5)],
        ),
        prop::collection::vec((any::<u32>(), -24i32..24), 0..4),
    )
        .prop_map(
            |(temperature, top_k, top_p, min_p, penalties, bias)| SamplingParams {
                temperature,
                top_k,
                top_p,
                min_p,
                presence_penalty: penalties.0,
                frequency_penalty: penalties.1,
                repetition_penalty: penalties.2,
                logit_bias: bias
                    .into_iter()
                    .map(|(id, b)| (id, b as f32 / 8.0))
                    .collect(),
                num_logprobs: None,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn draws_follow_the_oracle(
        logits in logits(),
        mut params in params(),
        banned in prop::collection::vec(any::<u32>(), 0..3),
        counts in prop::collection::btree_map(any::<u32>(), 0u32..4, 0..20),
    ) {
        let vocab_size = logits.len() as u32;
        for (id, _) in &mut params.logit_bias {
            *id %= vocab_size;
        }
        let has_penalties = params.has_penalties();
        let mut row = row(params);
        row.banned = banned.into_iter().map(|id| id % vocab_size).collect();
        if has_penalties {
            let mut seen = HashSet::new();
            row.counts = counts
                .into_iter()
                .map(|(id, num_generated)| TokenCount { token_id: id % vocab_size, num_generated })
                .filter(|count| seen.insert(count.token_id))
                .collect();
        }
        check(&logits, &row);
    }

    #[test]
    fn greedy_is_the_lowest_id_among_the_largest(logits in logits(), mut params in params()) {
        params.temperature = 0.0;
        params.logit_bias.clear();
        let expected = logits.iter().copied().fold(NEG, f32::max);
        let found = draw(&logits, &row(params), 0.9);
        match logits.iter().position(|x| *x == expected && *x > NEG) {
            Some(id) => prop_assert_eq!(found, Some(id as TokenId)),
            None => prop_assert_eq!(found, None),
        }
    }

    #[test]
    fn any_bits_give_a_token_or_a_report(
        bits in prop::collection::vec(any::<u32>(), 0..64),
        params in params(),
        seed in any::<u64>(),
    ) {
        let logits: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let mut row = row(params);
        row.seed = seed;
        if let RowOutput::Token(sampled) = sample_row(&logits, &row, logits.len()) {
            prop_assert!(logits[sampled.token_id as usize] > NEG);
            prop_assert!(sampled.logprob <= 0.0);
        }
    }
}

#[test]
fn candidates_of_large_vocabularies_follow_the_oracle() {
    let logits: Vec<f32> = (0..40_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32 / 32.0)
        .collect();
    let base = SamplingParams::default;
    #[rustfmt::skip]
    let cases = [
        SamplingParams { top_p: 0.95, ..base() },
        SamplingParams { top_p: 0.9, temperature: 1.3, ..base() },
        SamplingParams { top_p: 0.3, temperature: 0.2, ..base() },
        SamplingParams { top_k: 1000, ..base() },
        SamplingParams { top_k: 39_999, top_p: 0.5, ..base() },
        SamplingParams { min_p: 0.11, ..base() },
    ];
    for params in cases {
        let row = row(params);
        let expected = candidates(&logits, &row).expect("finite");
        let ids: HashSet<TokenId> = expected.all.iter().map(|c| c.id).collect();
        assert!(!expected.ambiguous, "{row:?}");
        let mut drawn = HashSet::new();
        for i in 0..200 {
            let found = draw(&logits, &row, f64::from(i) / 200.0).expect("finite");
            assert!(ids.contains(&found), "{found}: {row:?}");
            drawn.insert(found);
        }
        assert!(
            drawn.len() >= 100.min(ids.len() / 2),
            "{}: {row:?}",
            drawn.len()
        );
    }
}
