//! When a run may end early: once so many requests have missed a limit that the share of those that keep
//! them can no longer reach the objective, whatever becomes of the rest; or once the server falls behind for
//! so long that what it is asked for is beyond it.
//!
//! Neither replaces the other. The first is certain, at any time, but it waits for requests to end or to fail. The
//! second sees a queue grow while its first requests are still within their limits, or have not ended at all.

use std::fmt::{self, Display, Formatter};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::Warmup;
use crate::clock::{Nanos, SECOND, seconds};
use crate::driver::Plan;
use crate::outcome::Outcome;
use crate::record::RequestRecord;
use crate::schedule::{exactly, schedule};
use crate::slo::Slo;
use crate::stats::wilson;
use crate::steady;
use crate::workload::Workload;

/// Why the objective is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bound {
    /// Requests that missed a limit so far.
    pub missed: u64,
    /// All requests that the run would have measured.
    pub planned: u64,
    /// Upper end of the 95 % interval (Wilson) of the share that keeps the limits, if every other request did.
    pub attainment_at_most: f64,
    /// The share that was asked for.
    pub wanted: f64,
}

/// The server fell behind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Overload {
    /// When that was beyond doubt, from the beginning of the window.
    pub overloaded_after_seconds: f64,
    /// Requests in flight by then.
    pub in_flight: u64,
}

/// Why a run ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Early {
    /// The objective is out of reach.
    OutOfReach(Bound),
    /// The server fell behind.
    Overload(Overload),
}

impl Display for Early {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfReach(bound) => bound.fmt(f),
            Self::Overload(Overload {
                overloaded_after_seconds,
                in_flight,
            }) => write!(
                f,
                "after {overloaded_after_seconds:.0} s the requests in flight, {in_flight} by then, and the time to the \
                 first token had grown all along"
            ),
        }
    }
}

/// The bound that `missed` of `planned` requests reach; none while the share can still be `wanted`.
pub fn bound(missed: u64, planned: u64, wanted: f64) -> Option<Bound> {
    let attainment_at_most = wilson(planned.saturating_sub(missed), planned).1;
    (attainment_at_most < wanted).then_some(Bound {
        missed,
        planned,
        attainment_at_most,
        wanted,
    })
}

impl Display for Bound {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| (share * 1e4).round() / 100.0;
        write!(
            f,
            "{} of {} requests missed a limit, so that at most {} % can keep them and {} % should",
            self.missed,
            self.planned,
            percent(self.attainment_at_most),
            percent(self.wanted)
        )
    }
}

/// Looks at a run from time to time, to see a server fall behind.
#[derive(Debug, Default)]
pub struct Lookout {
    /// Requests in flight, as they were seen.
    in_flight: Vec<(Nanos, f64)>,
    last_verdict: Nanos,
}

impl Lookout {
    /// Between two looks at the requests in flight.
    pub const EVERY: Duration = Duration::from_millis(250);
    /// What begins slowly is not overloaded before this time.
    const EARLIEST: Nanos = 30 * SECOND;
    /// Between two verdicts: the more there are, the more often chance looks like growth.
    const BETWEEN: Nanos = 5 * SECOND;

    /// Sees the run at `now`, with a window that began at `start` and the records of what has ended.
    pub fn look(
        &mut self,
        (start, now): (Nanos, Nanos),
        in_flight: usize,
        records: &[RequestRecord],
    ) -> Option<Overload> {
        self.in_flight.push((now, in_flight as f64));
        let passed = now.saturating_sub(start);
        let is_due = passed >= Self::EARLIEST && now - self.last_verdict >= Self::BETWEEN;
        if !is_due {
            return None;
        }
        self.last_verdict = now;
        steady::is_overloaded(&self.in_flight, records, (start, now)).then_some(Overload {
            overloaded_after_seconds: seconds(passed),
            in_flight: in_flight as u64,
        })
    }
}

/// Counts misses until they reach the bound.
#[derive(Debug)]
pub struct GiveUp {
    slo: Slo,
    planned: u64,
    missed: AtomicU64,
    reached: OnceLock<Bound>,
}

impl GiveUp {
    /// For a run that should keep `slo`; none where the number of its requests is not known before.
    pub fn new(slo: Slo, plan: &Plan, workload: &Workload) -> Option<Self> {
        let is_single = !workload.contents.iter().any(|c| c.is_multi_turn());
        let starts = schedule(&plan.arrival, workload.seed, workload.trace.as_ref());
        let starts = exactly(starts, &plan.arrival, plan.exact_count);
        let planned = planned(starts, plan.warmup, plan.duration?);
        let planned = planned.min(plan.requests.unwrap_or(u64::MAX));
        (is_single && planned > 0).then(|| Self {
            slo,
            planned,
            missed: AtomicU64::new(0),
            reached: OnceLock::new(),
        })
    }

