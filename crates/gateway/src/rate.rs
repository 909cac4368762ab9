//! How fast requests complete: the base of `Retry-After`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Weight of the newest interval in the running mean.
const WEIGHT: f64 = 0.2;

/// What a client is told to wait at least and at most, in seconds.
const BOUNDS: (f64, f64) = (1.0, 30.0);

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
            // A night without requests says nothing of the wait in a queue, and must not weigh as a night.
            let interval = now.saturating_duration_since(last).as_secs_f64();
            let interval = interval.min(BOUNDS.1);
            mean.seconds = Some(match mean.seconds {
                Some(seconds) => seconds + WEIGHT * (interval - seconds),
                None => interval,
            });
        }
    }

    /// The expected time until the next completion; a second when nothing is known.
    pub(crate) fn expected(&self) -> Duration {
        let mean = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (min, max) = BOUNDS;
        Duration::from_secs_f64(mean.seconds.unwrap_or(min).clamp(min, max))
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
        for i in 1..50 {
            rate.completed(start + Duration::from_secs(1000 * i));
        }
        assert_eq!(rate.expected().as_secs_f64().round(), 30.0);
    }

    #[test]
    fn a_night_is_soon_forgotten() {
        let rate = CompletionRate::default();
        let start = Instant::now();
        let morning = start + Duration::from_secs(40_000);
        rate.completed(start);
        rate.completed(start + Duration::from_secs(1));
        rate.completed(morning);
        assert!(rate.expected() < Duration::from_secs(8));
        for i in 1..10 {
            rate.completed(morning + Duration::from_secs(i));
        }
        assert!(rate.expected() < Duration::from_secs(2));
    }
}
