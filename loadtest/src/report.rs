//! The results of a run: everything that is printed and everything that goes into the JSON file,
//! computed from the records alone. Field order is that of the file; times are in seconds.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::args::{Cache, Warmup};
use crate::arrival::Arrival;
use crate::clock::{Nanos, seconds};
use crate::config::Config;
use crate::content::{Content, Described};
use crate::cost::Cost;
use crate::driver::RunResult;
use crate::effort::Effort;
use crate::give_up::Bound;
use crate::metric_map::ServerKind;
use crate::outcome::Outcome;
use crate::parts::{Part, parts};
use crate::reconcile::{Reconciliation, Verdict};
use crate::record::{Phase, RequestRecord};
use crate::scene::{Host, Scene, Series};
use crate::slo::Goodput;
use crate::stats::{Gaps, Percentile, Sample, Summary, min_samples};
use crate::steady;
use crate::timeline::Timeline;
use crate::workload::{TokensPerWord, Workload};

/// Version of the JSON file's schema.
pub const SCHEMA: u32 = 1;
/// Below this many events per token a gap between events is not a gap between tokens.
const MIN_EVENTS_PER_TOKEN: f64 = 0.98;
/// Above this many, the server splits tokens into several events.
const MAX_EVENTS_PER_TOKEN: f64 = 1.02;
/// The send lag that is always allowed, in seconds.
const SEND_LAG_FLOOR: f64 = 0.001;
/// The 99th percentile of the runtime's lag that is allowed, in seconds; its timer is one millisecond fine.
const RUNTIME_LAG_LIMIT: f64 = 0.002;
/// Cores that the client may use.
const CORES_LIMIT: f64 = 0.6;
/// Conversations that the digest of a run covers: as many of every run, however far it came.
const DIGESTED: u64 = 256;

/// The results of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of the schema.
    pub schema: u32,
    /// What the file describes.
    pub kind: &'static str,
    /// What the run is called.
    pub name: String,
    /// Wall time of its start.
    pub started: String,
    /// Its place among its repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
    /// What made it.
    pub tool: Tool,
    /// The client's machine.
    pub host: Host,
    /// What was measured.
    pub target: TargetInfo,
    /// What was asked for.
    pub load: Load,
    /// The steady window.
    pub window: WindowInfo,
    /// How many requests there were.
    pub requests: Requests,
    /// Measured requests by class.
    pub outcomes: BTreeMap<String, OutcomeCount>,
    /// Warm-up and background requests by class.
    pub outcomes_outside: BTreeMap<String, OutcomeCount>,
    /// Lengths of the measured successes.
    pub lengths: LengthInfo,
    /// What passed through the window per second.
    pub rates: Rates,
    /// Latencies of the measured successes.
    pub latency: Latency,
    /// The measured requests taken apart, where they differ in more than their numbers.
    pub parts: Vec<Part>,
    /// How much of the load kept the limits that were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
    /// What that costs, where the price of an hour was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// How well the client kept its plan.
    pub client: ClientQuality,
    /// The server's side.
    pub server: ServerInfo,
    /// The measured successes one by one, in the order of their planned starts.
    pub samples: Vec<RequestSample>,
    /// Whether the numbers can be trusted.
    pub verdict: RunVerdict,
    /// What speaks against them.
    pub reasons: Vec<String>,
    /// Every request, in the order of their numbers.
    #[serde(skip)]
    pub records: Vec<RequestRecord>,
}

/// The program that measured.
#[derive(Debug, Clone, Serialize)]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The command that it was started with, without secrets; empty when it was not started by one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
}

