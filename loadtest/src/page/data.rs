//! The parts of a result file that a page shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::arrival::RampShape;
use crate::calibration::Calibration;
use crate::gpu_watch::GpuLoad;
use crate::report::Cut;
use crate::report::{Lags, LengthsBy};
use crate::results::RUN;
use crate::scene::{Host, Series};
use crate::server_times::{Buckets, Stages};
use crate::tokenizer::Retokenised;

/// The schema this page reads.
const SCHEMA: u32 = 1;

/// One run.
#[derive(Debug, Clone, Deserialize)]
pub struct Run {
    /// What it is called: by its result, else by its file.
    #[serde(default)]
    pub name: String,
    /// Where its own page is, seen from the page that is made.
    #[serde(skip)]
    pub link: Option<String>,
    /// Its folder, or its file where it has none.
    #[serde(skip)]
    pub place: PathBuf,
    schema: u32,
    #[serde(default)]
    pub started: String,
    pub series: Option<Series>,
    #[serde(default)]
    pub host: Host,
    #[serde(default)]
    pub tool: Tool,
    pub goodput: Option<Goodput>,
    pub cost: Option<Cost>,
    pub target: Target,
    pub load: Load,
    pub window: Window,
    pub requests: Requests,
    pub outcomes: BTreeMap<String, Outcome>,
    /// Attempts that were sent again; none of a run of an earlier version.
    #[serde(default)]
    pub outcomes_retried: BTreeMap<String, Outcome>,
    pub lengths: Lengths,
    pub rates: Rates,
    pub latency: Latency,
    pub calibration: Option<Calibration>,
    #[serde(default)]
    pub gpus: Vec<GpuLoad>,
    pub client: Client,
    pub server: Server,
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// None of a run of an earlier version.
    #[serde(default)]
    pub failures: Vec<Failure>,
    pub verdict: String,
    pub reasons: Vec<String>,
}

