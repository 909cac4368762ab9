//! What the client itself took: the processor time of its threads, and how late its runtime woke. A
//! client that is busy stamps late, and late stamps look like a slow server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::clock::{Clock, Nanos, SECOND, seconds};

/// Between two looks at the runtime.
const TICK: Duration = Duration::from_millis(10);

/// What a run took from the client's machine.
#[derive(Debug, Clone, Default)]
pub struct Effort {
    /// How much later than planned the runtime woke, tick by tick.
    pub lags: Vec<Lag>,
    /// Processor time over time, in cores; none where the system does not tell.
    pub cores: Option<f64>,
}

/// A delay of the client's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// When it should have happened.
    pub due: Nanos,
    /// How much later it did.
    pub late: Nanos,
}

/// Watches the runtime that it is started on.
pub struct Watch {
    clock: Clock,
    begun: Nanos,
    spent: Option<Nanos>,
    is_over: Arc<AtomicBool>,
    ticks: JoinHandle<Vec<Lag>>,
}

impl Watch {
    /// Starts to watch.
    pub fn start(clock: Clock) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        Self {
            clock,
            begun: clock.now(),
            spent: processor_time(),
            ticks: tokio::spawn(tick(clock, Arc::clone(&is_over))),
            is_over,
        }
    }

    /// Ends, and says what it saw.
    pub async fn end(self) -> Effort {
        self.is_over.store(true, Ordering::Relaxed);
        let passed = seconds(self.clock.now() - self.begun);
        let spent = self.spent.zip(processor_time());
        let spent = spent.map(|(before, after)| seconds(after.saturating_sub(before)));
        Effort {
            lags: self.ticks.await.expect("a tick does not panic"),
            cores: spent.filter(|_| passed > 0.0).map(|spent| spent / passed),
        }
    }
}

async fn tick(clock: Clock, is_over: Arc<AtomicBool>) -> Vec<Lag> {
    let mut lags = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let due = clock.now() + TICK.as_nanos() as Nanos;
        tokio::time::sleep_until(clock.instant(due)).await;
        let late = clock.now().saturating_sub(due);
        lags.push(Lag { due, late });
    }
    lags
}

/// Processor time of all threads of this process: the first number of each `schedstat`, nanoseconds on
/// a processor (`Documentation/scheduler/sched-stats.rst` of Linux). Threads that ended are missing.
fn processor_time() -> Option<Nanos> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let mut total = None;
    for task in tasks.flatten() {
        let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) else {
            continue;
        };
        let spent: Nanos = text.split_whitespace().next()?.parse().ok()?;
        *total.get_or_insert(0) += spent;
    }
    // A kernel without scheduler statistics counts nothing.
    total.filter(|spent| *spent > 0 && *spent < 1_000_000 * SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_ticks_until_it_is_ended() {
        let watch = Watch::start(Clock::start());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let effort = watch.end().await;
        // Paused time stands still but for the ticks, so nothing is late.
        assert!(
            (90..=101).contains(&effort.lags.len()),
            "{}",
            effort.lags.len()
        );
        assert!(effort.lags.iter().all(|lag| lag.late < 2_000_000));
    }

    #[test]
    fn work_costs_processor_time() {
        let Some(before) = processor_time() else {
            return;
        };
        let mut x = 1u64;
        for i in 0..20_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
        }
        assert!(processor_time().unwrap() > before, "{x}");
    }
}