impl Tool {
    /// This program, started by `command`.
    pub(crate) fn this(command: &str) -> Self {
        Self {
            command: command.to_owned(),
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// The server that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct TargetInfo {
    /// Base address, without credentials; of several servers the first.
    pub url: String,
    /// All base addresses.
    pub urls: Vec<String>,
    /// Path of the endpoint.
    pub endpoint: &'static str,
    /// Model that was asked for.
    pub model: String,
    /// What the server says about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_card: Option<serde_json::Value>,
    /// What the server says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<serde_json::Value>,
}

/// The load that was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Load {
    /// How requests arrived.
    pub arrival: Arrival,
    /// Measured requests after which the run stopped.
    pub requests: Option<u64>,
    /// Length of the window.
    pub duration_seconds: Option<f64>,
    /// Requests before the window.
    pub warmup: u64,
    /// Time before it, where that was given instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_seconds: Option<f64>,
    /// Seed of every draw.
    pub seed: u64,
    /// Prompt lengths as on the command line.
    pub prompt_tokens: String,
    /// Output lengths as on the command line.
    pub output_tokens: String,
    /// Questions in a conversation, where there can be more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turns: Option<String>,
    /// Whether answers were to go on after the end-of-sequence token.
    pub ignore_eos: bool,
    /// Sampling temperature.
    pub temperature: f64,
    /// Prefix cache policy.
    pub cache: Cache,
    /// How many words made a prompt.
    pub tokens_per_word: TokensPerWord,
    /// SHA-256 of the first 256 conversations without model name and nonce.
    pub workload_sha256: String,
}

/// The steady window.
#[derive(Debug, Clone, Serialize)]
pub struct WindowInfo {
    /// Its length.
    pub seconds: f64,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// The bound that ended it, where it was not stopped from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<Bound>,
    /// What grew from its beginning to its end beyond doubt: the server fell behind.
    pub growing: Vec<&'static str>,
}

/// Numbers of requests.
#[derive(Debug, Clone, Serialize)]
pub struct Requests {
    /// Planned inside the window.
    pub measured: u64,
    /// Successes among them.
    pub succeeded: u64,
    /// Failures among them.
    pub failed: u64,
    /// Planned before the window.
    pub warmup: u64,
    /// Planned after it.
    pub background: u64,
    /// Failures before and after the window.
    pub failed_outside: u64,
    /// Requests sent again because a reused connection had been closed under them.
    pub reconnects: u64,
}

/// How often a class occurred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutcomeCount {
    /// How often.
    pub count: u64,
    /// Why the first of them failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub first_detail: String,
}

/// Mean lengths in tokens, asked for and got.
#[derive(Debug, Clone, Serialize)]
pub struct LengthInfo {
    /// Prompt tokens aimed at.
    pub prompt_asked_mean: Option<f64>,
    /// Prompt tokens by usage.
    pub prompt_mean: Option<f64>,
    /// Prompt tokens from the prefix cache by usage.
    pub prompt_cached_mean: Option<f64>,
    /// Output tokens asked for.
    pub output_asked_mean: Option<f64>,
    /// Output tokens by usage.
    pub output_mean: Option<f64>,
}

/// What passed through the window, per second; failures carry no tokens.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Rates {
    /// Requests planned.
    pub offered_requests: f64,
    /// Requests whose first byte left.
    pub sent_requests: f64,
    /// Successes that ended.
    pub completed_requests: f64,
    /// Output tokens received.
    pub output_tokens: f64,
    /// Prompt tokens, credited at the first token of the answer.
    pub prompt_tokens: f64,
    /// Prompt tokens among them that came from the prefix cache.
    pub cached_prompt_tokens: f64,
    /// Output and prompt tokens.
    pub total_tokens: f64,
    /// Requests in flight, mean over time.
    pub in_flight_mean: f64,
    /// Most requests in flight at once.
    pub in_flight_max: u64,
}

/// Latencies of the measured successes.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// First token, from the planned start.
    pub ttft: Summary,
    /// First token, from the first byte sent.
    pub ttft_from_send: Summary,
    /// First token, with failures as infinitely slow.
    pub ttft_with_failures: Summary,
    /// Time per output token after the first, per request.
    pub tpot: Summary,
    /// Gap between token-bearing events.
    pub chunk_gap: Summary,
    /// The same as microseconds and counts, to be merged with those of other runs.
    pub chunk_gap_counts: Vec<(u64, u64)>,
    /// Token-bearing events per output token.
    pub events_per_token: Option<f64>,
    /// Whether a chunk gap may be called inter-token latency.
    pub chunk_gap_is_itl: bool,
    /// The longest gap of each request.
    pub longest_stall: Summary,
    /// End of the text, from the planned start.
    pub e2e: Summary,
    /// End of the text, with failures as infinitely slow.
    pub e2e_with_failures: Summary,
    /// End-to-end latency over output tokens, per request.
    pub normalised: Summary,
    /// From the end of the text to the end of the stream.
    pub tail: Summary,
}

