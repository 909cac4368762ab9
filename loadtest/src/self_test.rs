//! `loadtest self-test`: the client measures a server in this process whose every write is stamped on the
//! same clock, so that what it says can be compared with what was. Load doubles until the client is too
//! late: that is the load from which it, and not a server, would be measured.

mod server;

use std::collections::HashMap;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::args::{Connections, Warmup};
use crate::arrival::Arrival;
use crate::clock::{Clock, Nanos, seconds};
use crate::content::Content;
use crate::driver::{Plan, Run, RunResult};
use crate::exchange::Timeouts;
use crate::lengths::Lengths;
use crate::record::{Phase, RequestRecord};
use crate::report::{SCHEMA, Tool};
use crate::stats::{Percentile, Sample, Summary};
use crate::target::{HttpUrl, Target};
use crate::transport::Protocol;
use crate::workload::{Api, TokensPerWord, Workload};
use server::{Script, Server};

/// The largest 99th percentile of what the client is off, in seconds.
const BIAS_LIMIT: f64 = 0.001;
/// What the server does: the first token after this, the next ones at this distance.
const SCRIPT: Script = Script {
    first: Duration::from_millis(20),
    gap: Duration::from_millis(10),
    tokens: 50,
};
/// The same in a hurry, for the test before a run.
const BRIEF: Script = Script {
    first: Duration::from_millis(5),
    gap: Duration::from_millis(5),
    tokens: 20,
};
/// Length of a level of that test.
const BRIEF_LENGTH: Duration = Duration::from_millis(150);
/// Users of its levels: the middle one first, then the one that is left to know.
const BRIEF_USERS: [u32; 3] = [16, 64, 256];
/// Users of the lowest level.
const FEWEST_USERS: u32 = 4;
/// No test waits for a limit.
const LIMIT: Duration = Duration::from_secs(60);

/// What a run knows of what its client can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known {
    /// Nothing.
    Nothing,
    /// It is tested just before the run.
    TestedBefore,
    /// It was tested: token events per second with which it kept up, none where it kept up with nothing.
    Events(Option<f64>),
}

/// Which loads are tried.
#[derive(Debug, Clone, Copy)]
pub struct Ladder {
    /// Token events per second that the client must keep up with.
    pub wanted: f64,
    /// Token events per second beyond which no level is tried.
    pub highest: f64,
    /// Length of a level.
    pub length: Duration,
}

/// One load and how far off the client was.
#[derive(Debug, Clone, Serialize)]
pub struct Level {
    /// Users of the closed loop.
    pub users: u32,
    /// Token events that the client read per second.
    pub events_per_second: f64,
    /// From the server's write of the first token to the client's stamp.
    pub first_token_bias: Summary,
    /// Difference between a gap at the client and at the server, without its sign.
    pub gap_bias: Summary,
    /// Token events that the server wrote and the client did not count, over the same requests.
    pub events_missed: i64,
    /// Processor time of client and server together, in cores.
    pub cores: Option<f64>,
    /// Whether the client kept up.
    pub passed: bool,
}

/// The result of a self-test.
#[derive(Debug, Clone, Serialize)]
pub struct SelfTestReport {
    /// Version of the schema.
    pub schema: u32,
    /// What the file describes.
    pub kind: &'static str,
    /// What made it.
    pub tool: Tool,
    /// The largest 99th percentile that is allowed, in seconds.
    pub bias_limit: f64,
    /// The highest load at which the client kept up, and at all lower ones.
    pub sustained_events_per_second: Option<f64>,
    /// Whether the load at which it no longer did was reached.
    pub found_bottleneck: bool,
    /// The load that was asked for.
    pub wanted_events_per_second: f64,
    /// Whether the client keeps up with it.
    pub passed: bool,
    /// Every load, in order.
    pub levels: Vec<Level>,
}

/// Climbs the ladder.
///
/// # Errors
/// No address on this machine to listen at.
pub async fn run(ladder: Ladder) -> Result<SelfTestReport> {
    let mut levels = Vec::new();
    let mut users = FEWEST_USERS;
    loop {
        let level = measure(SCRIPT, users, ladder.length).await?;
        let is_last = !level.passed || expected_events(users * 2) > ladder.highest;
        levels.push(level);
        if is_last {
            return Ok(SelfTestReport::new(ladder.wanted, levels));
        }
        users *= 2;
    }
}

/// Events per second of so many users, if client and server cost no time.
fn expected_events(users: u32) -> f64 {
    let length = SCRIPT.first + SCRIPT.gap * (SCRIPT.tokens - 1);
    f64::from(users) * f64::from(SCRIPT.tokens) / length.as_secs_f64()
}

/// The highest of three loads at which the client keeps up, in token events per second, found in two levels and about
/// a second; none where it keeps up with no load.
///
/// # Errors
/// As [`run`].
pub async fn brief() -> Result<Option<f64>> {
    let [low, middle, high] = BRIEF_USERS;
    let first = measure(BRIEF, middle, BRIEF_LENGTH).await?;
    let other = if first.passed { high } else { low };
    let second = measure(BRIEF, other, BRIEF_LENGTH).await?;
    let passed = [second, first].into_iter().filter(|level| level.passed);
    Ok(passed.map(|level| level.events_per_second).reduce(f64::max))
}

