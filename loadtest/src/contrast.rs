//! What two configurations differ by: the ratio of a statistic, an interval around it, and only then a p.
//! Ratios are compared as logarithms, so that twice and half are equally far from the same.

use crate::interval::{Interval, mean, t_p975, variance};

/// Pairs that a comparison takes: the least number whose sign-flip test can fall below 0.05.
pub const MIN_PAIRS: usize = 6;
/// Runs of each side that a comparison without pairs takes.
pub const MIN_RUNS: usize = 5;
/// Ratios this near to one are called the same.
const SAME: f64 = 0.03;
/// Arrangements that a permutation test goes through; more runs than that get no p.
const MAX_ARRANGEMENTS: u64 = 3_000_000;

/// What the runs show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The interval of the ratio leaves out one.
    Different,
    /// It lies within 3 % of one.
    Same,
    /// It holds one and reaches further than 3 %.
    NotShown,
    /// There are too few runs to say.
    TooFew,
}

/// The second configuration against the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Contrast {
    /// Geometric mean of the ratios.
    pub ratio: f64,
    /// Where it lies with 95 % confidence; none below two runs of each.
    pub interval: Option<Interval>,
    /// Probability of a difference at least as large if the names of the sides meant nothing.
    pub p: Option<f64>,
    /// What follows.
    pub finding: Finding,
}

/// Pairs of runs that were interleaved: the interval is Student's over the log ratios, p comes from the
/// exact permutation test that flips the sign of each. None without pairs of numbers above zero.
pub fn paired(first: &[f64], second: &[f64]) -> Option<Contrast> {
    if first.len() != second.len() {
        return None;
    }
    let (first, second) = (logs(first)?, logs(second)?);
    let ratios: Vec<f64> = first.iter().zip(&second).map(|(a, b)| b - a).collect();
    let n = ratios.len();
    let half = (n > 1).then(|| t_p975(n as f64 - 1.0) * (variance(&ratios) / n as f64).sqrt());
    Some(contrast(
        mean(&ratios),
        half,
        sign_flip(&ratios),
        n >= MIN_PAIRS,
    ))
}

/// Runs that only share their load: the interval is Welch's over the logs, p comes from the exact
/// permutation test of who belongs to which side. None without numbers above zero on both sides.
pub fn unpaired(first: &[f64], second: &[f64]) -> Option<Contrast> {
    let (first, second) = (logs(first)?, logs(second)?);
    let enough = first.len().min(second.len());
    let half = (enough > 1).then(|| welch(&first, &second));
    let (middle, p) = (mean(&second) - mean(&first), permutation(&first, &second));
    Some(contrast(middle, half, p, enough >= MIN_RUNS))
}

fn logs(values: &[f64]) -> Option<Vec<f64>> {
    let fit = !values.is_empty() && values.iter().all(|v| v.is_finite() && *v > 0.0);
    fit.then(|| values.iter().map(|v| v.ln()).collect())
}

fn contrast(middle: f64, half: Option<f64>, p: Option<f64>, enough: bool) -> Contrast {
    let interval = half.map(|half| Interval {
        value: middle.exp(),
        low: (middle - half).exp(),
        high: (middle + half).exp(),
    });
    let finding = match interval {
        Some(_) if !enough => Finding::TooFew,
        None => Finding::TooFew,
        Some(i) if i.low > 1.0 || i.high < 1.0 => Finding::Different,
        Some(i) if i.low >= 1.0 - SAME && i.high <= 1.0 + SAME => Finding::Same,
        Some(_) => Finding::NotShown,
    };
    Contrast {
        ratio: middle.exp(),
        interval,
        p,
        finding,
    }
}

/// Half of Welch's interval. B. L. Welch, "The generalization of 'Student's' problem when several
/// different population variances are involved", Biometrika 34 (1947).
fn welch(first: &[f64], second: &[f64]) -> f64 {
    let part = |values: &[f64]| variance(values) / values.len() as f64;
    let (a, b) = (part(first), part(second));
    let freedom = |v: f64, n: usize| v * v / (n as f64 - 1.0);
    let df = (a + b).powi(2) / (freedom(a, first.len()) + freedom(b, second.len()));
    t_p975(if df.is_finite() { df } else { 1.0 }) * (a + b).sqrt()
}

/// What is as far from zero as what was seen; sums of the same numbers in another order may differ in
/// their last digits.
fn reaches(sum: f64, seen: f64) -> bool {
    sum.abs() >= seen.abs() * (1.0 - 1e-9)
}

/// The share of all choices of signs whose sum is at least as far from zero as that of `values`.
fn sign_flip(values: &[f64]) -> Option<f64> {
    let all = 1u64.checked_shl(u32::try_from(values.len()).ok()?)?;
    if all > MAX_ARRANGEMENTS {
        return None;
    }
    let seen: f64 = values.iter().sum();
    let sum = |signs: u64| -> f64 {
        let signed = values.iter().enumerate();
        signed
            .map(|(i, v)| if signs >> i & 1 == 1 { -v } else { *v })
            .sum()
    };
    let far = (0..all).filter(|signs| reaches(sum(*signs), seen)).count();
    Some(far as f64 / all as f64)
}

/// The share of all ways to choose the first side from all runs whose means are at least as far apart.
fn permutation(first: &[f64], second: &[f64]) -> Option<f64> {
    let all = [first, second].concat();
    let (k, n) = (first.len(), all.len());
    let total: f64 = all.iter().sum();
    let apart = |sum: f64| (total - sum) / (n - k) as f64 - sum / k as f64;
    if choices(n as u64, k as u64)? > MAX_ARRANGEMENTS {
        return None;
    }
    let seen = apart(first.iter().sum());
    let (mut far, mut ways) = (0u64, 0u64);
    // Each choice is an increasing list of places; the next one moves the last place that can move.
    let mut chosen: Vec<usize> = (0..k).collect();
    loop {
        ways += 1;
        let sum: f64 = chosen.iter().map(|i| all[*i]).sum();
        far += u64::from(reaches(apart(sum), seen));
        let Some(moved) = (0..k).rev().find(|i| chosen[*i] < n - k + i) else {
            return Some(far as f64 / ways as f64);
        };
        chosen[moved] += 1;
        for later in moved + 1..k {
            chosen[later] = chosen[later - 1] + 1;
        }
    }
}

/// Binomial coefficient, none when it is out of range.
fn choices(n: u64, k: u64) -> Option<u64> {
    (0..k).try_fold(1u64, |ways, i| Some(ways.checked_mul(n - i)? / (i + 1)))
}

/// Adjusts several p for being several, by Holm's method: the smallest is multiplied by their number,
/// the next by one less, and none becomes smaller than one before it. S. Holm, "A simple sequentially
/// rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
pub fn holm(ps: &mut [Option<f64>]) {
    let mut order: Vec<usize> = (0..ps.len()).filter(|i| ps[*i].is_some()).collect();
    order.sort_by(|a, b| ps[*a].unwrap_or(1.0).total_cmp(&ps[*b].unwrap_or(1.0)));
    let (count, mut least) = (order.len(), 0.0f64);
    for (rank, index) in order.into_iter().enumerate() {
        let raised = ps[index].unwrap_or(1.0) * (count - rank) as f64;
        least = least.max(raised.min(1.0));
        ps[index] = Some(least);
    }
}

#[cfg(test)]
mod tests;
