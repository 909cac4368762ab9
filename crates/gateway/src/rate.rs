//! How fast requests complete: the base of `Retry-After`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Weight of the newest interval in the running mean.
const WEIGHT: f64 = 0.2;

/// A running mean of the time between completions.
#[derive(Debug, Default)]
pub(crate) struct CompletionRate(Mutex<Mean>);

#[derive(Debug, Default)]
struct Mean {
    last: Option<Instant>,
    seconds: Option<f64>,
}

impl CompletionRate {
    /// Notes that a request completed.
    pub(crate) fn completed(&self, now: Instant) {
        let mut mean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = mean.last.replace(now) {
            let interval = now.saturating_duration_since(last).as_secs_f64();
            mean.seconds = Some(match mean.seconds {
                Some(seconds) => seconds + WEIGHT * (interval - seconds),
                None => interval,
            });
        }
    }

    /// The expected time until the next completion; a second when nothing is known.
    pub(crate) fn expected(&self) -> Duration {
        let mean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::from_secs_f64(mean.seconds.unwrap_or(1.0).clamp(1.0, 30.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_intervals_within_its_bounds() {
        let rate = CompletionRate::default();
        let start = Instant::now();
        assert_eq!(rate.expected(), Duration::from_secs(1));
        for i in 0..50 {
            rate.completed(start + Duration::from_secs(4 * i));
        }
        assert_eq!(rate.expected(), Duration::from_secs(4));
        rate.completed(start + Duration::from_secs(10_000));
        assert_eq!(rate.expected(), Duration::from_secs(30));
    }
}
