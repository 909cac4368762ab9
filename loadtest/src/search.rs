//! `loadtest search`: the highest rate of an open loop at which enough requests keep their limits. One
//! user alone comes first, then many users to learn where to begin; rates are bracketed and bisected;
//! the rate found is confirmed with fresh seeds. Every probe is part of the result.

mod hunt;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::app;
use crate::args::SearchArgs;
use crate::arrival::Arrival;
use crate::config::Config;
use crate::report::{Report, RunVerdict};
use crate::slo::{Goodput, Slo};
use hunt::{Hunt, Next};
pub use hunt::{ProbeVerdict, StopReason};
pub use report::{Probe, ProbeKind, SearchReport};

/// Length of a probe unless said otherwise.
const PROBE: Duration = Duration::from_secs(60);
/// Least number of requests in a probe unless said otherwise.
const PROBE_REQUESTS: u64 = 200;
/// Users who find the first rate unless said otherwise.
const SATURATION_USERS: u32 = 128;
/// The share of the probe's length that the preparations take.
const SOLO_SHARE: f64 = 1.0 / 3.0;
const SATURATION_SHARE: f64 = 0.5;
/// The share of what many users got through that is tried first.
const FIRST_SHARE: f64 = 0.5;

/// A resolved search.
#[derive(Debug, Clone)]
pub struct SearchConfig {
    /// What all probes have in common.
    pub probe: Config,
    slo: Slo,
    probe_length: Duration,
    probe_requests: u64,
    saturation_users: u32,
    first_rate: Option<f64>,
    max_in_flight: usize,
    max_probes: u32,
    max_time: Duration,
    tolerance: f64,
}

impl TryFrom<SearchArgs> for SearchConfig {
    type Error = anyhow::Error;

    fn try_from(args: SearchArgs) -> Result<Self> {
        let run = &args.run;
        let slo = run
            .slo
            .context("a search needs limits: --slo ttft=1s,tpot=80ms")?;
        if args.max_probes == 0 {
            bail!("--max-probes 0 leaves nothing to do");
        }
        Ok(Self {
            slo,
            probe_length: run.duration.unwrap_or(PROBE),
            probe_requests: run.requests.unwrap_or(PROBE_REQUESTS),
            saturation_users: run.users.unwrap_or(SATURATION_USERS),
            first_rate: run.rate,
            max_in_flight: run.max_in_flight,
            max_probes: args.max_probes,
            max_time: args.max_time,
            tolerance: args.tolerance,
            probe: Config::try_from(args.run)?,
        })
    }
}

/// Performs the search; `tell` gets every probe as it ends.
///
/// # Errors
/// A server that cannot be reached.
pub async fn search(config: &SearchConfig, mut tell: impl FnMut(&Probe)) -> Result<SearchReport> {
    let mut searching = Searching {
        config,
        begun: Instant::now(),
        probes: Vec::new(),
        tell: &mut tell,
    };
    let (stop, rate) = searching.all().await?;
    Ok(SearchReport::new(config, searching.probes, stop, rate))
}

struct Searching<'a> {
    config: &'a SearchConfig,
    begun: Instant,
    probes: Vec<Probe>,
    tell: &'a mut dyn FnMut(&Probe),
}

impl Searching<'_> {
    async fn all(&mut self) -> Result<(StopReason, Option<f64>)> {
        let users = |users| Arrival::Closed { users };
        let length = self.config.probe_length;
        let solo = self
            .run(ProbeKind::Solo, users(1), length.mul_f64(SOLO_SHARE))
            .await?;
        // One user alone is a small sample: only what fails beyond doubt ends the search.
        if solo.verdict == ProbeVerdict::Fail {
            return Ok((StopReason::SoloFails, None));
        }
        let first = match self.config.first_rate {
            Some(rate) => rate,
            None => {
                let users = users(self.config.saturation_users);
                let length = length.mul_f64(SATURATION_SHARE);
                let found = self.run(ProbeKind::Saturation, users, length).await?;
                if found.completed_requests == 0.0 {
                    return Ok((StopReason::SoloFails, None));
                }
                FIRST_SHARE * found.completed_requests
            }
        };
        let mut hunt = Hunt::new(first, self.config.tolerance);
        loop {
            let (kind, rate) = match hunt.next() {
                Next::Probe(rate) => (ProbeKind::Probe, rate),
                Next::Confirm(rate) => (ProbeKind::Confirmation, rate),
                Next::Stop(reason) => return Ok((reason, hunt.rate())),
            };
            if let Some(reason) = self.limit() {
                return Ok((reason, hunt.rate()));
            }
            let probe = self.decide(kind, rate).await?;
            hunt.record(
                rate,
                probe.verdict == ProbeVerdict::Pass,
                probe.client_was_late,
            );
        }
    }

    /// Which bound of the search is reached.
    fn limit(&self) -> Option<StopReason> {
        let is_probe = |p: &&Probe| matches!(p.kind, ProbeKind::Probe | ProbeKind::Confirmation);
        let done = self.probes.iter().filter(is_probe).count();
        if done >= self.config.max_probes as usize {
            Some(StopReason::MaxProbes)
        } else if self.begun.elapsed() >= self.config.max_time {
            Some(StopReason::MaxTime)
        } else {
            None
        }
    }

    /// Probes a rate, for twice as long when the first time does not decide.
    async fn decide(&mut self, kind: ProbeKind, rate: f64) -> Result<Probe> {
        let arrival = Arrival::Poisson {
            rate,
            max_in_flight: self.config.max_in_flight,
        };
        let needed = Duration::from_secs_f64(self.config.probe_requests as f64 / rate);
        let length = self.config.probe_length.max(needed);
        let probe = self.run(kind, arrival, length).await?;
        if probe.verdict != ProbeVerdict::Undecided || self.limit().is_some() {
            return Ok(probe);
        }
        self.run(kind, arrival, 2 * length).await
    }

    async fn run(&mut self, kind: ProbeKind, arrival: Arrival, length: Duration) -> Result<Probe> {
        let mut config = self.config.probe.clone();
        config.arrival = arrival;
        config.duration = Some(length);
        config.requests = None;
        config.self_test = false;
        config.watches_machine = false;
        // A rate that cannot pass any more takes no more time.
        config.may_give_up = matches!(kind, ProbeKind::Probe | ProbeKind::Confirmation);
        config.seed = config.seed.wrapping_add(self.probes.len() as u64);
        let report = app::measure(&config, std::future::pending()).await?;
        let probe = Probe::new(
            kind,
            &report,
            judge(kind, &report, self.config.slo.attainment),
        );
        (self.tell)(&probe);
        self.probes.push(probe.clone());
        Ok(probe)
    }
}

/// What a run says about the objectives: an overloaded server, a client that shed requests, or a run that gave up
/// fails whatever the survivors look like.
fn judge(kind: ProbeKind, report: &Report, wanted: f64) -> ProbeVerdict {
    let Some(Goodput { attainment, .. }) = &report.goodput else {
        return ProbeVerdict::Undecided;
    };
    // One user who waits for each answer cannot make a queue: growth there is the chance of few answers.
    let is_overloaded = kind != ProbeKind::Solo && !report.window.growing.is_empty();
    if report.verdict == RunVerdict::Invalid || is_overloaded || attainment.high < wanted {
        ProbeVerdict::Fail
    } else if attainment.low >= wanted {
        ProbeVerdict::Pass
    } else {
        ProbeVerdict::Undecided
    }
}