/// The program that measured.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Tool {
    pub version: String,
    pub command: String,
    pub dry_run: bool,
    pub cut: Option<Cut>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Target {
    pub url: String,
    pub endpoint: String,
    pub model: String,
    pub version: Option<serde_json::Value>,
    pub model_card: Option<serde_json::Value>,
    pub command: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Goodput {
    pub slo: Option<Limits>,
    pub requests_per_second: f64,
    pub attainment: Share,
}

/// Limits of a good request, in seconds.
#[derive(Debug, Clone, Deserialize)]
pub struct Limits {
    pub ttft_seconds: Option<f64>,
    pub tpot_seconds: Option<f64>,
    pub stall_seconds: Option<f64>,
    pub e2e_seconds: Option<f64>,
    pub attainment: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Cost {
    pub price: Price,
    pub not_stated: Option<String>,
    pub uses: Vec<Use>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Price {
    pub per_hour: f64,
    pub note: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Use {
    pub share: f64,
    pub per_million_output_tokens: f64,
    pub per_million_total_tokens: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Share {
    pub value: Option<f64>,
    pub low: f64,
    pub high: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Load {
    pub arrival: Arrival,
    pub seed: u64,
    pub prompt_tokens: serde_json::Value,
    pub output_tokens: serde_json::Value,
    pub ignore_eos: bool,
    pub temperature: f64,
    pub lengths_by: Option<LengthsBy>,
    pub workload_sha256: String,
}

/// How requests came.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Arrival {
    Closed {
        users: u64,
    },
    Poisson {
        rate: f64,
    },
    Gamma {
        rate: f64,
        burstiness: f64,
    },
    Constant {
        rate: f64,
    },
    Ramp {
        from: f64,
        to: f64,
        shape: RampShape,
    },
    Trace {
        requests: u64,
        speed: f64,
    },
}

#[derive(Debug, Clone, Deserialize)]
pub struct Window {
    pub seconds: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Requests {
    pub measured: u64,
    pub failed: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    pub count: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Lengths {
    /// None of a run of an earlier version, as the next.
    pub prompts_as_asked: Option<u64>,
    pub prompt_off_max: Option<u64>,
    pub retokenised: Option<Retokenised>,
    pub prompt_mean: Option<f64>,
    pub output_mean: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Rates {
    pub offered_requests: Option<f64>,
    pub completed_requests: f64,
    pub output_tokens: f64,
    /// None of a run of an earlier version, as the next.
    pub sent_requests: Option<f64>,
    pub prompt_tokens: Option<f64>,
    pub cached_prompt_tokens: Option<f64>,
    pub in_flight_mean: Option<f64>,
    pub in_flight_max: Option<f64>,
    pub users_by_little: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Latency {
    pub ttft: Summary,
    /// Where it is later than that.
    pub ttfo: Option<Summary>,
    pub tpot: Summary,
    pub chunk_gap: Summary,
    /// Microseconds and counts.
    #[serde(default)]
    pub chunk_gap_counts: Vec<(u64, u64)>,
    pub longest_stall: Summary,
    pub e2e: Summary,
}

/// Seconds; none where the sample cannot carry the figure.
#[derive(Debug, Clone, Deserialize)]
pub struct Summary {
    pub n: u64,
    pub mean: Option<f64>,
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Client {
    pub send_lag: Summary,
    pub send_lag_limit: Option<f64>,
    pub runtime_lag: Option<Summary>,
    pub runtime_lag_limit: Option<f64>,
    pub lags: Option<Lags>,
    pub self_test: Option<SelfTested>,
}

/// Token events per second that the client could read, and those that it did.
#[derive(Debug, Clone, Deserialize)]
pub struct SelfTested {
    pub sustained_events_per_second: Option<f64>,
    pub used_events_per_second: f64,
}

impl SelfTested {
    /// For a list of facts.
    pub fn words(&self) -> String {
        let used = number(self.used_events_per_second);
        match self.sustained_events_per_second {
            Some(most) if self.used_events_per_second <= most => format!(
                "was not the bottleneck: it read {used} token events a second and had kept up with {} before",
                number(most)
            ),
            Some(most) => format!(
                "may be the bottleneck: it read {used} token events a second and had kept up with {} before",
                number(most)
            ),
            None => format!(
                "read {used} token events a second, and had kept up with no load in its test before: the machine was busy"
            ),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
pub struct Server {
    pub not_available: Option<String>,
    #[serde(default)]
    pub build: BTreeMap<String, String>,
    #[serde(default)]
    pub checks: Vec<Check>,
    pub timeline: Option<Timeline>,
    pub in_window: Option<InWindow>,
    #[serde(default)]
    pub times: Times,
}

/// What the server counted between two scrapes, and the means of what its histograms observed.
#[derive(Debug, Clone, Deserialize)]
pub struct InWindow {
    pub from: f64,
    pub to: f64,
    pub grown: BTreeMap<String, f64>,
    pub means: BTreeMap<String, f64>,
}

/// What the server's own histograms said; a run of an earlier version has none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Times {
    pub ttft: Option<Buckets>,
    pub itl: Option<Buckets>,
    pub stages: Option<Stages>,
}

/// What the server said of itself over the run; `t` is in seconds after the beginning of the window.
#[derive(Debug, Clone, Deserialize)]
pub struct Timeline {
    pub t: Vec<f64>,
    pub series: BTreeMap<String, Vec<Option<f64>>>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Check {
    pub id: String,
    pub what: String,
    pub client: (f64, Option<f64>),
    pub server: Option<f64>,
    pub verdict: String,
}

/// One measured request that succeeded; times in seconds.
#[derive(Debug, Clone, Deserialize)]
pub struct Sample {
    pub t: f64,
    pub ttft: Option<f64>,
    pub tpot: Option<f64>,
    pub e2e: Option<f64>,
    pub prompt_tokens: u64,
}

/// One measured request that failed, at a time in seconds.
#[derive(Debug, Clone, Deserialize)]
pub struct Failure {
    pub t: f64,
}

impl Run {
    /// Reads a result file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned());
        let mut run = Self::parse(&text, name.unwrap_or_default())
            .with_context(|| format!("{} is not the result of a run", path.display()))?;
        let is_in_a_folder = path.file_name().is_some_and(|name| name == RUN);
        run.place = match path.parent() {
            Some(folder) if is_in_a_folder => folder.to_owned(),
            _ => path.to_owned(),
        };
        Ok(run)
    }

    /// Parses the text of one.
    pub fn parse(text: &str, name: String) -> Result<Self> {
        let mut run: Self = serde_json::from_str(text)?;
        if run.schema != SCHEMA {
            bail!("schema {} instead of {SCHEMA}", run.schema);
        }
        if run.name.is_empty() {
            run.name = name;
        }
        Ok(run)
    }

    /// Whether its numbers count.
    pub fn is_valid(&self) -> bool {
        self.verdict != "invalid"
    }

    /// What its repeats have in common with it; empty for a run on its own.
    pub fn series_id(&self) -> String {
        self.series
            .as_ref()
            .map_or_else(String::new, |s| s.id.clone())
    }

    /// Which side of a comparison it is of.
    pub fn side(&self) -> u32 {
        self.series.as_ref().map_or(0, |s| s.side)
    }

    /// Its number among its repeats.
    pub fn repeat(&self) -> u32 {
        self.series.as_ref().map_or(0, |s| s.repeat)
    }

    /// Whether it stands in a folder beside its repeats.
    pub fn is_repeated(&self) -> bool {
        self.series.as_ref().is_some_and(|s| s.of > 1)
    }

    /// Whether both are runs of one configuration.
    pub fn is_repeat_of(&self, other: &Self) -> bool {
        self.series_id() == other.series_id() && self.side() == other.side()
    }

    /// Whether both were made one after the other to be compared.
    pub fn is_pair_of(&self, other: &Self) -> bool {
        self.series.is_some()
            && self.series_id() == other.series_id()
            && self.side() != other.side()
            && self.repeat() == other.repeat()
    }
}

impl Arrival {
    /// Whether a slow server gets less load.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }

    /// How many users a closed loop has.
    pub fn users(&self) -> Option<u64> {
        match self {
            Self::Closed { users } => Some(*users),
            _ => None,
        }
    }

    /// Requests per second, where that is one number.
    pub fn rate(&self) -> Option<f64> {
        match *self {
            Self::Poisson { rate } | Self::Gamma { rate, .. } | Self::Constant { rate } => {
                Some(rate)
            }
            Self::Closed { .. } | Self::Ramp { .. } | Self::Trace { .. } => None,
        }
    }

    /// For a table.
    pub fn brief(&self) -> String {
        match self {
            Self::Closed { users: 1 } => "1 user".to_owned(),
            Self::Closed { users } => format!("{users} users"),
            Self::Poisson { rate } => format!("{} /s, Poisson", number(*rate)),
            Self::Gamma { rate, .. } => format!("{} /s, in bursts", number(*rate)),
            Self::Constant { rate } => format!("{} /s, constant", number(*rate)),
            Self::Ramp { from, to, .. } => format!("{} to {} /s", number(*from), number(*to)),
            Self::Trace { requests, .. } => format!("a trace of {requests}"),
        }
    }

    /// For a sentence.
    pub fn words(&self) -> String {
        match self {
            Self::Closed { users: 1 } => "1 user with one request at a time".to_owned(),
            Self::Closed { users } => format!("{users} users, each with one request at a time"),
            Self::Poisson { rate } => format!("{} requests a second at random", number(*rate)),
            Self::Gamma { rate, burstiness } => format!(
                "{} requests a second in bursts (burstiness {})",
                number(*rate),
                number(*burstiness)
            ),
            Self::Constant { rate } => format!("{} requests a second, evenly", number(*rate)),
            Self::Ramp { from, to, .. } => {
                format!("{} to {} requests a second", number(*from), number(*to))
            }
            Self::Trace { requests, speed } => format!(
                "a recorded trace of {requests} requests at {} times its speed",
                number(*speed)
            ),
        }
    }
}

pub fn plain(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Three or four digits, as people read numbers.
pub fn number(value: f64) -> String {
    // An empty sum of floats is minus zero.
    let value = value + 0.0;
    let size = value.abs();
    match size {
        _ if value.fract() == 0.0 && size < 1e15 => format!("{value:.0}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A time for people.
pub fn milliseconds(seconds: Option<f64>) -> String {
    match seconds {
        None => "–".to_owned(),
        Some(s) if s >= 10.0 => format!("{s:.1} s"),
        Some(s) if s >= 1.0 => format!("{s:.2} s"),
        Some(s) if s >= 0.1 => format!("{:.0} ms", s * 1e3),
        Some(s) if s >= 0.001 => format!("{:.1} ms", s * 1e3),
        Some(s) => format!("{:.0} µs", s * 1e6),
    }
}
