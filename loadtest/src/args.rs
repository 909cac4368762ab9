//! The command line: what can be typed, and nothing of what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::arrival::RampShape;
use crate::lengths::Lengths;
use crate::slo::Slo;
use crate::think::Think;
use crate::workload::Api;

/// Where octet listens.
const DEFAULT_URL: &str = "http://127.0.0.1:8000";
const EXAMPLES: &str = "\
Examples:
  64 users with mixed lengths, 256 requests in all:
    loadtest --users 64 --requests 256 --prompt-tokens uniform:16..256 --output-tokens uniform:8..64

  Poisson arrivals, two a second for a minute, exactly 128 tokens each:
    loadtest --rate 2 --duration 60s --warmup 10 --output-tokens 128 --ignore-eos

  A heavy-tailed mix against another server, results as JSON:
    loadtest --url http://host:8000 --api-key KEY --users 8 --duration 2m \\
        --prompt-tokens lognormal:median=256,p95=900,max=1500 --json run.json

  The highest rate at which 99 of 100 requests keep two limits:
    loadtest search --slo ttft=1s,tpot=80ms --duration 60s --prompt-tokens 256 --output-tokens 128

  Which of two servers is faster: six pairs of runs by turns, with a page that says so:
    loadtest compare int8=http://127.0.0.1:8000 f32=http://127.0.0.1:8001 --users 8 --duration 60s

  Conversations of four questions on a shared beginning of 500 tokens:
    loadtest --rate 1 --duration 2m --turns 4 --think 3s --prefix-tokens 500 --prompt-tokens 40

Lengths are written N, uniform:MIN..MAX, lognormal:median=N,p95=N or normal:mean=N,sd=N (also gamma:),
the last three with min=N,max=N where wanted.
Limits are ttft, tpot, stall (the longest gap) and e2e; attainment is the share that must keep them.
A closed loop (--users) hides queueing, because a slow server gets less load; use --rate for
latency under load.

Exit status: 0 when every request succeeded and every exact check against the server's counters
holds, 1 when not, 2 when the run could not start.";

/// Measures an OpenAI-compatible server under load and checks its own counts against the server's.
#[derive(Debug, Clone, Parser)]
#[command(name = "loadtest", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Something else than a run.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The run.
    #[command(flatten)]
    pub run: Args,
}

/// What is done with runs.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Find the highest rate of an open loop that keeps the limits of --slo
    Search(Box<SearchArgs>),
    /// Measure a server of known times in this process: how far off is the client, and from which
    /// load on would it be the bottleneck?
    SelfTest(SelfTestArgs),
    /// Measure two servers by turns and say which is faster
    Compare(Box<CompareArgs>),
    /// Make a page of HTML from the results of one run or several
    Report {
        /// Folders of --results, or files of --json; the first is what the others are compared with
        #[arg(required = true, value_name = "RESULTS")]
        runs: Vec<PathBuf>,
        /// The page
        #[arg(short, long, value_name = "FILE", default_value = "report.html")]
        output: PathBuf,
    },
    /// Start servers, measure and stop them one after the other, as a file says; goes on where it was stopped
    Suite(SuiteArgs),
    /// Put the figures of a suite into the tables of pages in Markdown
    WriteUp {
        /// The suite
        #[arg(value_name = "FILE")]
        suite: PathBuf,
        /// Folder of its results; left out, the tables say that nothing is measured
        #[arg(long, value_name = "DIR")]
        results: Option<PathBuf>,
        /// The pages
        #[arg(required = true, value_name = "PAGE")]
        pages: Vec<PathBuf>,
    },
    /// Make the page index.html, and index.json, of all results in a folder
    Index {
        /// The folder
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
    },
}

/// Flags of a suite.
#[derive(Debug, Clone, Parser)]
pub struct SuiteArgs {
    /// The suite
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Print what would be run, with memory, time and cost, and start nothing
    #[arg(long)]
    pub plan: bool,
    /// Leave out cells that are expected to exceed this time
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub budget: Option<Duration>,
    /// Folder of the results [default: results/NAME]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Flags of a comparison. Those of a run describe its runs.
#[derive(Debug, Clone, Parser)]
pub struct CompareArgs {
    /// The two servers and what to call them; the first is what the other is compared with
    #[arg(required = true, num_args = 2, value_name = "NAME=URL", value_parser = side)]
    pub sides: Vec<Side>,
    /// Runs of each server, by turns
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=20))]
    pub pairs: u32,
    /// The load.
    #[command(flatten)]
    pub run: Args,
}

/// A server and what to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Side {
    /// Its name.
    pub name: String,
    /// Its address.
    pub url: String,
}

impl CompareArgs {
    /// The runs of each side.
    ///
    /// # Errors
    /// Flags that belong to one server, or name the same side twice.
    pub fn each(&self) -> Result<Vec<Args>, String> {
        let run = &self.run;
        if run.url != [DEFAULT_URL] || !run.metrics_url.is_empty() || run.name.is_some() {
            return Err(
                "a comparison names its servers as NAME=URL: no --url, --metrics-url or --name"
                    .into(),
            );
        }
        if run.repeats != 1 || run.json.is_some() {
            return Err("a comparison has --pairs and --results: no --repeats or --json".into());
        }
        if self.sides[0].name == self.sides[1].name {
            return Err(format!("both sides are called `{}`", self.sides[0].name));
        }
        let each = self.sides.iter().map(|side| Args {
            url: vec![side.url.clone()],
            name: Some(side.name.clone()),
            ..run.clone()
        });
        Ok(each.collect())
    }
}

