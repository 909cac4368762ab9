//! When the requests of an open loop leave: a Poisson process drawn from the seed alone. The gaps
//! are never rescaled to hit a count, because that removes variance which a Poisson process has.

use crate::clock::{Nanos, SECOND};
use crate::rng::{Rng, Stream};

/// The endless arrival times of a Poisson process, in nanoseconds after its start.
pub struct Arrivals {
    rng: Rng,
    rate: f64,
    now: f64,
}

impl Arrivals {
    /// Arrivals at `rate` requests per second, which is above zero.
    pub fn poisson(seed: u64, rate: f64) -> Self {
        Self {
            rng: Rng::new(seed, Stream::Arrivals),
            rate,
            now: 0.0,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Nanos;

    fn next(&mut self) -> Option<Nanos> {
        self.now += self.rng.exponential() / self.rate;
        Some((self.now * SECOND as f64) as Nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_fixes_the_schedule() {
        let take = |seed| Arrivals::poisson(seed, 5.0).take(100).collect::<Vec<_>>();
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
        assert!(take(1).is_sorted());
    }

    #[test]
    fn a_rate_only_scales_the_times() {
        let slow: Vec<Nanos> = Arrivals::poisson(9, 1.0).take(50).collect();
        let fast: Vec<Nanos> = Arrivals::poisson(9, 10.0).take(50).collect();
        assert!(
            slow.iter()
                .zip(&fast)
                .all(|(s, f)| s.abs_diff(f * 10) <= 20)
        );
    }

    #[test]
    fn gaps_have_the_mean_and_the_spread_of_a_poisson_process() {
        let times: Vec<Nanos> = Arrivals::poisson(4, 20.0).take(20_000).collect();
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|w| (w[1] - w[0]) as f64 / SECOND as f64)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 20.0 - 1.0).abs() < 0.03, "{mean}");
        let variation = variance.sqrt() / mean;
        assert!((variation - 1.0).abs() < 0.03, "{variation}");
    }
}
