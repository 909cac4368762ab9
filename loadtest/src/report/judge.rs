//! Whether the numbers of a run can be trusted, and what speaks against them.

use serde::Serialize;

use super::Report;
use crate::arrival::Arrival;
use crate::calibration::Calibration;
use crate::gpu_watch::GpuLoad;
use crate::outcome::Outcome;
use crate::reconcile::Verdict;
use crate::stats::{Percentile, min_samples};

/// Above this many, the server splits tokens into several events.
const MAX_EVENTS_PER_TOKEN: f64 = 1.02;

/// How much longer than its slow answers a window should be.
const MIN_ANSWERS_IN_WINDOW: f64 = 10.0;

/// Whether the numbers of a run can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RunVerdict {
    /// Yes.
    Valid,
    /// With a reservation.
    Warning,
    /// No.
    Invalid,
}

impl Report {
    pub(super) fn judge(&mut self) {
        let mut found: Vec<(RunVerdict, String)> = Vec::new();
        for check in &self.server.reconciliation.checks {
            let verdict = match check.verdict {
                Verdict::Pass | Verdict::NotPossible => continue,
                Verdict::Fail => RunVerdict::Invalid,
                Verdict::Warn => RunVerdict::Warning,
            };
            found.push((
                verdict,
                format!("{} {}: the counts differ", check.id, check.what),
            ));
        }
        let shed = Outcome::ShedByClient.name();
        if self.outcomes.contains_key(&*shed) || self.outcomes_outside.contains_key(&*shed) {
            found.push((RunVerdict::Invalid, "the client shed requests".into()));
        }
        if self.server.lost {
            let reason = "the server's counters could not be read after the run".into();
            found.push((RunVerdict::Invalid, reason));
        }
        if self.window.stopped {
            let reason = match self.window.gave_up {
                Some(early) => format!("the run was ended early: {early}"),
                None => "the run was stopped".into(),
            };
            found.push((RunVerdict::Invalid, reason));
        }
        if self.requests.succeeded == 0 {
            found.push((RunVerdict::Invalid, "no measured request succeeded".into()));
        }
        if self.server.reconciliation.not_exclusive {
            found.push((
                RunVerdict::Warning,
                "the server answered others meanwhile".into(),
            ));
        }
        if !self.server.quiet {
            found.push((
                RunVerdict::Warning,
                "the server did not come to rest".into(),
            ));
        }
        if !self.window.growing.is_empty() {
            let what = self.window.growing.join(" and ");
            let reason = format!("not steady, {what} grew: latencies state a backlog");
            found.push((RunVerdict::Warning, reason));
        }
        if matches!(self.load.arrival, Arrival::Ramp { .. }) {
            let reason = "the rate changed: no part of a ramp is a steady state";
            found.push((RunVerdict::Warning, reason.into()));
        }
        if self.requests.retried > 0 {
            let n = self.requests.retried;
            let reason = format!("{n} attempts that failed were sent again, which hides failures");
            found.push((RunVerdict::Warning, reason));
        }
        if self.client.is_late() {
            found.push((
                RunVerdict::Warning,
                "the client sent late: latencies contain its own delay".into(),
            ));
        }
        if self.client.is_sluggish() {
            let reason = "the client woke late: its time stamps may be late too".into();
            found.push((RunVerdict::Warning, reason));
        }
        if self.client.is_beyond_its_test() {
            let reason = "the client read more events than it kept up with in its self-test".into();
            found.push((RunVerdict::Warning, reason));
        }
        if self.client.is_busy() {
            let reason = "the client was short of processor time: it may be the bottleneck".into();
            found.push((RunVerdict::Warning, reason));
        }
        let drift = self.calibration.as_ref().and_then(Calibration::warning);
        let held_back = self.gpus.iter().filter_map(GpuLoad::warning);
        let machine = drift.into_iter().chain(held_back);
        found.extend(machine.map(|reason| (RunVerdict::Warning, reason)));
        if self
            .latency
            .events_per_token
            .is_some_and(|ratio| ratio > MAX_EVENTS_PER_TOKEN)
        {
            found.push((
                RunVerdict::Warning,
                "the server splits tokens into several events".into(),
            ));
        }
        if let Some(short) = self.too_short() {
            found.push((RunVerdict::Warning, short));
        }
        self.verdict = found
            .iter()
            .map(|(verdict, _)| *verdict)
            .max()
            .unwrap_or(RunVerdict::Valid);
        self.reasons = found.into_iter().map(|(_, reason)| reason).collect();
    }

    /// Names what the sample or its window is too small for, when that is more than the 99th percentile.
    fn too_short(&self) -> Option<String> {
        let n = self.latency.ttft.n;
        let least = min_samples(0.95);
        if n > 0 && n < least {
            return Some(format!(
                "{n} answers are too few for a 95th percentile, which takes {least}"
            ));
        }
        let Percentile::Seconds(slow) = self.latency.e2e.p95 else {
            return None;
        };
        let window = self.window.seconds;
        (window < MIN_ANSWERS_IN_WINDOW * slow).then(|| {
            format!(
                "a window of {window:.1} s is too short for a steady state: slow answers (p95) take {slow:.1} s, and it \
                 should be ten times as long"
            )
        })
    }
}
