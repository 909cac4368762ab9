//! The results of a run: everything that is printed and everything that goes into the JSON file,
//! computed from the records alone. Field order is that of the file; times are in seconds.

mod client;
mod judge;
mod latency;
mod traffic;
mod without_delay;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::args::{Cache, Warmup};
use crate::arrival::Arrival;
use crate::calibration::Calibration;
use crate::clock::{Nanos, seconds};
use crate::config::Config;
use crate::content::{Content, Described};
use crate::cost::Cost;
use crate::driver::RunResult;
use crate::give_up::Early;
use crate::gpu_watch::GpuLoad;
use crate::metric_map::ServerKind;
use crate::parts::{Part, parts};
use crate::reconcile::Reconciliation;
use crate::record::{Phase, RequestRecord};
use crate::scene::{Host, Scene, Series};
use crate::scrapes::Scrapes;
use crate::server_times::ServerTimes;
use crate::slo::Goodput;
use crate::steady;
use crate::timeline::{InWindow, Timeline};
use crate::workload::{TokensPerWord, Workload};
pub use client::{ClientQuality, Lags, SelfTested};
pub use judge::RunVerdict;
pub use latency::{FailureSample, Latency, RequestSample};
use latency::{failures, samples};
pub(crate) use traffic::in_flight;
pub use traffic::{LengthInfo, Rates, Requests};
pub use without_delay::WithoutDelay;

/// Version of the JSON file's schema.
pub const SCHEMA: u32 = 1;
/// Conversations that the digest of a run covers: as many of every run, however far it came.
const DIGESTED: u64 = 256;

/// The results of a run.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// Version of the schema.
    #[cfg_attr(test, schemars(extend("const" = SCHEMA)))]
    pub schema: u32,
    /// What the file describes.
    #[cfg_attr(test, schemars(extend("const" = "run")))]
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
    /// Attempts of any phase that another one followed, by class.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outcomes_retried: BTreeMap<String, OutcomeCount>,
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
    /// The same without the client's own delay, where that was too large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_client_delay: Option<WithoutDelay>,
    /// What that costs, where the price of an hour was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// What the machine was before and after the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Its GPUs over the window.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuLoad>,
    /// How well the client kept its plan.
    pub client: ClientQuality,
    /// The server's side.
    pub server: ServerInfo,
    /// The measured successes one by one, in the order of their planned starts.
    pub samples: Vec<RequestSample>,
    /// The measured failures one by one, in the same order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureSample>,
    /// Whether the numbers can be trusted.
    pub verdict: RunVerdict,
    /// What speaks against them.
    pub reasons: Vec<String>,
    /// Every request, in the order of their numbers.
    #[serde(skip)]
    pub records: Vec<RequestRecord>,
    /// What the server's metrics were meanwhile.
    #[serde(skip)]
    pub scrapes: Option<Scrapes>,
    /// The load as a workload file.
    #[serde(skip)]
    pub workload: String,
}

/// The program that measured.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The command that it was started with, without secrets; empty when it was not started by one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub command: String,
    /// Whether models were stand-ins, so that the numbers measure nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// What the suite that this is part of leaves out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
}

/// What the budget of a suite leaves out of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Cut {
    /// The budget.
    pub budget_seconds: f64,
    /// The cells and comparisons for which it has no room.
    pub left_out: Vec<String>,
}

impl Cut {
    /// As a sentence.
    pub fn words(&self) -> String {
        let time = match self.budget_seconds {
            short if short < 120.0 => format!("{short:.0} seconds"),
            long => format!("{:.0} minutes", long / 60.0),
        };
        let left_out = self.left_out.join(", ");
        format!("The suite was given {time}, which leave out: {left_out}.")
    }
}

impl Tool {
    /// This program as a run was configured.
    pub(crate) fn of(config: &Config) -> Self {
        Self {
            dry_run: config.dry_run,
            cut: config.cut.clone(),
            ..Self::this(&config.command)
        }
    }

