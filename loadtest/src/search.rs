//! `loadtest search`: the highest rate of an open loop, or number of users of a closed one, at which enough requests keep
//! their limits. One user alone comes first, then many users to learn where to begin; levels are bracketed and
//! bisected; the one found is confirmed with fresh seeds. Every probe is part of the result.

mod hunt;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::app;
use crate::args::{SearchArgs, Warmup};
use crate::arrival::Arrival;
use crate::config::Config;
use crate::report::{Report, RunVerdict, WithoutDelay};
use crate::self_test::Known;
use crate::slo::{Share, Slo};
use crate::stats::{Percentile, Summary};
use hunt::{Found, Hunt, Next};
pub use hunt::{Over, ProbeVerdict, StopReason};
pub use report::{Probe, ProbeKind, Rejudged, SearchReport};

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
/// The share of a probe's length before its window, in which requests get under way: without it answers would be missing
/// at the window's beginning, and none at its end.
const WARMUP_SHARE: f64 = 0.1;
/// How long the server may take to come to rest after a probe.
const REST: Duration = Duration::from_secs(60);

/// A resolved search.
#[derive(Debug, Clone)]
pub struct SearchConfig {
    /// What all probes have in common.
    pub probe: Config,
    over: Over,
    slo: Slo,
    probe_length: Duration,
    probe_requests: u64,
    saturation_users: u32,
    first: Option<f64>,
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
        let users = run.users;
        let first = match args.over {
            Over::Rate => run.rate,
            Over::Concurrency => {
                ensure!(
                    run.rate.is_none(),
                    "--rate has no use in a search for a number of users"
                );
                users.map(f64::from)
            }
        };
        let probe = Config {
            rest: REST,
            ..Config::try_from(args.run.clone())?
        };
        Ok(Self {
            over: args.over,
            slo,
            probe_length: run.duration.unwrap_or(PROBE),
            probe_requests: run.requests.unwrap_or(PROBE_REQUESTS),
            saturation_users: users.unwrap_or(SATURATION_USERS),
            first,
            max_in_flight: run.max_in_flight,
            max_probes: args.max_probes,
            max_time: args.max_time,
            tolerance: args.tolerance,
            probe,
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
        answer: Duration::ZERO,
        tell: &mut tell,
    };
    let (stop, level) = searching.all().await?;
    Ok(SearchReport::new(config, searching.probes, stop, level))
}

struct Searching<'a> {
    config: &'a SearchConfig,
    begun: Instant,
    probes: Vec<Probe>,
    /// How long half of the answers of the last probe took at most.
    answer: Duration,
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
            return Ok(match solo.found() {
                Found::Hidden => (StopReason::Ceiling, None),
                _ => (StopReason::SoloFails, None),
            });
        }
        let first = match self.config.first {
            Some(level) => level,
            None => {
                let users = users(self.config.saturation_users);
                let length = length.mul_f64(SATURATION_SHARE);
                let found = self.run(ProbeKind::Saturation, users, length).await?;
                if found.completed_requests == 0.0 {
                    return Ok((StopReason::SoloFails, None));
                }
                let rate = FIRST_SHARE * found.completed_requests;
                match self.config.over {
                    Over::Rate => rate,
                    // Little's law: at that rate so many wait, if an answer takes as long as it took one user alone.
                    Over::Concurrency => (rate / solo.completed_requests).round().max(1.0),
                }
            }
        };
        let mut hunt = Hunt::new(self.config.over, first, self.config.tolerance);
        loop {
            let (kind, level) = match hunt.next() {
                Next::Probe(level) => (ProbeKind::Probe, level),
                Next::Confirm(level) => (ProbeKind::Confirmation, level),
                Next::Stop(reason) => return Ok((reason, hunt.level())),
            };
            if let Some(reason) = self.limit() {
                return Ok((reason, hunt.level()));
            }
            let probe = self.decide(kind, level).await?;
            hunt.record(level, probe.found());
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

    /// Probes a level, for twice as long when the first time does not decide.
    async fn decide(&mut self, kind: ProbeKind, level: f64) -> Result<Probe> {
        let (arrival, rate) = match self.config.over {
            Over::Rate => {
                let max_in_flight = self.config.max_in_flight;
                let rate = level;
                (
                    Arrival::Poisson {
                        rate,
                        max_in_flight,
                    },
                    rate,
                )
            }
            Over::Concurrency => {
                let users = level as u32;
                // The last probe got through about as many a second as this one will.
                let rate = self.probes.last().map_or(0.0, |p| p.completed_requests);
                (Arrival::Closed { users }, rate.max(1.0))
            }
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
        // Nothing but the load between two probes.
        if config.self_test == Known::TestedBefore {
            config.self_test = Known::Nothing;
        }
        config.watches_machine = false;
        // A rate that cannot pass any more takes no more time.
        config.may_give_up = matches!(kind, ProbeKind::Probe | ProbeKind::Confirmation);
        config.seed = config.seed.wrapping_add(self.probes.len() as u64);
        if !matches!(arrival, Arrival::Closed { .. }) {
            let early = Warmup::Time(warmup(length, self.answer));
            config.warmup = config.warmup.or(Some(early));
        }
        let report = app::measure(&config, std::future::pending()).await?;
        if let Percentile::Seconds(median) = report.latency.e2e.p50 {
            self.answer = Duration::from_secs_f64(median);
        }
        let probe = probe(kind, &report, self.config.slo.attainment);
        (self.tell)(&probe);
        self.probes.push(probe.clone());
        tokio::time::sleep(rest(report.server.kind.is_some(), &report.latency.e2e)).await;
        Ok(probe)
    }
}

/// How long the server is left alone after a run: twice the 99th percentile of the time that an answer took. Where there
/// are metrics they tell when it is at rest, and the next run begins with that.
fn rest(has_metrics: bool, e2e: &Summary) -> Duration {
    if has_metrics {
        return Duration::ZERO;
    }
    let longest = match e2e.p99 {
        Percentile::Seconds(p99) => p99,
        _ => e2e.max.unwrap_or(0.0),
    };
    Duration::from_secs_f64(2.0 * longest).min(REST)
}

/// How long a rate is asked before its window begins: long enough that answers end in it from the beginning.
fn warmup(length: Duration, answer: Duration) -> Duration {
    length.mul_f64(WARMUP_SHARE).max(answer.min(length))
}

/// What a run says, judged as it is and, of a late client, without its delay.
fn probe(kind: ProbeKind, report: &Report, wanted: f64) -> Probe {
    let again = report.without_client_delay.clone().map(|by| Rejudged {
        verdict: judge_again(kind, report, &by, wanted),
        by,
    });
    Probe::new(kind, report, judge(kind, report, wanted), again)
}

/// What a run says about the objectives: an overloaded server, a client that shed requests, or a run that gave up
/// fails whatever the survivors look like.
fn judge(kind: ProbeKind, report: &Report, wanted: f64) -> ProbeVerdict {
    let Some(goodput) = &report.goodput else {
        return ProbeVerdict::Undecided;
    };
    let is_invalid = report.verdict == RunVerdict::Invalid;
    let is_behind = falls_behind(kind, &report.window.growing);
    by_share(is_invalid || is_behind, &goodput.attainment, wanted)
}

/// The same without the client's delay. A run that ended early is invalid for that alone; whether it would have ended
/// so, too, is what counts.
fn judge_again(kind: ProbeKind, report: &Report, by: &WithoutDelay, wanted: f64) -> ProbeVerdict {
    let is_behind = falls_behind(kind, &by.growing);
    match report.window.gave_up {
        Some(_) if is_behind || by.out_of_reach.is_some() => ProbeVerdict::Fail,
        Some(_) => ProbeVerdict::Undecided,
        None => {
            let is_invalid = report.verdict == RunVerdict::Invalid;
            by_share(is_invalid || is_behind, &by.attainment, wanted)
        }
    }
}

/// One user who waits for each answer cannot make a queue: growth there is the chance of few answers.
fn falls_behind<T>(kind: ProbeKind, growing: &[T]) -> bool {
    kind != ProbeKind::Solo && !growing.is_empty()
}

fn by_share(fails: bool, attainment: &Share, wanted: f64) -> ProbeVerdict {
    if fails || attainment.high < wanted {
        ProbeVerdict::Fail
    } else if attainment.low >= wanted {
        ProbeVerdict::Pass
    } else {
        ProbeVerdict::Undecided
    }
}

#[cfg(test)]
mod tests;
