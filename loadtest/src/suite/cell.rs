//! Jobs one after the other, and the summary of those that ended. A job's folder holds its runs and, once it
//! is finished, `cell.json`; both appear complete or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::serve::{Served, end_left_over, fill, find};
use super::{Fit, Job, Load, Side, Suite};
use crate::args::{Args, SearchArgs, SuiteArgs};
use crate::config::Config;
use crate::page;
use crate::repeat;
use crate::results::{PAGE, RUN, SEARCH, plain, write_json, write_search};
use crate::search::{SearchConfig, search};

const POLL: Duration = Duration::from_millis(100);
/// How long a killed suite may go on to hold its lock.
const LOCKED: Duration = Duration::from_secs(2);
/// The schema of `summary.json`.
const SCHEMA: u32 = 2;
/// Name of the file that says what became of every job.
pub const SUMMARY: &str = "summary.json";

/// What became of a suite.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    schema: u32,
    kind: String,
    /// What the suite calls itself.
    pub name: String,
    /// The machine that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The jobs that ended, in order.
    pub cells: Vec<Cell>,
    /// Jobs that have not been run.
    pub left: usize,
}

/// How a job ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cell {
    /// What it is called.
    pub name: String,
    /// Where its runs are, below the folder of the suite.
    pub folder: String,
    /// What was served: one, or two that were compared.
    pub sides: Vec<SideName>,
    /// `done`, `does_not_fit`, `not_there` or `failed`.
    pub status: String,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Its memory, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<Fit>,
    /// What its precision costs, as the command of the suite says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Value>,
    /// The rates that were searched for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<Found>,
    /// Its runs.
    pub runs: Vec<Figures>,
}

/// What a search found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Found {
    /// The load.
    pub load: String,
    /// Requests per second; none when no rate passed.
    pub rate: Option<f64>,
    /// Why it ended.
    pub stop: String,
    /// Its page, below the folder of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
}

/// A side in words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SideName {
    /// The model.
    pub model: String,
    /// The precision.
    pub precision: String,
    /// The server.
    pub server: String,
}

/// What the summary says of a run; the rest stands in its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// The load.
    pub load: String,
    /// Its folder, below that of the job.
    pub folder: String,
    /// Tokens.
    pub output_tokens_per_second: Option<f64>,
    /// First token.
    pub ttft_p50_seconds: Option<f64>,
    /// Each further token.
    pub tpot_p50_seconds: Option<f64>,
    /// Requests that failed.
    pub failed: u64,
    /// Whether to believe it.
    pub verdict: String,
}

/// Does the jobs that are not finished, as far as the budget goes. True when every one was measured or
/// said why not.
///
/// # Errors
/// Another suite in the same folder, a file that cannot be written.
pub async fn run(suite: &Suite, args: &SuiteArgs, mut tell: impl FnMut(&str)) -> Result<bool> {
    let out = args.out.clone();
    let out = out.unwrap_or_else(|| Path::new("results").join(plain(&suite.name)));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let _lock = lock(&out).await?;
    end_left_over(&out)?;
    let mut budget = args.budget;
    let (mut cells, mut left) = (Vec::new(), 0);
    for job in suite.jobs() {
        let folder = out.join(suite.folder_name(&job));
        if let Some(cell) = finished(&folder)? {
            tell(&format!("{}: {} before", job.name, cell.status));
            cells.push(cell);
            continue;
        }
        if !takes(&mut budget, suite, &job) {
            tell(&format!(
                "{}: left out, it would exceed the budget",
                job.name
            ));
            left += 1;
            continue;
        }
        tell(&format!("{}: begins", job.name));
        let cell = measure(suite, &job, &out, &folder, &mut tell).await?;
        // What is not there today may be there tomorrow.
        if cell.status != "not_there" {
            write_json(&folder.join("cell.json"), &cell)?;
        }
        tell(&format!("{}: {} {}", job.name, cell.status, cell.reason));
        cells.push(cell);
    }
    let is_clean = left == 0 && cells.iter().all(|cell| cell.status != "failed");
    let summary = Summary {
        schema: SCHEMA,
        kind: "suite".into(),
        name: suite.name.clone(),
        machine: suite.machine.as_ref().map(|machine| machine.name.clone()),
        cells,
        left,
    };
    write_json(&out.join(SUMMARY), &summary)?;
    page::index::write(&out)?;
    Ok(is_clean)
}

