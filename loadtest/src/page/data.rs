//! The parts of a result file that a page shows.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::arrival::RampShape;

/// The schema this page reads.
const SCHEMA: u32 = 1;

/// One run.
#[derive(Debug, Clone, Deserialize)]
pub struct Run {
    /// The file's name without its ending.
    #[serde(skip)]
    pub name: String,
    schema: u32,
    pub target: Target,
    pub load: Load,
    pub window: Window,
    pub requests: Requests,
    pub outcomes: BTreeMap<String, Outcome>,
    pub lengths: Lengths,
    pub rates: Rates,
    pub latency: Latency,
    pub client: Client,
    pub server: Server,
    #[serde(default)]
    pub samples: Vec<Sample>,
    pub verdict: String,
    pub reasons: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Target {
    pub url: String,
    pub endpoint: String,
    pub model: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Load {
    pub arrival: Arrival,
    pub requests: Option<u64>,
    pub duration_seconds: Option<f64>,
    pub warmup: u64,
    pub seed: u64,
    pub prompt_tokens: serde_json::Value,
    pub output_tokens: serde_json::Value,
    pub ignore_eos: bool,
    pub temperature: f64,
    pub workload_sha256: String,
}

/// How requests came.
#[derive(Debug, Clone, Deserialize)]
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
    pub succeeded: u64,
    pub failed: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    pub count: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Lengths {
    pub prompt_mean: Option<f64>,
    pub output_mean: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Rates {
    pub completed_requests: f64,
    pub output_tokens: f64,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Latency {
    pub ttft: Summary,
    pub tpot: Summary,
    pub chunk_gap: Summary,
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
}

#[derive(Debug, Clone, Deserialize)]
pub struct Server {
    pub not_available: Option<String>,
    #[serde(default)]
    pub checks: Vec<Check>,
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

impl Run {
    /// Reads a result file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .file_stem()
            .map(|name| name.to_string_lossy().into_owned());
        Self::parse(&text, name.unwrap_or_default())
            .with_context(|| format!("{} is not the result of a run", path.display()))
    }

    /// Parses the text of one.
    pub fn parse(text: &str, name: String) -> Result<Self> {
        let mut run: Self = serde_json::from_str(text)?;
        if run.schema != SCHEMA {
            bail!("schema {} instead of {SCHEMA}", run.schema);
        }
        run.name = name;
        Ok(run)
    }

    /// The command that asks for the same load.
    pub fn command(&self) -> String {
        let load = &self.load;
        let mut words = vec![
            "loadtest".to_owned(),
            "--url".into(),
            self.target.url.clone(),
        ];
        let mut flag = |name: &str, value: String| words.extend([name.to_owned(), value]);
        match &load.arrival {
            Arrival::Closed { users } => flag("--users", users.to_string()),
            Arrival::Poisson { rate } => flag("--rate", rate.to_string()),
            Arrival::Gamma { rate, burstiness } => {
                flag("--rate", rate.to_string());
                flag("--burstiness", burstiness.to_string());
            }
            Arrival::Constant { rate } => {
                flag("--rate", rate.to_string());
                flag("--arrival", "constant".into());
            }
            Arrival::Ramp { from, to, shape } => {
                flag("--rate", from.to_string());
                flag("--ramp-to", to.to_string());
                if *shape == RampShape::Exponential {
                    flag("--ramp", "exponential".into());
                }
            }
            Arrival::Trace { speed, .. } => {
                flag("--trace", "FILE".into());
                flag("--trace-speed", speed.to_string());
            }
        }
        if let Some(requests) = load.requests {
            flag("--requests", requests.to_string());
        }
        if let Some(seconds) = load.duration_seconds {
            flag("--duration", format!("{seconds}s"));
        }
        if load.warmup > 0 {
            flag("--warmup", load.warmup.to_string());
        }
        flag("--prompt-tokens", plain(&load.prompt_tokens));
        flag("--output-tokens", plain(&load.output_tokens));
        flag("--seed", load.seed.to_string());
        if load.temperature > 0.0 {
            flag("--temperature", load.temperature.to_string());
        }
        if load.ignore_eos {
            words.push("--ignore-eos".to_owned());
        }
        words.join(" ")
    }
}

impl Arrival {
    /// For a sentence.
    pub fn words(&self) -> String {
        match self {
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

impl Check {
    /// One number, or the range that failures leave open.
    pub fn client_words(&self) -> String {
        match self.client {
            (low, Some(high)) if low == high => number(low),
            (low, Some(high)) => format!("{} to {}", number(low), number(high)),
            (low, None) => format!("at least {}", number(low)),
        }
    }
}

fn plain(value: &serde_json::Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// Three or four digits, as people read numbers.
pub fn number(value: f64) -> String {
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