/// One measured success; times in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct RequestSample {
    /// Planned start, from the beginning of the window.
    pub t: f64,
    /// First token, from the planned start.
    pub ttft: Option<f64>,
    /// Time per output token after the first.
    pub tpot: Option<f64>,
    /// End of the text, from the planned start.
    pub e2e: Option<f64>,
    /// Prompt tokens by usage.
    pub prompt_tokens: u64,
    /// Generated tokens by usage.
    pub output_tokens: u64,
    /// Prompt tokens from the prefix cache by usage.
    pub cached_tokens: u64,
    /// Conversation it belongs to.
    pub conversation: u64,
    /// Its place there, from zero.
    pub turn: u32,
}

fn samples(records: &[&RequestRecord], begin: Nanos) -> Vec<RequestSample> {
    let mut ordered: Vec<&RequestRecord> = records.to_vec();
    ordered.sort_by_key(|record| (record.t_plan, record.index));
    let sample = |record: &&RequestRecord| RequestSample {
        t: seconds(record.t_plan.saturating_sub(begin)),
        ttft: record.ttft().map(seconds),
        tpot: record.tpot().map(seconds),
        e2e: record.e2e().map(seconds),
        prompt_tokens: record.prompt_tokens(),
        output_tokens: record.output_tokens(),
        cached_tokens: record.cached_tokens(),
        conversation: record.conversation,
        turn: record.turn,
    };
    ordered.iter().map(sample).collect()
}

/// How well the client kept its plan.
#[derive(Debug, Clone, Serialize)]
pub struct ClientQuality {
    /// From the planned start to the first byte sent.
    pub send_lag: Summary,
    /// What its 99th percentile may be: 1 ms, or 1 % of the median TTFT.
    pub send_lag_limit: f64,
    /// Time spent opening connections, over requests that had to.
    pub connect: Summary,
    /// How late the client's runtime woke, looked at every 10 ms.
    pub runtime_lag: Summary,
    /// What its 99th percentile may be.
    pub runtime_lag_limit: f64,
    /// Processor time of the client, in cores. It reads all streams on one.
    pub cores: Option<f64>,
    /// What that may be.
    pub cores_limit: f64,
    /// Share of the token-bearing events that one read brought together with the one before: many of
    /// them are many at once from the server, or a client that reads late.
    pub bundled_events: Option<f64>,
    /// What the client can do by its self-test, against what the run needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_test: Option<SelfTested>,
}

/// Token events per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SelfTested {
    /// The most with which the client kept up before the run; none where it kept up with nothing.
    pub sustained_events_per_second: Option<f64>,
    /// What it read in the window, on average.
    pub used_events_per_second: f64,
}

impl SelfTested {
    fn new(sustained: Option<f64>, result: &RunResult) -> Self {
        let events = result.records.iter().map(|r| r.stream.events_in_window);
        let (start, end) = result.window;
        Self {
            sustained_events_per_second: sustained,
            used_events_per_second: events.sum::<u64>() as f64
                / seconds(end - start).max(f64::MIN_POSITIVE),
        }
    }
}

/// The server's side of the run.
#[derive(Debug, Clone, Serialize)]
pub struct ServerInfo {
    /// Why its counters could not be compared, none if they were.
    pub not_available: Option<String>,
    /// They were there before the run and could not be read after it.
    pub lost: bool,
    /// Whether its counters came to rest before and after the run.
    pub quiet: bool,
    /// Which server it is by its metrics.
    pub kind: Option<ServerKind>,
    /// What it says of its build in its metrics: device, precision.
    pub build: BTreeMap<String, String>,
    /// Its metrics over the run.
    pub timeline: Option<Timeline>,
    /// The comparisons.
    #[serde(flatten)]
    pub reconciliation: Reconciliation,
}