async fn lock(out: &Path) -> Result<File> {
    let lock = File::create(out.join(".lock"))?;
    // A server that a killed suite was just starting holds the lock until it is a program of its own.
    let begun = Instant::now();
    while let Err(error) = lock.try_lock() {
        if begun.elapsed() > LOCKED {
            return Err(error).context("another suite writes into this folder");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(lock)
}

/// Whether the budget has room for a job, whose time is then taken from it.
fn takes(budget: &mut Option<Duration>, suite: &Suite, job: &Job<'_>) -> bool {
    let time = match suite.refusal(job) {
        Some(_) => Duration::ZERO,
        None => suite.expected(job),
    };
    match budget {
        Some(left) if time > *left => return false,
        Some(left) => *left -= time,
        None => {}
    }
    true
}

fn finished(folder: &Path) -> Result<Option<Cell>> {
    let path = folder.join("cell.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)?;
    let cell = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(Some(cell))
}

async fn measure(
    suite: &Suite,
    job: &Job<'_>,
    out: &Path,
    folder: &Path,
    tell: &mut impl FnMut(&str),
) -> Result<Cell> {
    let fit = |side: &Side<'_>| suite.fit(side.model.shape, side.precision);
    let mut cell = Cell {
        name: job.name.clone(),
        folder: suite.folder_name(job),
        sides: job.sides.iter().map(SideName::new).collect(),
        status: "done".into(),
        reason: String::new(),
        fit: job.sides.first().and_then(fit),
        quality: None,
        searches: Vec::new(),
        runs: Vec::new(),
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if let Some(refusal) = suite.refusal(job) {
        (cell.status, cell.reason) = ("does_not_fit".into(), refusal);
        return Ok(cell);
    }
    let mut programs = Vec::new();
    for side in &job.sides {
        let program = &suite.server[&side.model.server].command[0];
        match find(program) {
            Some(found) => programs.push(found),
            None => {
                let reason = format!("{program} is not installed");
                (cell.status, cell.reason) = ("not_there".into(), reason);
                return Ok(cell);
            }
        }
    }
    let mut served = Vec::new();
    if let Err(error) = all(suite, job, &programs, out, folder, &mut served, tell).await {
        let words: Vec<String> = served.iter().map(Served::last_words).collect();
        let reason = format!("{error:#}; {}", words.join("; "));
        (cell.status, cell.reason) = ("failed".into(), reason);
    }
    cell.quality = quality_of(folder)?;
    cell.searches = searches(job, folder)?;
    cell.runs = figures(job, folder)?;
    Ok(cell)
}

/// Quality first, then every load on servers that are all up.
async fn all(
    suite: &Suite,
    job: &Job<'_>,
    programs: &[PathBuf],
    out: &Path,
    folder: &Path,
    served: &mut Vec<Served>,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    if let [side] = job.sides[..] {
        score(side, folder)?;
    }
    for (side, program) in job.sides.iter().zip(programs) {
        let server = &suite.server[&side.model.server];
        served.push(Served::start(server, *side, program, out)?);
    }
    for (side, served) in job.sides.iter().zip(served.iter_mut()) {
        served.ready(&suite.server[&side.model.server]).await?;
    }
    for load in &job.loads {
        if load.search {
            search_once(job, load, &served[0], &place(job, folder, load), tell).await?;
            continue;
        }
        let sides = configs(suite, job, load, served)?;
        let id = format!("{}/{}", suite.folder_name(job), load.name);
        let place = place(job, folder, load);
        repeat::go_on(&sides, load.repeats, &place, &id, |report| {
            let rate = report.rates.output_tokens;
            tell(&format!("  {}: {rate:.1} tokens/s", report.name));
        })
        .await
        .with_context(|| format!("the load {}", load.name))?;
    }
    Ok(())
}

/// A comparison is one load: its folder is that of the comparison.
fn place(job: &Job<'_>, folder: &Path, load: &Load) -> PathBuf {
    match job.sides.len() {
        1 => folder.join(plain(&load.name)),
        _ => folder.to_owned(),
    }
}

fn configs(suite: &Suite, job: &Job<'_>, load: &Load, served: &[Served]) -> Result<Vec<Config>> {
    // A cost is stated only of a load that has limits to keep.
    let has_limits = load.flags.contains("--slo");
    let price = suite
        .machine
        .as_ref()
        .filter(|_| has_limits)
        .and_then(|m| Some((m.price_per_hour?, &m.name)));
    let each = job.side_names.iter().zip(served).map(|(name, served)| {
        let name = match job.sides.len() {
            1 => format!("{name}, {}", load.name),
            _ => name.clone(),
        };
        let fixed = [
            "loadtest",
            "--quiet",
            "--seed",
            "1",
            "--url",
            &served.url,
            "--name",
            &name,
        ];
        let words = fixed.into_iter().chain(load.flags.split_whitespace());
        let mut args = Args::try_parse_from(words)?;
        args.command = format!("loadtest {}", load.flags);
        if let Some((price, machine)) = price {
            (args.price_per_hour, args.price_note) = (Some(price), Some(machine.clone()));
        }
        Config::try_from(args)
    });
    each.collect::<Result<_>>()
        .with_context(|| format!("the load {}", load.name))
}

/// Searches for a rate, unless the result is there.
async fn search_once(
    job: &Job<'_>,
    load: &Load,
    served: &Served,
    place: &Path,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    let file = place.join(SEARCH);
    if file.is_file() {
        return Ok(());
    }
    let name = format!("{}, {}", job.name, load.name);
    let fixed = ["search", "--quiet", "--url", &served.url, "--name", &name];
    let words = fixed.into_iter().chain(load.flags.split_whitespace());
    let config = SearchArgs::try_parse_from(words)
        .map_err(anyhow::Error::from)
        .and_then(SearchConfig::try_from)
        .with_context(|| format!("the load {}", load.name))?;
    let report = search(&config, |probe| tell(&format!("  {name}: {probe}"))).await?;
    write_search(place, &report)
}

/// The rates that were found.
fn searches(job: &Job<'_>, folder: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for load in job.loads.iter().filter(|load| load.search) {
        let place = place(job, folder, load);
        let path = place.join(SEARCH);
        let page = place.join(PAGE);
        let below = page.strip_prefix(folder).unwrap_or(&page);
        if path.is_file() {
            let report: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
            found.push(Found {
                load: load.name.clone(),
                rate: report["rate"].as_f64(),
                stop: report["stop"].as_str().unwrap_or_default().to_owned(),
                page: page.is_file().then(|| below.display().to_string()),
            });
        }
    }
    Ok(found)
}

/// Runs the command that measures quality, unless its result is there.
fn score(side: Side<'_>, folder: &Path) -> Result<()> {
    let file = folder.join(QUALITY);
    let [program, words @ ..] = &side.model.quality[..] else {
        return Ok(());
    };
    let Some(program) = find(program).filter(|_| !file.is_file()) else {
        return Ok(());
    };
    let partial = folder.join("quality.part");
    let json = partial.display().to_string();
    let words = words.iter().map(|word| fill(word, side, ("{json}", &json)));
    let run = Command::new(program)
        .args(words.filter(|word| !word.is_empty()))
        .stdin(Stdio::null())
        .output()?;
    if !run.status.success() {
        bail!("quality: {}", String::from_utf8_lossy(&run.stderr).trim());
    }
    Ok(std::fs::rename(partial, file)?)
}

const QUALITY: &str = "quality.json";

fn quality_of(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join(QUALITY);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)?;
    let value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(Some(value))
}

/// The runs that are there.
fn figures(job: &Job<'_>, folder: &Path) -> Result<Vec<Figures>> {
    let mut found = Vec::new();
    for load in &job.loads {
        let mut places = Vec::new();
        runs_in(&place(job, folder, load), &mut places)?;
        for place in places {
            found.push(Figures::read(&load.name, folder, &place)?);
        }
    }
    Ok(found)
}

fn runs_in(folder: &Path, places: &mut Vec<PathBuf>) -> Result<()> {
    if folder.join(RUN).is_file() {
        places.push(folder.to_owned());
    } else if folder.is_dir() {
        for below in page::subfolders(folder)? {
            runs_in(&below, places)?;
        }
    }
    Ok(())
}

impl Figures {
    fn read(load: &str, folder: &Path, place: &Path) -> Result<Self> {
        let path = place.join(RUN);
        let text = std::fs::read_to_string(&path)?;
        let run: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let below = place.strip_prefix(folder).unwrap_or(place);
        Ok(Self {
            load: load.to_owned(),
            folder: below.display().to_string(),
            output_tokens_per_second: run["rates"]["output_tokens"].as_f64(),
            ttft_p50_seconds: run["latency"]["ttft"]["p50"].as_f64(),
            tpot_p50_seconds: run["latency"]["tpot"]["p50"].as_f64(),
            failed: run["requests"]["failed"].as_u64().unwrap_or(0),
            verdict: run["verdict"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

impl SideName {
    fn new(side: &Side<'_>) -> Self {
        Self {
            model: side.model.name.clone(),
            precision: side.precision.to_owned(),
            server: side.model.server.clone(),
        }
    }
}