fn side(text: &str) -> Result<Side, String> {
    match text.split_once('=') {
        Some((name, url)) if !name.is_empty() && !url.is_empty() => Ok(Side {
            name: name.to_owned(),
            url: url.to_owned(),
        }),
        _ => Err(format!("`{text}` is not written NAME=URL")),
    }
}

/// Flags of a search. Those of a run describe its probes: `--duration` is the length of each [default:
/// 60s], `--requests` the least number of requests in it [default: 200], `--rate` the first rate tried,
/// `--users` how many users find that rate when it is not given [default: 128].
#[derive(Debug, Clone, Parser)]
pub struct SearchArgs {
    /// The load of the probes.
    #[command(flatten)]
    pub run: Args,
    /// Probes at most, confirmations included
    #[arg(long, value_name = "N", default_value_t = 14, help_heading = "Search")]
    pub max_probes: u32,
    /// Begin no probe after this long
    #[arg(long, value_name = "TIME", default_value = "20m", value_parser = duration, help_heading = "Search")]
    pub max_time: Duration,
    /// How close the rate is found, as a share of it
    #[arg(long, value_name = "X", default_value_t = 0.05, value_parser = rate, help_heading = "Search")]
    pub tolerance: f64,
}

/// Flags of a self-test.
#[derive(Debug, Clone, Parser)]
pub struct SelfTestArgs {
    /// Token events per second that the client must keep up with
    #[arg(long, value_name = "N", default_value_t = 1000.0, value_parser = rate)]
    pub events: f64,
    /// Go on up to this many, to find where the client becomes the bottleneck
    #[arg(long, value_name = "N", default_value_t = 64_000.0, value_parser = rate)]
    pub max_events: f64,
    /// Length of each level
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub duration: Duration,
    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

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
    /// cold: prompts start with words of this run; warm: an earlier run may have filled the cache
    /// [default: cold]
    #[arg(
        long,
        value_enum,
        value_name = "CACHE",
        hide_possible_values = true,
        help_heading = "Requests"
    )]
    pub cache: Option<Cache>,
    /// Tokens per word of the prompts [default: asked from the server by two short requests]
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

/// What the prompts may find in the server's prefix cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Every prompt starts with words of this run alone.
    Cold,
    /// Prompts are the same in every run of a seed.
    Warm,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("not a number above zero".into()),
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(t) if (0.0..=2.0).contains(&t) => Ok(t),
        _ => Err("not a number from 0 to 2".into()),
    }
}

/// Reads `500ms`, `10s`, `1.5m`, `2h`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`: ms, s, m or h")),
    };
    let seconds = number
        .parse::<f64>()
        .map_err(|_| format!("`{number}` is not a number"))?
        * unit;
    // A year bounds what arithmetic on instants has to bear.
    if !(seconds > 0.0 && seconds <= 365.0 * 86_400.0) {
        return Err("not a time above zero and below a year".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_groups_its_flags_and_ends_in_examples() {
        let help = Cli::command().render_help().to_string();
        let mut at = 0;
        for heading in [
            "Target:",
            "Load:",
            "Requests:",
            "Objectives:",
            "Time limits of a request:",
            "Output:",
            "Examples:",
        ] {
            let next = help
                .find(heading)
                .unwrap_or_else(|| panic!("{heading} is missing"));
            assert!(next > at, "{heading} comes out of order");
            at = next;
        }
        assert!(help.lines().all(|line| line.chars().count() <= 100));
    }

    #[test]
    fn a_comparison_names_its_servers_and_nothing_twice() {
        let each = |line: &str| {
            let words = std::iter::once("compare").chain(line.split_whitespace());
            CompareArgs::try_parse_from(words)
                .map_err(|e| e.to_string())?
                .each()
        };
        let sides = each("a=http://h:1 b=http://h:2 --users 3").unwrap();
        let named: Vec<_> = sides
            .iter()
            .map(|a| (a.name.as_deref(), a.url[0].as_str()))
            .collect();
        assert_eq!(
            named,
            [(Some("a"), "http://h:1"), (Some("b"), "http://h:2")]
        );
        for line in [
            "a=http://h:1",
            "a=http://h:1 a=http://h:2",
            "http://h:1 http://h:2",
            "=x b=y",
            "a=x b=y --url http://z",
            "a=x b=y --repeats 3 --results f",
            "a=x b=y --pairs 0",
        ] {
            assert!(each(line).is_err(), "{line}");
        }
    }

    #[test]
    fn times_are_read() {
        let cases = [
            ("500ms", 0.5),
            ("10s", 10.0),
            ("10", 10.0),
            ("1.5m", 90.0),
            ("2h", 7200.0),
        ];
        for (text, expected) in cases {
            assert_eq!(duration(text).unwrap().as_secs_f64(), expected);
        }
        for text in ["", "s", "0", "-1s", "3d", "1e99h", "nan", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn loops_exclude_each_other_and_limits_are_checked() {
        let parse = |line: &str| {
            Args::try_parse_from(std::iter::once("loadtest").chain(line.split_whitespace()))
        };
        assert!(parse("").is_ok());
        assert!(parse("--users 3 --rate 2").is_err());
        assert!(parse("--rate 3 --burstiness 0.5 --warmup 20s --think 2s --turns 3").is_ok());
        for line in [
            "--users 0",
            "--rate 0",
            "--rate nan",
            "--requests 0",
            "--temperature 3",
            "--prompt-tokens 0",
            "--burstiness 2",
            "--ramp linear --rate 2",
            "--rate 2 --ramp-up 3s",
            "--warmup soon",
            "--trace f --turns 2",
            "--prefix-groups 2",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
