//! When the requests of an open loop leave: drawn before the run from the seed alone, or read from a
//! trace. The gaps are never rescaled to hit a count, because that removes variance which a Poisson
//! process has.

use std::sync::Arc;

use crate::arrival::{Arrival, RampShape};
use crate::clock::{Nanos, SECOND};
use crate::rng::{Rng, Stream};
use crate::trace::Trace;

/// Planned starts in nanoseconds after the start of the schedule, in order. Only a trace has an end.
pub type Schedule = Box<dyn Iterator<Item = Nanos> + Send>;

/// The schedule of an open loop; a closed one has none.
pub fn schedule(arrival: &Arrival, seed: u64, trace: Option<&Arc<Trace>>) -> Schedule {
    let mut rng = Rng::new(seed, Stream::Arrivals);
    match *arrival {
        Arrival::Poisson { rate, .. } => sums(move || rng.exponential() / rate),
        Arrival::Gamma {
            rate, burstiness, ..
        } => sums(move || rng.gamma(burstiness) / (burstiness * rate)),
        // Counted and not summed, so that no rounding adds up.
        Arrival::Constant { rate, .. } => Box::new((1u64..).map(move |n| nanos(n as f64 / rate))),
        Arrival::Ramp {
            from,
            to,
            seconds,
            shape,
            ..
        } => {
            let ramp = Ramp {
                from,
                to,
                seconds,
                shape,
            };
            let mut expected = 0.0;
            Box::new(std::iter::repeat_with(move || {
                expected += rng.exponential();
                nanos(ramp.time_of(expected))
            }))
        }
        Arrival::Trace { speed, .. } => {
            let trace = Arc::clone(trace.expect("a trace arrives with its requests"));
            Box::new(
                (0..trace.requests.len())
                    .map(move |n| (trace.requests[n].at as f64 / speed) as Nanos),
            )
        }
        Arrival::Closed { .. } => Box::new(std::iter::empty()),
    }
}

/// The schedule with its first `count` gaps scaled so that the last of those requests leaves when the rate says, as vLLM's
/// benchmark does it; what comes after goes on from there. It takes from a Poisson process the variance of its count.
pub fn exactly(mut starts: Schedule, arrival: &Arrival, count: Option<u64>) -> Schedule {
    let (Some(count), Some(rate)) = (count, arrival.rate()) else {
        return starts;
    };
    let count_of_memory = usize::try_from(count).expect("requests of a run fit into memory");
    let mut scaled: Vec<Nanos> = starts.by_ref().take(count_of_memory).collect();
    let (drawn, wanted) = (
        scaled.last().copied().unwrap_or(0),
        nanos(count as f64 / rate),
    );
    for start in &mut scaled {
        *start = (*start as f64 * wanted as f64 / drawn.max(1) as f64) as Nanos;
    }
    let rest = starts.map(move |start| start - drawn + wanted);
    Box::new(scaled.into_iter().chain(rest))
}

/// Arrivals with gaps in seconds.
fn sums(mut gap: impl FnMut() -> f64 + Send + 'static) -> Schedule {
    let mut now = 0.0;
    Box::new(std::iter::repeat_with(move || {
        now += gap();
        nanos(now)
    }))
}

fn nanos(seconds: f64) -> Nanos {
    (seconds * SECOND as f64) as Nanos
}

/// A rate that changes. An inhomogeneous Poisson process is a homogeneous one of rate one whose time is
/// the expected number of arrivals, so its arrivals are the inverse of that number.
#[derive(Debug, Clone, Copy)]
struct Ramp {
    from: f64,
    to: f64,
    seconds: f64,
    shape: RampShape,
}

impl Ramp {
    /// Arrivals expected in the whole ramp.
    fn total(&self) -> f64 {
        match self.shape {
            RampShape::Linear => (self.from + self.to) / 2.0 * self.seconds,
            RampShape::Exponential => match (self.to / self.from).ln() {
                0.0 => self.from * self.seconds,
                growth => (self.to - self.from) / growth * self.seconds,
            },
        }
    }