    /// Takes a measured request that ended; true when the run may end with it.
    pub fn note(&self, record: &RequestRecord) -> bool {
        if record.outcome == Outcome::Unfinished || self.slo.is_kept_by(record) {
            return false;
        }
        let missed = self.missed.fetch_add(1, Ordering::Relaxed) + 1;
        let found = bound(missed, self.planned, self.slo.attainment);
        found.is_some_and(|bound| self.reached.set(bound).is_ok())
    }

    /// The bound, once it is reached.
    pub fn reached(&self) -> Option<Bound> {
        self.reached.get().copied()
    }
}

/// Starts inside a window of `length` that the first of them after the warm-up opens.
fn planned(starts: impl Iterator<Item = Nanos>, warmup: Warmup, length: Duration) -> u64 {
    let nanos = |time: Duration| Nanos::try_from(time.as_nanos()).unwrap_or(Nanos::MAX);
    let mut starts = starts.peekable();
    let first = starts.peek().copied().unwrap_or(0);
    let is_early = |(n, start): &(u64, Nanos)| match warmup {
        Warmup::Requests(requests) => *n < requests,
        Warmup::Time(time) => start - first < nanos(time),
    };
    let mut measured = (0..).zip(starts).skip_while(is_early).map(|(_, t)| t);
    let Some(begin) = measured.next() else {
        return 0;
    };
    let end = begin.saturating_add(nanos(length));
    1 + measured.take_while(|start| *start < end).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::success;

    /// The bound against trying every possible end of the run.
    #[test]
    fn the_bound_is_reached_exactly_when_no_end_can_pass() {
        for (planned, wanted) in [(1, 0.9), (40, 0.5), (200, 0.99), (333, 0.95)] {
            for missed in 0..=planned {
                let ends = (0..=planned - missed).map(|good| wilson(good, planned).1);
                let may_pass = ends.into_iter().any(|high| high >= wanted);
                let found = bound(missed, planned, wanted);
                assert_eq!(found.is_none(), may_pass, "{missed} of {planned}");
            }
        }
        let bound = bound(10, 200, 0.99).unwrap();
        assert_eq!((bound.missed, bound.planned, bound.wanted), (10, 200, 0.99));
        let text = "10 of 200 requests missed a limit, so that at most 97.26 % can keep them and 99 % should";
        assert_eq!(bound.to_string(), text);
    }

    /// A run of 10 requests a second whose answers take 1 s at first and `growth` more for each second of the run.
    fn verdict(growth: f64, until: u64) -> Option<Overload> {
        let second = |s: f64| (s * SECOND as f64) as Nanos;
        let all = (0..10 * until).map(|i| {
            let mut record = success(i, second(i as f64 / 10.0), 7, 2);
            let takes = second(1.0 + growth * i as f64 / 10.0);
            record.stream.t_first = Some(record.t_plan + takes);
            record.t_end = record.t_plan + takes;
            record
        });
        let all: Vec<RequestRecord> = all.collect();
        let mut lookout = Lookout::default();
        (0..4 * until).find_map(|quarter| {
            let now = second(quarter as f64 / 4.0);
            let ended = all.iter().filter(|r| r.t_end <= now);
            let ended: Vec<RequestRecord> = ended.cloned().collect();
            let begun = all.iter().filter(|r| r.t_plan <= now).count();
            lookout.look((0, now), begun - ended.len(), &ended)
        })
    }

    #[test]
    fn a_queue_that_grows_for_half_a_minute_ends_the_run_and_a_steady_one_does_not() {
        let found = verdict(0.5, 60).unwrap();
        assert_eq!(found.overloaded_after_seconds, 30.0);
        assert!(found.in_flight > 90, "{found:?}");
        assert_eq!(verdict(0.5, 30), None, "not before its time");
        assert_eq!(verdict(0.0, 60), None);
        assert_eq!(verdict(0.001, 60), None, "growth nobody cares for");
    }

    /// Fewer requests than planned only lower what is possible.
    #[test]
    fn a_shorter_run_does_not_pass_either() {
        for missed in 1..30 {
            let highs: Vec<f64> = (missed..500).map(|n| wilson(n - missed, n).1).collect();
            assert!(highs.windows(2).all(|h| h[0] <= h[1]), "{missed}");
        }
    }

    #[test]
    fn starts_in_the_window_are_counted() {
        let starts = || (1u64..).map(|n| n * 10);
        let nanos = Duration::from_nanos;
        assert_eq!(planned(starts(), Warmup::Requests(0), nanos(100)), 10);
        assert_eq!(planned(starts(), Warmup::Requests(5), nanos(101)), 11);
        assert_eq!(planned(starts(), Warmup::Time(nanos(25)), nanos(1)), 1);
        assert_eq!(
            planned([1, 2, 3].into_iter(), Warmup::Requests(1), nanos(9)),
            2
        );
        assert_eq!(planned([1].into_iter(), Warmup::Requests(1), nanos(9)), 0);
    }
}