async fn measure(script: Script, users: u32, length: Duration) -> Result<Level> {
    let clock = Clock::start();
    let server = Server::start(script, clock)?;
    let url = HttpUrl::parse(&format!("http://{}", server.address))?;
    let plan = Plan {
        arrival: Arrival::Closed { users },
        warmup: Warmup::Requests(u64::from(users)),
        requests: None,
        duration: Some(length),
        ramp_up: Duration::ZERO,
        timeouts: Timeouts {
            connect: LIMIT,
            head: LIMIT,
            first: LIMIT,
            gap: LIMIT,
            total: LIMIT,
        },
        exact_count: None,
        connections: Connections::Warm,
        retries: 0,
        samples_texts: false,
        gives_up_on: None,
    };
    let workload = Workload {
        api: Api::Completions,
        model: "self-test".into(),
        seed: 0,
        contents: vec![Content::words(
            Lengths::Fixed(8),
            Lengths::Fixed(script.tokens),
        )],
        trace: None,
        tokens_per_word: TokensPerWord {
            per_word: 1.0,
            overhead: 0.0,
        },
        vocabulary: None,
        // Above zero a request carries its number as its seed, by which the server remembers it.
        temperature: 1.0,
        nonce: None,
    };
    let target = Target::resolve(url, None, Protocol::Http1, clock).await?;
    let run = Run::new(plan, vec![target], workload, clock);
    let result = Arc::clone(&run).run().await;
    Level::new(users, &result, &server.stop())
}

/// When the server wrote each token of a request, by the number of the request.
pub type Writes = HashMap<u64, Vec<Nanos>>;

impl Level {
    fn new(users: u32, result: &RunResult, writes: &Writes) -> Result<Self> {
        let measured = result.records.iter().filter(|r| r.phase == Phase::Measured);
        let (mut first, mut gaps, mut missed) = (Vec::new(), Vec::new(), 0);
        for record in measured {
            ensure!(
                record.outcome.is_success(),
                "the client failed on the server of this process: {}: {}",
                record.outcome.name(),
                record.detail
            );
            let written = writes
                .get(&record.conversation)
                .map_or(&[][..], Vec::as_slice);
            let read = reads(record);
            missed += i64::try_from(written.len())? - i64::try_from(read.len())?;
            if let (Some(read), Some(written)) = (read.first(), written.first()) {
                // A client that were early would be as wrong as one that is late.
                first.push(read.abs_diff(*written));
            }
            let distance = |pair: &[Nanos]| pair[1] - pair[0];
            let pairs = read.windows(2).zip(written.windows(2));
            gaps.extend(pairs.map(|(r, w)| distance(r).abs_diff(distance(w))));
        }
        let (start, end) = result.window;
        let events: u64 = result
            .records
            .iter()
            .map(|r| r.stream.events_in_window)
            .sum();
        let mut level = Self {
            users,
            events_per_second: events as f64 / seconds(end - start).max(f64::MIN_POSITIVE),
            first_token_bias: first.into_iter().collect::<Sample>().summary(),
            gap_bias: gaps.into_iter().collect::<Sample>().summary(),
            events_missed: missed,
            cores: result.effort.cores,
            passed: false,
        };
        level.passed = level.events_missed == 0
            && [&level.first_token_bias, &level.gap_bias]
                .into_iter()
                .all(is_small);
        Ok(level)
    }
}

/// When the client saw each token.
fn reads(record: &RequestRecord) -> Vec<Nanos> {
    let gaps = record.stream.gaps.iter();
    let first = record.stream.t_first;
    let later = gaps.scan(first.unwrap_or(0), |t, gap| {
        *t += gap;
        Some(*t)
    });
    first.into_iter().chain(later).collect()
}

fn is_small(bias: &Summary) -> bool {
    match bias.p99 {
        Percentile::Seconds(p99) => p99 <= BIAS_LIMIT,
        // Too few for a percentile: all of them.
        _ => bias.max.is_some_and(|max| max <= BIAS_LIMIT),
    }
}

impl SelfTestReport {
    fn new(wanted: f64, levels: Vec<Level>) -> Self {
        let kept = levels.iter().take_while(|level| level.passed);
        let sustained = kept.map(|level| level.events_per_second).last();
        Self {
            schema: SCHEMA,
            kind: "self-test",
            tool: Tool::this(""),
            bias_limit: BIAS_LIMIT,
            sustained_events_per_second: sustained,
            found_bottleneck: levels.iter().any(|level| !level.passed),
            wanted_events_per_second: wanted,
            passed: sustained.is_some_and(|sustained| sustained >= wanted),
            levels,
        }
    }
}

impl Display for SelfTestReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>6}{:>12}{:>18}{:>14}{:>8}",
            "users", "events/s", "TTFT off by p99", "gap off by", "cores"
        )?;
        let worst = |summary: &Summary| match (summary.p99, summary.max) {
            (Percentile::Seconds(p99), _) => format!("{:.3} ms", p99 * 1e3),
            (_, Some(max)) => format!("≤ {:.3} ms", max * 1e3),
            _ => "–".into(),
        };
        for level in &self.levels {
            let cores = level
                .cores
                .map_or("–".into(), |cores| format!("{cores:.2}"));
            writeln!(
                f,
                "{:>6}{:>12.0}{:>18}{:>14}{cores:>8}  {}",
                level.users,
                level.events_per_second,
                worst(&level.first_token_bias),
                worst(&level.gap_bias),
                if level.passed { "kept up" } else { "too late" },
            )?;
        }
        match (self.sustained_events_per_second, self.found_bottleneck) {
            (None, _) => writeln!(f, "\nThe client keeps up with no load on this machine."),
            (Some(events), true) => writeln!(
                f,
                "\nThe client keeps up with {events:.0} token events per second; beyond, it is the bottleneck."
            ),
            (Some(events), false) => writeln!(
                f,
                "\nThe client keeps up with {events:.0} token events per second and was not asked for more."
            ),
        }
    }
}

#[cfg(test)]
mod tests;