/// Whether the numbers of a run can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
    /// Computes the report.
    pub fn new(
        config: &Config,
        workload: &Workload,
        result: RunResult,
        server: ServerInfo,
        scene: Scene,
    ) -> Self {
        let records = &result.records;
        let measured: Vec<&RequestRecord> = records
            .iter()
            .filter(|r| r.phase == Phase::Measured)
            .collect();
        let outside: Vec<&RequestRecord> = records
            .iter()
            .filter(|r| r.phase != Phase::Measured)
            .collect();
        let good: Vec<&RequestRecord> = measured
            .iter()
            .copied()
            .filter(|r| r.outcome.is_success())
            .collect();
        let latency = Latency::new(&good, (measured.len() - good.len()) as u64);
        let mut client = ClientQuality::new(&measured, &latency, &result.effort);
        client.self_test = scene
            .self_test
            .map(|sustained| SelfTested::new(sustained, &result));
        let urls: Vec<String> = config.urls.iter().map(ToString::to_string).collect();
        let mut report = Self {
            schema: SCHEMA,
            kind: "run",
            name: config
                .name
                .clone()
                .unwrap_or_else(|| workload.model.clone()),
            started: scene.started,
            series: None,
            tool: Tool::this(&config.command),
            host: scene.host,
            target: TargetInfo {
                url: config.urls[0].to_string(),
                urls: urls.clone(),
                endpoint: workload.api.path(),
                model: workload.model.clone(),
                model_card: scene.model,
                version: scene.version,
            },
            load: Load::new(config, workload),
            window: WindowInfo {
                seconds: seconds(result.window.1 - result.window.0),
                stopped: result.stopped,
                gave_up: result.gave_up,
                growing: steady::growing(records, result.window, |part| in_flight(records, part).0),
            },
            requests: Requests::new(records),
            outcomes: outcomes(&measured),
            outcomes_outside: outcomes(&outside),
            lengths: LengthInfo::new(&good),
            rates: Rates::new(records, result.window),
            latency,
            parts: parts(&measured, &urls, &workload.contents),
            cost: None,
            goodput: config.slo.map(|slo| {
                Goodput::new(slo, &measured, seconds(result.window.1 - result.window.0))
            }),
            client,
            server,
            samples: samples(&good, result.window.0),
            verdict: RunVerdict::Valid,
            reasons: Vec::new(),
            records: Vec::new(),
        };
        let price = config.price.clone();
        report.cost = price.map(|price| Cost::new(price, report.goodput.as_ref(), &report.rates));
        report.judge();
        report.records = result.records;
        report
    }

    /// Planned start of the first request.
    pub fn origin(&self) -> Nanos {
        self.records.iter().map(|r| r.t_plan).min().unwrap_or(0)
    }

    /// Whether the run shows what it should: no failure and no mismatch.
    pub fn is_clean(&self) -> bool {
        self.requests.failed + self.requests.failed_outside == 0
            && self.verdict != RunVerdict::Invalid
    }

    fn judge(&mut self) {
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
                Some(bound) => format!("the run was ended early: {bound}"),
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

    /// Names what the sample is too small for, when that is more than the 99th percentile.
    fn too_short(&self) -> Option<String> {
        let n = self.latency.ttft.n;
        let least = min_samples(0.95);
        (n > 0 && n < least)
            .then(|| format!("{n} answers are too few for a 95th percentile, which takes {least}"))
    }
}

impl Load {
    fn new(config: &Config, workload: &Workload) -> Self {
        let contents = &workload.contents;
        let (prompt_tokens, output_tokens) = match &workload.trace {
            Some(_) => ("of the trace".to_owned(), "of the trace".to_owned()),
            None => (
                Described(contents, Content::prompt_words).to_string(),
                Described(contents, Content::output_words).to_string(),
            ),
        };
        let turns = contents.iter().any(Content::is_multi_turn);
        let (warmup, warmup_seconds) = match config.warmup {
            Warmup::Requests(requests) => (requests, None),
            Warmup::Time(time) => (0, Some(time.as_secs_f64())),
        };
        Self {
            arrival: config.arrival,
            requests: config.requests,
            duration_seconds: config.duration.map(|d| d.as_secs_f64()),
            warmup,
            warmup_seconds,
            seed: config.seed,
            prompt_tokens,
            output_tokens,
            turns: turns.then(|| Described(contents, |c| c.turns.to_string()).to_string()),
            ignore_eos: contents.iter().any(|content| content.ignore_eos),
            temperature: config.temperature,
            cache: config.cache,
            tokens_per_word: workload.tokens_per_word,
            workload_sha256: workload.digest(DIGESTED),
        }
    }
}

