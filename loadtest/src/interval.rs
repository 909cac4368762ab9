//! Intervals of 95 %: of a mean over runs, and of a statistic within a single run. Runs are the sample,
//! not requests: those of one run share its machine, its queue and its luck.

use crate::rng::{Rng, Stream};

/// The 97.5th percentiles of Student's t for 1 to 30 degrees of freedom; `scipy.stats.t.ppf(0.975, df)`.
const T_P975: [f64; 30] = [
    12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004,
    2.262_157, 2.228_139, 2.200_985, 2.178_813, 2.160_369, 2.144_787, 2.131_450, 2.119_905,
    2.109_816, 2.100_922, 2.093_024, 2.085_963, 2.079_614, 2.073_873, 2.068_658, 2.063_899,
    2.059_539, 2.055_529, 2.051_831, 2.048_407, 2.045_230, 2.042_272,
];
/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;
/// The shortest block of a bootstrap, in seconds.
const MIN_BLOCK: f64 = 10.0;
/// Fewer blocks than this say nothing about how they differ.
const MIN_BLOCKS: f64 = 5.0;

/// An estimate and the interval in which it lies with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The 97.5th percentile of Student's t with `df` degrees of freedom. A fraction counts down to the
/// whole number below it, which widens the interval; above 30 it is the one of 30, which does the same.
pub fn t_p975(df: f64) -> f64 {
    let whole = (df.floor() as usize).clamp(1, T_P975.len());
    T_P975[whole - 1]
}

/// Arithmetic mean.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Sample variance, with `n - 1`.
pub fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    squares / (values.len() as f64 - 1.0)
}

/// The mean over runs, `mean ± t · s / √n`; nothing below two runs.
pub fn of_mean(values: &[f64]) -> Option<Interval> {
    let n = values.len() as f64;
    (values.len() > 1).then(|| {
        let (value, error) = (mean(values), (variance(values) / n).sqrt());
        let half = t_p975(n - 1.0) * error;
        Interval {
            value,
            low: value - half,
            high: value + half,
        }
    })
}

/// The value of rank `ceil(q · n)` of a sorted sample.
pub fn nearest_rank(sorted: &[f64], q: f64) -> Option<f64> {
    let rank = (q * sorted.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied()
}

/// Quantile `q` of values at moments of one run, with an interval by a moving-block bootstrap over time:
/// blocks of the run are drawn with replacement until its length is full, 2000 times. H. R. Künsch, "The
/// jackknife and the bootstrap for general stationary observations", Annals of Statistics 17 (1989). A
/// block is 10 s or twice `answer`, the length of nearly every answer, so that it holds what its requests
/// did to each other. Nothing for runs of fewer than five blocks. What changes between runs it cannot see.
pub fn within_run(moments: &[(f64, f64)], seconds: f64, answer: f64, q: f64) -> Option<Interval> {
    let block = (2.0 * answer).max(MIN_BLOCK);
    if moments.is_empty() || seconds < MIN_BLOCKS * block {
        return None;
    }
    let mut ordered = moments.to_vec();
    ordered.sort_by(|a, b| a.0.total_cmp(&b.0));
    let place = |t: f64| ordered.partition_point(|(at, _)| *at < t);
    let blocks = (seconds / block).round() as usize;
    let mut rng = Rng::new(0, Stream::Bootstrap);
    let mut found = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let mut drawn = Vec::with_capacity(ordered.len() * 2);
        for _ in 0..blocks {
            let start = rng.unit() * (seconds - block);
            let part = &ordered[place(start)..place(start + block)];
            drawn.extend(part.iter().map(|(_, value)| *value));
        }
        drawn.sort_by(f64::total_cmp);
        found.extend(nearest_rank(&drawn, q));
    }
    found.sort_by(f64::total_cmp);
    let mut values: Vec<f64> = ordered.iter().map(|(_, value)| *value).collect();
    values.sort_by(f64::total_cmp);
    Some(Interval {
        value: nearest_rank(&values, q)?,
        low: nearest_rank(&found, 0.025)?,
        high: nearest_rank(&found, 0.975)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scipy.stats.t.interval(0.95, 5, loc=mean, scale=stats.sem(values))`, SciPy 1.17.
    #[test]
    fn the_interval_of_a_mean_agrees_with_scipy() {
        let found = of_mean(&[100.0, 103.0, 98.0, 101.0, 99.0, 102.0]).unwrap();
        assert_eq!(found.value, 100.5);
        assert!((found.low - 98.536_685_693_02).abs() < 1e-6, "{found:?}");
        assert!((found.high - 102.463_314_306_98).abs() < 1e-6, "{found:?}");
        assert_eq!(of_mean(&[1.0]), None);
        assert_eq!(of_mean(&[]), None);
    }

    #[test]
    fn degrees_of_freedom_round_to_the_wider_interval() {
        assert_eq!(t_p975(6.6), t_p975(6.0));
        assert_eq!(t_p975(0.5), t_p975(1.0));
        assert_eq!(t_p975(1e9), t_p975(30.0));
        assert!(T_P975.is_sorted_by(|a, b| a > b));
    }

    /// Independent values make an interval like that of a median without blocks; values that come in
    /// long waves make a wider one, which is what blocks are for.
    #[test]
    fn blocks_see_waves() {
        let mut rng = Rng::new(7, Stream::Arrivals);
        let noise: Vec<(f64, f64)> = (0..2000)
            .map(|i| (f64::from(i) * 0.1, 1.0 + 0.1 * rng.normal()))
            .collect();
        let waves: Vec<(f64, f64)> = noise
            .iter()
            .map(|(t, v)| (*t, v + 0.2 * (t / 8.0).sin()))
            .collect();
        let width = |values: &[(f64, f64)]| {
            let found = within_run(values, 200.0, 0.5, 0.5).unwrap();
            assert!(found.low <= found.value && found.value <= found.high);
            found.high - found.low
        };
        // The standard error of a normal median is 1.2533 s / √n: 0.0028, times 3.92.
        let expected = 3.92 * 1.2533 * 0.1 / 2000f64.sqrt();
        assert!(
            (width(&noise) / expected - 1.0).abs() < 0.35,
            "{}",
            width(&noise)
        );
        assert!(width(&waves) > 3.0 * width(&noise));
        assert_eq!(
            within_run(&noise, 200.0, 0.5, 0.5),
            within_run(&noise, 200.0, 0.5, 0.5)
        );
    }

    #[test]
    fn a_short_run_has_no_interval() {
        let values = [(0.0, 1.0), (20.0, 2.0)];
        assert_eq!(within_run(&values, 49.0, 1.0, 0.5), None);
        assert!(within_run(&values, 50.0, 1.0, 0.5).is_some());
        assert_eq!(within_run(&values, 50.0, 6.0, 0.5), None);
        assert_eq!(within_run(&[], 500.0, 1.0, 0.5), None);
    }
}