    /// When `n` arrivals are expected.
    fn time_of(&self, n: f64) -> f64 {
        let total = self.total();
        if n >= total {
            return self.seconds + (n - total) / self.to;
        }
        let growth = match self.shape {
            RampShape::Linear => (self.to - self.from) / self.seconds,
            RampShape::Exponential => (self.to / self.from).ln() / self.seconds,
        };
        match self.shape {
            _ if growth == 0.0 => n / self.from,
            RampShape::Linear => {
                ((self.from * self.from + 2.0 * growth * n).max(0.0).sqrt() - self.from) / growth
            }
            RampShape::Exponential => (1.0 + growth * n / self.from).ln() / growth,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: usize = 1;

    fn poisson(seed: u64, rate: f64, n: usize) -> Vec<Nanos> {
        take(
            Arrival::Poisson {
                rate,
                max_in_flight: CAP,
            },
            seed,
            n,
        )
    }

    fn take(arrival: Arrival, seed: u64, n: usize) -> Vec<Nanos> {
        schedule(&arrival, seed, None).take(n).collect()
    }

    #[test]
    fn the_seed_fixes_the_schedule() {
        assert_eq!(poisson(1, 5.0, 100), poisson(1, 5.0, 100));
        assert_ne!(poisson(1, 5.0, 100), poisson(2, 5.0, 100));
        assert!(poisson(1, 5.0, 100).is_sorted());
    }

    #[test]
    fn an_exact_count_leaves_in_the_time_that_the_rate_says() {
        let arrival = Arrival::Poisson {
            rate: 4.0,
            max_in_flight: CAP,
        };
        let in_ten_seconds = |seed, exact: bool| {
            let starts = schedule(&arrival, seed, None);
            let starts = exactly(starts, &arrival, exact.then_some(40));
            let starts: Vec<Nanos> = starts.take(200).collect();
            assert!(starts.is_sorted());
            starts.iter().filter(|t| **t <= 10 * SECOND + 1).count()
        };
        assert!((0..20).all(|seed| in_ten_seconds(seed, true) == 40));
        assert!((0..20).any(|seed| in_ten_seconds(seed, false) != 40));
        // What follows keeps its gaps.
        let plain: Vec<Nanos> = schedule(&arrival, 3, None).take(60).collect();
        let exact = exactly(schedule(&arrival, 3, None), &arrival, Some(40));
        let exact: Vec<Nanos> = exact.take(60).collect();
        assert_eq!(exact[59] - exact[45], plain[59] - plain[45]);
    }

    #[test]
    fn a_rate_only_scales_the_times() {
        let (slow, fast) = (poisson(9, 1.0, 50), poisson(9, 10.0, 50));
        assert!(
            slow.iter()
                .zip(&fast)
                .all(|(s, f)| s.abs_diff(f * 10) <= 20)
        );
    }

    /// Mean gap times the rate, and the coefficient of variation of the gaps.
    fn gaps(arrival: Arrival, rate: f64) -> (f64, f64) {
        let times = take(arrival, 4, 20_000);
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|w| (w[1] - w[0]) as f64 / SECOND as f64)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean * rate, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_mean_and_the_spread_of_their_process() {
        let rate = 20.0;
        let gamma = |burstiness| Arrival::Gamma {
            rate,
            burstiness,
            max_in_flight: CAP,
        };
        let poisson = Arrival::Poisson {
            rate,
            max_in_flight: CAP,
        };
        let constant = Arrival::Constant {
            rate,
            max_in_flight: CAP,
        };
        for (arrival, spread) in [
            (poisson, 1.0),
            (gamma(1.0), 1.0),
            (gamma(0.25), 2.0),
            (gamma(4.0), 0.5),
            (gamma(100.0), 0.1),
            (constant, 0.0),
        ] {
            let (mean, variation) = gaps(arrival, rate);
            assert!((mean - 1.0).abs() < 0.06, "{arrival:?}: mean {mean}");
            assert!(
                (variation - spread).abs() < 0.05 * spread.max(0.01),
                "{arrival:?}: {variation}"
            );
        }
    }

    #[test]
    fn a_constant_rate_does_not_drift() {
        let arrival = Arrival::Constant {
            rate: 3.0,
            max_in_flight: CAP,
        };
        assert_eq!(take(arrival, 0, 3000)[2999], 1000 * SECOND);
    }

    #[test]
    fn a_ramp_sends_what_the_area_under_it_says() {
        for shape in [RampShape::Linear, RampShape::Exponential] {
            for (from, to) in [(10.0, 200.0), (200.0, 10.0), (50.0, 50.0)] {
                let ramp = Ramp {
                    from,
                    to,
                    seconds: 100.0,
                    shape,
                };
                assert!((ramp.time_of(ramp.total()) - 100.0).abs() < 1e-9);
                // At half the time each shape has a share of the area that a pencil finds.
                let half = match shape {
                    RampShape::Linear => (from + (from + to) / 2.0) / 2.0 * 50.0,
                    RampShape::Exponential if from == to => 50.0 * from,
                    RampShape::Exponential => {
                        ((from * to).sqrt() - from) / (to / from).ln() * 100.0
                    }
                };
                assert!((ramp.time_of(half) - 50.0).abs() < 1e-9, "{ramp:?}");
                let arrival = Arrival::Ramp {
                    from,
                    to,
                    seconds: 100.0,
                    shape,
                    max_in_flight: CAP,
                };
                let n = schedule(&arrival, 7, None)
                    .take_while(|t| *t < 100 * SECOND)
                    .count() as f64;
                let total = ramp.total();
                assert!((n - total).abs() < 5.0 * total.sqrt(), "{n} of {total}");
            }
        }
    }
}