impl Requests {
    fn new(records: &[RequestRecord]) -> Self {
        let count = |predicate: &dyn Fn(&RequestRecord) -> bool| {
            records.iter().filter(|r| predicate(r)).count() as u64
        };
        let is_measured = |r: &RequestRecord| r.phase == Phase::Measured;
        Self {
            measured: count(&is_measured),
            succeeded: count(&|r| is_measured(r) && r.outcome.is_success()),
            failed: count(&|r| is_measured(r) && !r.outcome.is_success()),
            warmup: count(&|r| r.phase == Phase::Warmup),
            background: count(&|r| r.phase == Phase::Background),
            failed_outside: count(&|r| !is_measured(r) && !r.outcome.is_success()),
            reconnects: records.iter().map(|r| u64::from(r.reconnects)).sum(),
        }
    }
}

impl LengthInfo {
    fn new(good: &[&RequestRecord]) -> Self {
        let mean = |value: &dyn Fn(&RequestRecord) -> u64| {
            let total: u64 = good.iter().map(|r| value(r)).sum();
            (!good.is_empty()).then(|| total as f64 / good.len() as f64)
        };
        Self {
            prompt_asked_mean: mean(&|r| u64::from(r.asked_prompt_tokens)),
            prompt_mean: mean(&RequestRecord::prompt_tokens),
            prompt_cached_mean: mean(&RequestRecord::cached_tokens),
            output_asked_mean: mean(&|r| u64::from(r.asked_output_tokens)),
            output_mean: mean(&RequestRecord::output_tokens),
        }
    }
}

impl Rates {
    fn new(records: &[RequestRecord], window: (Nanos, Nanos)) -> Self {
        let (start, end) = window;
        let inside = |t: Nanos| t >= start && t < end;
        let length = seconds(end - start);
        let per_second = |amount: f64| if length > 0.0 { amount / length } else { 0.0 };
        let count = |predicate: &dyn Fn(&RequestRecord) -> bool| {
            per_second(records.iter().filter(|r| predicate(r)).count() as f64)
        };
        let good = || records.iter().filter(|r| r.outcome.is_success());
        let started = || good().filter(|r| r.stream.first_in_window);
        let output_tokens = per_second(good().map(RequestRecord::output_tokens_in_window).sum());
        let prompt_tokens =
            per_second(started().map(RequestRecord::prompt_tokens).sum::<u64>() as f64);
        let (in_flight_mean, in_flight_max) = in_flight(records, window);
        Self {
            offered_requests: count(&|r| inside(r.t_plan)),
            sent_requests: count(&|r| r.t_send.is_some_and(inside)),
            completed_requests: count(&|r| r.outcome.is_success() && inside(r.t_end)),
            output_tokens,
            prompt_tokens,
            cached_prompt_tokens: per_second(
                started().map(RequestRecord::cached_tokens).sum::<u64>() as f64,
            ),
            total_tokens: output_tokens + prompt_tokens,
            in_flight_mean,
            in_flight_max,
        }
    }
}

/// Requests between first byte sent and end, within the window: mean over time and maximum.
pub(crate) fn in_flight(records: &[RequestRecord], (start, end): (Nanos, Nanos)) -> (f64, u64) {
    let mut changes: Vec<(Nanos, i64)> = Vec::new();
    let mut busy: u128 = 0;
    for record in records {
        let (from, to) = (
            record.t_send.unwrap_or(Nanos::MAX).max(start),
            record.t_end.min(end),
        );
        if from < to {
            busy += u128::from(to - from);
            changes.extend([(from, 1), (to, -1)]);
        }
    }
    // At the same moment an end comes before a start.
    changes.sort_unstable();
    let mut now = 0;
    let max = changes.iter().fold(0, |max, (_, change)| {
        now += change;
        max.max(now)
    });
    let length = (end - start).max(1);
    (busy as f64 / length as f64, u64::try_from(max).unwrap_or(0))
}

