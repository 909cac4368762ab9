//! The result of a search, as JSON and as text.

use std::fmt::{self, Display, Formatter};

use serde::{Deserialize, Serialize};

use super::hunt::Found;
use super::{Over, ProbeVerdict, SearchConfig, StopReason};
use crate::arrival::Arrival;
use crate::cost::Price;
use crate::give_up::Early;
use crate::gpu_watch::GpuLoad;
use crate::report::{Report, SCHEMA, TargetInfo, Tool, WithoutDelay};
use crate::scene::Host;
use crate::slo::{Goodput, Slo};
use crate::stats::Percentile;
use crate::table::share;

/// The result of a search.
#[derive(Debug, Clone, Serialize)]
pub struct SearchReport {
    /// Version of the schema.
    pub schema: u32,
    /// What the file describes.
    pub kind: &'static str,
    /// What made it.
    pub tool: Tool,
    /// What it is called, when it began and where; none when nothing was measured.
    #[serde(flatten)]
    pub setting: Option<Setting>,
    /// What had to be kept.
    pub slo: Slo,
    /// What was raised.
    pub over: Over,
    /// Requests per second; none when no rate passed, or users were raised.
    pub rate: Option<f64>,
    /// Users; none when no number of them passed, or rates were raised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<u32>,
    /// Why the search ended.
    pub stop: StopReason,
    /// A level failed although a higher one passed: the machine changed meanwhile.
    pub not_monotone: bool,
    /// Price of the server's machine, where it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
    /// Every probe, in order.
    pub probes: Vec<Probe>,
}

/// What all probes have in common, as the first of them saw it.
#[derive(Debug, Clone, Serialize)]
pub struct Setting {
    /// What the search is called.
    pub name: String,
    /// Wall time of its start.
    pub started: String,
    /// The client's machine.
    pub host: Host,
    /// What was measured.
    pub target: TargetInfo,
}

/// What a probe was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// One user alone.
    Solo,
    /// Many users, to learn where to begin.
    Saturation,
    /// A rate.
    Probe,
    /// The rate found, once more.
    Confirmation,
}

/// A probe judged once more without the client's own delay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejudged {
    /// What it says then.
    pub verdict: ProbeVerdict,
    /// By what.
    #[serde(flatten)]
    pub by: WithoutDelay,
}

impl Rejudged {
    /// For a sentence about a probe with `verdict`.
    pub fn words(&self, verdict: ProbeVerdict) -> String {
        let delay = self.by.words();
        let then = match (verdict, self.verdict) {
            (ProbeVerdict::Pass, _) => "passes all the same",
            (_, again) if again > verdict => "misses the limits by no more than that",
            (ProbeVerdict::Fail, _) => "fails also when counted from sending",
            (ProbeVerdict::Undecided, _) => "is undecided also when counted from sending",
        };
        format!("{delay}; {then}")
    }
}

/// One probe.
#[derive(Debug, Clone, Serialize)]
pub struct Probe {
    /// What it was for.
    pub kind: ProbeKind,
    /// How requests arrived.
    pub arrival: Arrival,
    /// Seed of its load.
    pub seed: u64,
    /// Length of its window.
    pub seconds: f64,
    /// What it says.
    pub verdict: ProbeVerdict,
    /// What kept the limits; none of a probe that ended early, whose rest would be no fair sample.
    pub goodput: Option<Goodput>,
    /// Why it ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_early: Option<Early>,
    /// What grew over the window.
    pub growing: Vec<&'static str>,
    /// The client's own delay was too large, or it had too much to do.
    pub client_was_late: bool,
    /// What it would say without that delay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_client_delay: Option<Rejudged>,
    /// Requests per second that were planned.
    pub offered_requests: f64,
    /// Requests per second that ended well.
    pub completed_requests: f64,
    /// Output tokens per second.
    pub output_tokens: f64,
    /// Median of the time to the first token.
    pub ttft_p50: Percentile,
    /// Its 99th percentile, where the sample bounds it.
    pub ttft_p99: Percentile,
    /// The same of the time per output token.
    pub tpot_p50: Percentile,
    /// What a million output tokens cost at this rate on a machine in use all the time; of a probe that kept its
    /// limits, where the price of an hour was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_million_output_tokens: Option<f64>,
    /// The GPUs of the server's machine over its window.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuLoad>,
    /// What speaks against the run.
    pub reasons: Vec<String>,
    #[serde(skip)]
    setting: Setting,
}

impl Probe {
    pub(super) fn new(
        kind: ProbeKind,
        report: &Report,
        verdict: ProbeVerdict,
        without_client_delay: Option<Rejudged>,
    ) -> Self {
        Self {
            kind,
            arrival: report.load.arrival,
            seed: report.load.seed,
            seconds: report.window.seconds,
            verdict,
            goodput: report
                .goodput
                .clone()
                .filter(|_| report.window.gave_up.is_none()),
            ended_early: report.window.gave_up,
            growing: report.window.growing.clone(),
            client_was_late: report.client.may_be_the_bottleneck(),
            without_client_delay,
            offered_requests: report.rates.offered_requests,
            completed_requests: report.rates.completed_requests,
            output_tokens: report.rates.output_tokens,
            ttft_p50: report.latency.ttft.p50,
            ttft_p99: report.latency.ttft.p99,
            tpot_p50: report.latency.tpot.p50,
            per_million_output_tokens: per_million_output_tokens(verdict, report),
            gpus: report.gpus.clone(),
            reasons: report.reasons.clone(),
            setting: Setting {
                name: report.name.clone(),
                started: report.started.clone(),
                host: report.host.clone(),
                target: report.target.clone(),
            },
        }
    }
}

