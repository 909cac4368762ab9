//! The run's monotonic clock: nanoseconds since the run was set up. Wall time appears nowhere in a
//! measurement. Built on tokio's clock, so that tests can pause it.

use tokio::time::Instant;

/// Nanoseconds since the origin of a [`Clock`].
pub type Nanos = u64;

/// Nanoseconds in a second.
pub const SECOND: Nanos = 1_000_000_000;

/// A monotonic clock with an origin; copies share the origin.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that reads zero now.
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Nanoseconds since the origin.
    pub fn now(&self) -> Nanos {
        u64::try_from(self.origin.elapsed().as_nanos()).expect("a run is shorter than 584 years")
    }

    /// The instant at which this clock reads `at`.
    pub fn instant(&self, at: Nanos) -> Instant {
        self.origin + std::time::Duration::from_nanos(at)
    }
}

/// Seconds of a span of nanoseconds.
pub fn seconds(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}
