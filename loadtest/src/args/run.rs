//! Flags of a run.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use super::DEFAULT_URL;
use super::values::{duration, rate, temperature};
use crate::arrival::RampShape;
use crate::lengths::Lengths;
use crate::metric_map::ServerKind;
use crate::slo::Slo;
use crate::think::Think;
use crate::workload::Api;

/// Flags of a run.
#[derive(Debug, Clone, Parser)]
#[command(group(ArgGroup::new("loop").args(["users", "rate", "trace"])))]
pub struct Args {
    /// Address of the server, with or without /v1; given several times, conversations take turns
    #[arg(
        long,
        value_name = "URL",
        default_value = DEFAULT_URL,
        help_heading = "Target"
    )]
    pub url: Vec<String>,
    /// Key sent as a bearer token
    #[arg(
        long,
        value_name = "KEY",
        env = "LOADTEST_API_KEY",
        hide_env_values = true,
        help_heading = "Target"
    )]
    pub api_key: Option<String>,
    /// Model to ask for [default: the first that /v1/models lists]
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    pub model: Option<String>,
    /// Endpoint to call: chat or completions [default: chat]
    #[arg(
        long,
        value_enum,
        value_name = "API",
        hide_possible_values = true,
        help_heading = "Target"
    )]
    pub api: Option<Api>,
    /// Address of a server's metrics, once for each server [default: /metrics of each]
    #[arg(long, value_name = "URL", help_heading = "Target")]
    pub metrics_url: Vec<String>,
    /// Whose metrics they are: octet, vllm, sglang, llamacpp or tgi [default: by their names]
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        hide_possible_values = true,
        help_heading = "Target"
    )]
    pub target_kind: Option<ServerKind>,

    /// Closed loop: this many users, each with one request at a time [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = "Load")]
    pub users: Option<u32>,
    /// Open loop: this many requests per second, whatever becomes of them
    #[arg(long, value_name = "R", value_parser = rate, help_heading = "Load")]
    pub rate: Option<f64>,
    /// Open loop: times and lengths of a recorded trace (Mooncake, Azure or BurstGPT format)
    #[arg(long, value_name = "FILE", help_heading = "Load")]
    pub trace: Option<PathBuf>,
    /// A file that describes the load; flags go before it
    #[arg(long, value_name = "FILE", help_heading = "Load")]
    pub workload: Option<PathBuf>,
    /// Gaps between requests of --rate: poisson, gamma or constant [default: poisson]
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        requires = "rate",
        hide_possible_values = true,
        help_heading = "Load"
    )]
    pub arrival: Option<ArrivalKind>,
    /// Shape of gamma arrivals: 1 is Poisson, less comes in bursts
    #[arg(long, value_name = "K", value_parser = rate, requires = "rate", help_heading = "Load")]
    pub burstiness: Option<f64>,
    /// Scale the gaps of --rate so that as many requests leave as it says for the time, as vLLM's benchmark does: their
    /// number then varies less than that of a Poisson process
    #[arg(
        long,
        requires = "rate",
        conflicts_with = "ramp_to",
        help_heading = "Load"
    )]
    pub exact_count: bool,
    /// Let the rate go from --rate to this one over --duration, to explore
    #[arg(long, value_name = "R", value_parser = rate, requires = "rate", help_heading = "Load")]
    pub ramp_to: Option<f64>,
    /// How it gets there: linear or exponential [default: linear]
    #[arg(
        long,
        value_enum,
        value_name = "SHAPE",
        requires = "ramp_to",
        hide_possible_values = true,
        help_heading = "Load"
    )]
    pub ramp: Option<RampShape>,
    /// Play a trace so many times faster
    #[arg(long, value_name = "X", value_parser = rate, requires = "trace", help_heading = "Load")]
    pub trace_speed: Option<f64>,
    /// Closed loop: let the users start one after the other over this time
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["rate", "trace"], help_heading = "Load")]
    pub ramp_up: Option<Duration>,
    /// Stop after this many measured requests [default: 100 without --duration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    pub requests: Option<u64>,
    /// Measure for this long (10s, 2m); load goes on until the last measured request has ended
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Load")]
    pub duration: Option<Duration>,
    /// Requests, or a time, before the measured ones, left out of every latency [default: one request
    /// of each user when there are several]
    #[arg(long, value_name = "N|TIME", help_heading = "Load")]
    pub warmup: Option<Warmup>,
    /// Seed of arrivals, lengths and words
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub seed: u64,
    /// Open loop: beyond this many in flight a request is shed, which fails the run
    #[arg(long, value_name = "N", default_value_t = 4096, help_heading = "Load")]
    pub max_in_flight: usize,

    /// Prompt length in tokens [default: 64]
    #[arg(long, value_name = "LENGTHS", help_heading = "Requests")]
    pub prompt_tokens: Option<Lengths>,
    /// Output length in tokens, the request's max_tokens [default: 64, of a dataset as recorded]
    #[arg(long, value_name = "LENGTHS", help_heading = "Requests")]
    pub output_tokens: Option<Lengths>,
    /// Prompts of a file: ShareGPT's format, or JSON lines of messages
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt_tokens", "trace"], help_heading = "Requests")]
    pub dataset: Option<PathBuf>,
    /// Leave out conversations of a dataset with a longer text; cut the prompts of a trace
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Requests")]
    pub max_prompt_tokens: Option<u32>,
    /// Questions in a conversation, each sent with the answers before it [default: 1]
    #[arg(
        long,
        value_name = "LENGTHS",
        conflicts_with = "trace",
        help_heading = "Requests"
    )]
    pub turns: Option<Lengths>,
    /// Pause before a next question: 2s, lognormal:median=2s,p95=8s
    #[arg(
        long,
        value_name = "TIME",
        conflicts_with = "trace",
        help_heading = "Requests"
    )]
    pub think: Option<Think>,
    /// Go on with the answers of the dataset instead of the server's
    #[arg(long, requires = "dataset", help_heading = "Requests")]
    pub replay_recorded: bool,
    /// Begin every conversation with this many tokens that its group shares
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "trace", help_heading = "Requests")]
    pub prefix_tokens: Option<u32>,
    /// Number of such groups [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "prefix_tokens", help_heading = "Requests")]
    pub prefix_groups: Option<u32>,
    /// Ask the server to go on to the full output length (an extension of most servers)
    #[arg(long, help_heading = "Requests")]
    pub ignore_eos: bool,
    /// Sampling temperature; above zero each request gets its own seed [default: 0]
    #[arg(long, value_name = "T", value_parser = temperature, help_heading = "Requests")]
    pub temperature: Option<f64>,
    /// cold: prompts start with words of this run; shared: with words of this run that differ by group; warm: an earlier run
    /// may have filled the cache [default: cold]
    #[arg(
        long,
        value_enum,
        value_name = "CACHE",
        hide_possible_values = true,
        help_heading = "Requests"
    )]
    pub cache: Option<Cache>,
    /// Tokens per word of the prompts [default: exact lengths where the server has /tokenize, else as two
    /// short requests tell]
    #[arg(long, value_name = "X", value_parser = rate, help_heading = "Requests")]
    pub tokens_per_word: Option<f64>,

    /// Limits of a good request, such as ttft=1s,tpot=80ms,attainment=0.99
    #[arg(long, value_name = "SLO", help_heading = "Objectives")]
    pub slo: Option<Slo>,
    /// Price of the server's machine, for the cost of a million tokens at a load that keeps --slo
    #[arg(long, value_name = "PRICE", value_parser = rate, help_heading = "Objectives")]
    pub price_per_hour: Option<f64>,
    /// Its currency, date and source
    #[arg(
        long,
        value_name = "TEXT",
        requires = "price_per_hour",
        help_heading = "Objectives"
    )]
    pub price_note: Option<String>,

    /// warm: connections are kept and those of users opened before the first request; cold: each request opens its own,
    /// whose time counts
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        default_value = "warm",
        hide_possible_values = true,
        help_heading = "Connections"
    )]
    pub connections: Connections,
    /// Speak HTTP/2 without TLS (prior knowledge)
    #[arg(long, help_heading = "Connections")]
    pub http2: bool,
    /// Send a request again, at most so often, that failed before its first token at the server, the proxy or the
    /// connection: for tests of proxies, since a retry hides a failure
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100), help_heading = "Connections")]
    pub retries: u32,

    /// Opening a connection
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration, help_heading = "Time limits of a request")]
    pub timeout_connect: Duration,
    /// Until the response head
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration, help_heading = "Time limits of a request")]
    pub timeout_head: Duration,
    /// Until the first token
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration, help_heading = "Time limits of a request")]
    pub timeout_first: Duration,
    /// Between two events
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration, help_heading = "Time limits of a request")]
    pub timeout_gap: Duration,
    /// Until the end of the answer
    #[arg(long, value_name = "TIME", default_value = "30m", value_parser = duration, help_heading = "Time limits of a request")]
    pub timeout_total: Duration,

    /// Write the results as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Keep results, requests and page of the run in a new folder there
    #[arg(long, value_name = "FOLDER", help_heading = "Output")]
    pub results: Option<PathBuf>,
    /// Runs of this load, each with a seed of its own; five make an interval worth a headline
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100), requires = "results", conflicts_with = "json", help_heading = "Output")]
    pub repeats: u32,
    /// Skip the short test of the client itself before each run of --results
    #[arg(long, help_heading = "Output")]
    pub no_self_test: bool,
    /// Skip the readings of memory before and after each run of --results, and nvidia-smi during every run
    #[arg(long, help_heading = "Output")]
    pub no_calibration: bool,
    /// What the run is called on pages [default: the model]
    #[arg(long, value_name = "NAME", help_heading = "Output")]
    pub name: Option<String>,
    /// The whole command line without secrets, set by the program.
    #[arg(skip)]
    pub command: String,
    /// Show no progress
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
}

/// Distribution of the gaps between requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArrivalKind {
    /// Independent requests.
    Poisson,
    /// Bursts, or the opposite of bursts.
    Gamma,
    /// A metronome.
    Constant,
}

/// What goes before the measured requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Warmup {
    /// So many requests.
    Requests(u64),
    /// Everything planned in the first time.
    Time(Duration),
}

impl std::str::FromStr for Warmup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(requests) => Ok(Self::Requests(requests)),
            Err(_) => duration(text).map(Self::Time),
        }
    }
}

/// What becomes of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Connections {
    /// They are opened before the load and kept.
    #[default]
    Warm,
    /// Every request opens its own.
    Cold,
}

/// What the prompts may find in the server's prefix cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Every prompt starts with words of this run alone.
    Cold,
    /// Prompts are the same in every run of a seed.
    Warm,
    /// Prompts start with words of this run and their group: nothing is shared but what a group shares.
    Shared,
}