impl Probe {
    /// What it says about its level. Passing with a late client is passing, since the delay is in the latencies; a
    /// failure is the server's unless the verdict is better without that delay.
    pub(super) fn found(&self) -> Found {
        let again = self
            .without_client_delay
            .as_ref()
            .map(|again| again.verdict);
        match self.verdict {
            ProbeVerdict::Pass => Found::Kept,
            verdict if again.is_some_and(|again| again > verdict) => Found::Hidden,
            _ => Found::Missed,
        }
    }

    /// Where on the way of a search it stands; none of those that prepare it.
    fn level(&self, over: Over) -> Option<f64> {
        let is_on_the_way = matches!(self.kind, ProbeKind::Probe | ProbeKind::Confirmation);
        match (over, self.arrival) {
            (Over::Rate, arrival) => arrival.rate(),
            (Over::Concurrency, Arrival::Closed { users }) => Some(users.into()),
            (Over::Concurrency, _) => None,
        }
        .filter(|_| is_on_the_way)
    }
}

/// The first line of a cost is that of a machine in use all the time.
fn per_million_output_tokens(verdict: ProbeVerdict, report: &Report) -> Option<f64> {
    let cost = report
        .cost
        .as_ref()
        .filter(|_| verdict == ProbeVerdict::Pass)?;
    Some(cost.uses.first()?.per_million_output_tokens)
}

impl SearchReport {
    pub(super) fn new(
        config: &SearchConfig,
        probes: Vec<Probe>,
        stop: StopReason,
        level: Option<f64>,
    ) -> Self {
        let over = config.over;
        // A probe that did not decide did not fail.
        let levels = |verdict: ProbeVerdict| {
            let wanted = move |p: &&Probe| p.verdict == verdict;
            let level = move |p: &Probe| p.level(over);
            probes.iter().filter(wanted).filter_map(level)
        };
        let best = levels(ProbeVerdict::Pass).fold(0.0, f64::max);
        Self {
            schema: SCHEMA,
            kind: "search",
            tool: Tool::of(&config.probe),
            setting: probes.first().map(|probe| probe.setting.clone()),
            slo: config.slo,
            over,
            rate: level.filter(|_| over == Over::Rate),
            users: level
                .filter(|_| over == Over::Concurrency)
                .map(|n| n as u32),
            stop,
            not_monotone: levels(ProbeVerdict::Fail).any(|failed| failed < best),
            price: config.probe.price.clone(),
            probes,
        }
    }
}

impl Display for Probe {
    /// One line.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let load = match (self.arrival.rate(), self.arrival) {
            (Some(rate), _) => format!("{rate:.3}/s"),
            (None, Arrival::Closed { users }) => format!("{users} users"),
            (None, other) => other.to_string(),
        };
        let verdict = match self.verdict {
            ProbeVerdict::Pass => "pass",
            ProbeVerdict::Fail => "fail",
            ProbeVerdict::Undecided => "undecided",
        };
        write!(f, "{load:>12}  {:>6.1} s  {verdict:<9}", self.seconds)?;
        if let Some(goodput) = &self.goodput {
            write!(f, "  kept by {}", share(&goodput.attainment))?;
        }
        if let Some(early) = &self.ended_early {
            write!(f, "  ended early: {early}")?;
        }
        if !self.growing.is_empty() {
            write!(f, ", {} grew", self.growing.join(" and "))?;
        }
        if let Some(again) = &self.without_client_delay {
            write!(f, ", {}", again.words(self.verdict))?;
        }
        for held_back in self.gpus.iter().filter_map(GpuLoad::warning) {
            write!(f, ", {held_back}")?;
        }
        Ok(())
    }
}

impl Display for SearchReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for probe in &self.probes {
            writeln!(f, "{probe}")?;
        }
        let why = self.stop.words();
        let slo = &self.slo;
        let sure = match self.stop {
            StopReason::Converged => "",
            _ => "at least ",
        };
        match (self.rate, self.users, self.over) {
            (Some(rate), ..) => writeln!(f, "\n{sure}{rate:.3} requests/s within {slo}: {why}")?,
            (_, Some(users), _) => writeln!(f, "\n{sure}{users} users within {slo}: {why}")?,
            (.., Over::Rate) => writeln!(f, "\nno rate found within {slo}: {why}")?,
            (.., Over::Concurrency) => {
                writeln!(f, "\nno number of users found within {slo}: {why}")?;
            }
        }
        if self.not_monotone {
            writeln!(
                f,
                "A level failed although a higher one passed: the machine changed meanwhile."
            )?;
        }
        Ok(())
    }
}
