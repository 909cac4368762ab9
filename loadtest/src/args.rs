//! The command line: what can be typed, and nothing of what it means.

mod run;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub use run::{Args, ArrivalKind, Cache, Connections, Warmup};
pub(crate) use values::duration;
use values::rate;

use crate::search::Over;

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
the last three with min=N,max=N where wanted, or histogram:FILE: a length or MIN..MAX a line, and its weight where there is one.
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
    /// Find the highest rate, or number of users, at which the limits of --slo are kept
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
    /// Put results of other versions of a server or of the driver beside those that are there
    #[arg(long)]
    pub allow_mixed: bool,
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
/// `--users` how many users find that rate when it is not given [default: 128], or the first number of
/// users tried by `search concurrency`.
#[derive(Debug, Clone, Parser)]
pub struct SearchArgs {
    /// What is raised: rate, requests per second of an open loop, or concurrency, users of a closed one
    #[arg(value_enum, value_name = "WHAT", default_value = "rate")]
    pub over: Over,
    /// The load of the probes.
    #[command(flatten)]
    pub run: Args,
    /// Probes at most, confirmations included
    #[arg(long, value_name = "N", default_value_t = 14, help_heading = "Search")]
    pub max_probes: u32,
    /// Begin no probe after this long
    #[arg(long, value_name = "TIME", default_value = "20m", value_parser = duration, help_heading = "Search")]
    pub max_time: Duration,
    /// How close it is found, as a share
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
            "Connections:",
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
