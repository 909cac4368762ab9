//! The generator and the distribution of draws, with fixed seeds, by Pearson's test.

use super::*;

/// The statistic that a fair generator exceeds once in a thousand times (Wilson and Hilferty 1931).
fn critical(degrees_of_freedom: usize) -> f64 {
    let n = degrees_of_freedom as f64;
    let spread = 2.0 / (9.0 * n);
    n * (1.0 - spread + 3.09 * spread.sqrt()).powi(3)
}

fn assert_fits(counts: &[u32], probabilities: &[f64], what: impl std::fmt::Debug) {
    let draws: u32 = counts.iter().sum();
    let statistic: f64 = counts
        .iter()
        .zip(probabilities)
        .filter(|(_, p)| **p > 0.0)
        .map(|(count, p)| {
            let expected = p * f64::from(draws);
            (f64::from(*count) - expected).powi(2) / expected
        })
        .sum();
    let possible = probabilities.iter().filter(|p| **p > 0.0).count();
    let limit = critical(possible - 1);
    assert!(statistic < limit, "{statistic} is above {limit}: {what:?}");
    let impossible = counts.iter().zip(probabilities).filter(|(_, p)| **p == 0.0);
    assert!(
        impossible.map(|(count, _)| *count).all(|count| count == 0),
        "{what:?}"
    );
}

#[test]
fn the_critical_value_is_that_of_the_tables() {
    for (degrees_of_freedom, expected) in [(3, 16.266), (10, 29.588), (50, 86.661)] {
        let found = critical(degrees_of_freedom);
        assert!((found / expected - 1.0).abs() < 0.02, "{found}, {expected}");
    }
}

#[test]
fn uniform_is_even_along_positions_and_along_seeds() {
    const CELLS: usize = 16;
    let even = vec![1.0 / (CELLS * CELLS) as f64; CELLS * CELLS];
    let cell = |u: f64| {
        assert!((0.0..1.0).contains(&u));
        (u * CELLS as f64) as usize
    };
    // Neighbours are counted in pairs, so that a dependence of one on the next shows.
    for fixed in [0u64, 1, 42, u64::MAX] {
        let mut by_position = vec![0; CELLS * CELLS];
        let mut by_seed = vec![0; CELLS * CELLS];
        for i in 0..100_000 {
            let pair = (uniform(fixed, i), uniform(fixed, i + 1));
            by_position[cell(pair.0) * CELLS + cell(pair.1)] += 1;
            let pair = (
                uniform(u64::from(i), fixed as u32),
                uniform(u64::from(i) + 1, fixed as u32),
            );
            by_seed[cell(pair.0) * CELLS + cell(pair.1)] += 1;
        }
        assert_fits(&by_position, &even, ("positions of seed", fixed));
        assert_fits(&by_seed, &even, ("seeds at position", fixed as u32));
    }
}

#[test]
fn uniform_is_fixed_for_all_time() {
    // A stored seed must draw the same tokens after an upgrade. Numerators over 2⁵³, computed apart
    // from this code.
    for (seed, position, expected) in [
        (0, 0, 5876733520225071u64),
        (0, 1, 306350170640982u64),
        (1, 0, 3316356330981164u64),
        (42, 1000, 5987241167440750u64),
        (u64::MAX, u32::MAX, 8209842421599452u64),
    ] {
        assert_eq!(
            uniform(seed, position) * (1u64 << 53) as f64,
            expected as f64
        );
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits: Vec<f32> = (0..20).map(|i| ((i * 7) % 20) as f32 * 0.25).collect();
    let base = SamplingParams::default;
    #[rustfmt::skip]
    let cases = [
        base(),
        SamplingParams { temperature: 0.7, ..base() },
        SamplingParams { temperature: 2.0, ..base() },
        SamplingParams { top_k: 5, ..base() },
        SamplingParams { top_p: 0.8, ..base() },
        SamplingParams { min_p: 0.1, ..base() },
        SamplingParams { temperature: 1.5, top_k: 12, top_p: 0.9, min_p: 0.05, ..base() },
    ];
    for (seed, params) in (1000..).zip(cases) {
        let probabilities = probabilities(&logits, &params);
        let mut counts = vec![0; logits.len()];
        let mut row = row(params);
        row.seed = seed;
        for position in 0..100_000 {
            row.position = position;
            counts[sampled(&logits, &row).token_id as usize] += 1;
        }
        assert_fits(&counts, &probabilities, &row.params);
    }
}

/// The probabilities by definition; the logits are distinct.
fn probabilities(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut weights: Vec<(usize, f64)> = logits
        .iter()
        .map(|x| (f64::from(*x) / f64::from(params.temperature)).exp())
        .enumerate()
        .collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1));
    let best = weights[0].1;
    weights.retain(|(_, w)| *w >= best * f64::from(params.min_p));
    if params.top_k > 0 {
        weights.truncate(params.top_k as usize);
    }
    let total: f64 = weights.iter().map(|(_, w)| w).sum();
    let mut before = 0.0;
    weights.retain(|(_, w)| {
        let kept = before < total * f64::from(params.top_p);
        before += w;
        kept
    });
    let total: f64 = weights.iter().map(|(_, w)| w).sum();
    let mut result = vec![0.0; logits.len()];
    for (id, w) in weights {
        result[id] = w / total;
    }
    result
}

#[test]
fn seed_and_position_fix_the_draw() {
    let logits: Vec<f32> = (0..500).map(|i| (i % 29) as f32 * 0.1).collect();
    let mut by_seed = std::collections::HashSet::new();
    let mut by_position = std::collections::HashSet::new();
    for i in 0..100 {
        for (seed, position) in [(i, 5), (5, i as u32)] {
            let mut row = row(SamplingParams::default());
            (row.seed, row.position) = (seed, position);
            let first = sampled(&logits, &row);
            for _ in 0..3 {
                assert_eq!(sampled(&logits, &row), first);
            }
            if position == 5 {
                by_seed.insert(first.token_id);
            } else {
                by_position.insert(first.token_id);
            }
        }
    }
    assert!(by_seed.len() > 50 && by_position.len() > 50);
}