impl Latency {
    fn new(good: &[&RequestRecord], failures: u64) -> Self {
        let sample = |value: fn(&RequestRecord) -> Option<Nanos>| -> Sample {
            good.iter().filter_map(|r| value(r)).collect()
        };
        let mut gaps = Gaps::default();
        good.iter()
            .flat_map(|r| &r.stream.gaps)
            .for_each(|gap| gaps.record(*gap));
        let events: u64 = good.iter().map(|r| r.stream.events).sum();
        let tokens: u64 = good.iter().map(|r| r.output_tokens()).sum();
        let events_per_token = (tokens > 0).then(|| events as f64 / tokens as f64);
        let (ttft, e2e) = (sample(RequestRecord::ttft), sample(RequestRecord::e2e));
        Self {
            ttft: ttft.summary(),
            ttft_from_send: sample(RequestRecord::ttft_from_send).summary(),
            ttft_with_failures: ttft.summary_with_failures(failures),
            tpot: sample(RequestRecord::tpot).summary(),
            chunk_gap: gaps.summary(),
            chunk_gap_counts: gaps.counts(),
            events_per_token,
            chunk_gap_is_itl: events_per_token.is_some_and(|ratio| ratio >= MIN_EVENTS_PER_TOKEN),
            longest_stall: sample(RequestRecord::longest_stall).summary(),
            e2e: e2e.summary(),
            e2e_with_failures: e2e.summary_with_failures(failures),
            normalised: sample(RequestRecord::normalised_latency).summary(),
            tail: sample(RequestRecord::tail).summary(),
        }
    }
}

impl ClientQuality {
    fn new(measured: &[&RequestRecord], latency: &Latency, effort: &Effort) -> Self {
        let sum = |value: fn(&RequestRecord) -> u64| measured.iter().map(|r| value(r)).sum::<u64>();
        let events = sum(|r| r.stream.events);
        let bundled = sum(|r| r.stream.bundled);
        let send_lag: Sample = measured.iter().filter_map(|r| r.send_lag()).collect();
        let connect: Sample = measured
            .iter()
            .map(|r| r.connect)
            .filter(|t| *t > 0)
            .collect();
        let median = if let Percentile::Seconds(median) = latency.ttft.p50 {
            median
        } else {
            0.0
        };
        Self {
            send_lag: send_lag.summary(),
            send_lag_limit: (median * 0.01).max(SEND_LAG_FLOOR),
            connect: connect.summary(),
            runtime_lag: effort.lags.iter().copied().collect::<Sample>().summary(),
            runtime_lag_limit: RUNTIME_LAG_LIMIT,
            cores: effort.cores,
            cores_limit: CORES_LIMIT,
            bundled_events: (events > 0).then(|| bundled as f64 / events as f64),
            self_test: None,
        }
    }

    /// Whether the client, and not the server, may be what was measured.
    pub fn may_be_the_bottleneck(&self) -> bool {
        self.is_late() || self.is_sluggish() || self.is_busy() || self.is_beyond_its_test()
    }

    /// Whether the client's runtime woke too late to stamp what it read.
    fn is_sluggish(&self) -> bool {
        matches!(self.runtime_lag.p99, Percentile::Seconds(p99) if p99 > self.runtime_lag_limit)
    }

    /// Whether the run had more events than those with which the client had kept up.
    fn is_beyond_its_test(&self) -> bool {
        self.self_test.is_some_and(|test| {
            let sustained = test.sustained_events_per_second;
            sustained.is_some_and(|sustained| test.used_events_per_second > sustained)
        })
    }

    /// Whether the client used more of its processor than leaves it in time.
    fn is_busy(&self) -> bool {
        self.cores.is_some_and(|cores| cores > self.cores_limit)
    }

    /// Whether the client's own delay is more than a small share of what it measured: the 99th
    /// percentile of its send lag, or without one its maximum, exceeds the limit.
    pub fn is_late(&self) -> bool {
        let worst = match self.send_lag.p99 {
            Percentile::Seconds(p99) => Some(p99),
            _ => self.send_lag.max,
        };
        worst.is_some_and(|worst| worst > self.send_lag_limit)
    }
}

fn outcomes(records: &[&RequestRecord]) -> BTreeMap<String, OutcomeCount> {
    let mut classes: BTreeMap<String, OutcomeCount> = BTreeMap::new();
    for record in records {
        classes
            .entry(record.outcome.name().into_owned())
            .or_insert_with(|| OutcomeCount {
                count: 0,
                first_detail: record.detail.clone(),
            })
            .count += 1;
    }
    classes
}

#[cfg(test)]
mod tests;
