//! When a run may end early: once so many requests have missed a limit that the share of those that keep
//! them can no longer reach the objective, whatever becomes of the rest.

use std::fmt::{self, Display, Formatter};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::Warmup;
use crate::clock::Nanos;
use crate::driver::Plan;
use crate::outcome::Outcome;
use crate::record::RequestRecord;
use crate::schedule::schedule;
use crate::slo::Slo;
use crate::stats::wilson;
use crate::workload::Workload;

/// Why the objective is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