    /// This program, started by `command`.
    pub(crate) fn this(command: &str) -> Self {
        Self {
            dry_run: false,
            cut: None,
            command: command.to_owned(),
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// The server that was measured.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// How a suite started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// The load that was asked for.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Load {
    /// How requests arrived.
    pub arrival: Arrival,
    /// Measured requests after which the run stopped.
    pub requests: Option<u64>,
    /// Requests that left in the time that the rate says, where their number was to be exact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_count: Option<u64>,
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
    /// How many words made a prompt, where that was aimed at.
    pub tokens_per_word: TokensPerWord,
    /// What the lengths of prompts rest on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lengths_by: Option<LengthsBy>,
    /// Fields that the server refused, so that they were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped_fields: Vec<&'static str>,
    /// SHA-256 of the first 256 conversations without model name and nonce.
    pub workload_sha256: String,
}

/// What the lengths of prompts of random words rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LengthsBy {
    /// Tokens that are given as such: they are exact by construction.
    TokenIds,
    /// The server's tokenizer: they are exact.
    Tokenizer,
    /// The usage of two answers: they are aimed at.
    Usage,
    /// A flag.
    Flag,
    /// Nothing: one token for each word.
    Assumption,
}

/// The steady window.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WindowInfo {
    /// Its length.
    pub seconds: f64,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// The bound that ended it, where it was not stopped from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gave_up: Option<Early>,
    /// What grew from its beginning to its end beyond doubt: the server fell behind.
    pub growing: Vec<&'static str>,
}

/// How often a class occurred.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutcomeCount {
    /// How often.
    pub count: u64,
    /// Why the first of them failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub first_detail: String,
}

/// The server's side of the run.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// What it counted from the beginning of the window to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_window: Option<InWindow>,
    /// Its own histograms of times.
    #[serde(skip_serializing_if = "ServerTimes::is_empty")]
    pub times: ServerTimes,
    /// The comparisons.
    #[serde(flatten)]
    pub reconciliation: Reconciliation,
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
            .filter(|r| matches!(r.phase, Phase::Warmup | Phase::Background))
            .collect();
        let retried: Vec<&RequestRecord> = records
            .iter()
            .filter(|r| r.phase == Phase::Retried)
            .collect();
        let good: Vec<&RequestRecord> = measured
            .iter()
            .copied()
            .filter(|r| r.outcome.is_success())
            .collect();
        let latency = Latency::new(&good, (measured.len() - good.len()) as u64);
        let mut client = ClientQuality::new(&measured, &latency, &result.effort, result.window);
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
            tool: Tool::of(config),
            host: scene.host,
            target: TargetInfo {
                url: config.urls[0].to_string(),
                urls: urls.clone(),
                endpoint: workload.api.path(),
                model: workload.model.clone(),
                model_card: scene.model,
                version: scene.version,
                command: config.server_command.clone(),
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
            outcomes_retried: outcomes(&retried),
            lengths: LengthInfo::new(&good),
            rates: Rates::new(records, result.window),
            latency,
            parts: parts(&measured, &urls, &workload.contents),
            cost: None,
            goodput: config.slo.map(|slo| {
                Goodput::new(slo, &measured, seconds(result.window.1 - result.window.0))
            }),
            without_client_delay: config.slo.filter(|_| client.may_be_the_bottleneck()).map(
                |slo| {
                    let early = result.gave_up;
                    WithoutDelay::new(slo, records, result.window, early, client.delays())
                },
            ),
            calibration: scene.calibration,
            gpus: scene.gpus,
            client,
            server,
            samples: samples(&good, result.window.0),
            failures: failures(&measured, result.window.0),
            verdict: RunVerdict::Valid,
            reasons: Vec::new(),
            records: Vec::new(),
            scrapes: None,
            workload: String::new(),
        };
        if let (Arrival::Closed { .. }, Some(e2e)) = (config.arrival, report.latency.e2e.mean) {
            report.rates.users_by_little = Some(report.rates.completed_requests * e2e);
        }
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
        let (warmup, warmup_seconds) = match config.warmup() {
            Warmup::Requests(requests) => (requests, None),
            Warmup::Time(time) => (0, Some(time.as_secs_f64())),
        };
        Self {
            arrival: config.arrival,
            requests: config.requests,
            exact_count: config.exact_count(),
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
            lengths_by: None,
            dropped_fields: Vec::new(),
            workload_sha256: workload.digest(DIGESTED),
        }
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
pub(crate) mod tests;
