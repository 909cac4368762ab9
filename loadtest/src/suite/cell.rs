//! Jobs one after the other, and the summary of those that ended. A job's folder holds its runs and, once it
//! is finished, `cell.json`; both appear complete or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::halt::{Halt, Stop};
use super::loads::Common;
use super::quality::{quality_of, score};
use super::room::lack;
use super::serve::{Served, end_left_over, find};
use super::summary::{Cell, SUMMARY, SideName, Summary, Tested, figures, searches};
use super::versions::Versions;
use super::{Job, Side, Suite, loads};
use crate::args::SuiteArgs;
use crate::page;
use crate::report::Cut;
use crate::results::{plain, write_json};
use crate::scene;
use crate::self_test::{self, Known};

const POLL: Duration = Duration::from_millis(100);
/// How long a killed suite may go on to hold its lock.
const LOCKED: Duration = Duration::from_secs(2);
/// The schema of `summary.json`.
const SCHEMA: u32 = 2;

/// What all jobs have in common.
struct Here<'a> {
    suite: &'a Suite,
    /// Folder of the results.
    out: &'a Path,
    lock: &'a File,
    stop: Stop,
    versions: Versions,
    may_mix: bool,
    common: Common,
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
    let mut lock = lock(&out).await?;
    end_left_over(&mut lock)?;
    let mut here = Here {
        suite,
        out: &out,
        lock: &lock,
        stop: Stop::at_interrupt(&lock)?,
        versions: Versions::read(&out)?,
        may_mix: args.allow_mixed,
        common: Common {
            client: Known::Nothing,
            cut: cut(suite, &out, args.budget)?,
        },
    };
    let gpu = scene::gpu().await;
    here.versions.saw_gpu(&out, gpu, here.may_mix)?;
    let (mut cells, mut left) = (Vec::new(), 0);
    for job in suite.jobs() {
        let folder = out.join(suite.folder_name(&job));
        if let Some(cell) = finished(&folder)? {
            tell(&format!("{}: {} before", job.name, cell.status));
            cells.push(cell);
            continue;
        }
        if here.stop.is_asked() {
            left += 1;
            continue;
        }
        if here.leaves_out(&job) {
            tell(&format!(
                "{}: left out, it would exceed the budget",
                job.name
            ));
            left += 1;
            continue;
        }
        tell(&format!("{}: begins", job.name));
        let cell = match measure(&mut here, &job, &folder, &mut tell).await {
            Err(error) if matches!(error.downcast_ref(), Some(Halt::Stopped)) => {
                tell(&format!("{}: {error}", job.name));
                left += 1;
                continue;
            }
            cell => cell?,
        };
        // What is not there today may be there tomorrow.
        if !["not_there", "no_room"].contains(&cell.status.as_str()) {
            write_json(&folder.join("cell.json"), &cell)?;
        }
        tell(&format!("{}: {} {}", job.name, cell.status, cell.reason));
        cells.push(cell);
    }
    let is_bad = |cell: &Cell| ["failed", "no_room"].contains(&cell.status.as_str());
    let is_clean = left == 0 && !cells.iter().any(is_bad);
    let summary = Summary {
        schema: SCHEMA,
        kind: "suite".into(),
        name: suite.name.clone(),
        machine: suite.machine.as_ref().map(|machine| machine.name.clone()),
        dry_run: suite.dry_run,
        mixed: here.versions.mixed(),
        cells,
        left,
        self_test: match here.common.client {
            Known::Events(sustained_events_per_second) => Some(Tested {
                sustained_events_per_second,
            }),
            _ => tested_before(&out),
        },
        cut: here.common.cut,
    };
    write_json(&out.join(SUMMARY), &summary)?;
    page::index::write(&out)?;
    Ok(is_clean)
}

/// What an earlier call knew of the client, where this one had nothing to measure.
fn tested_before(out: &Path) -> Option<Tested> {
    let text = std::fs::read_to_string(out.join(SUMMARY)).ok()?;
    serde_json::from_str::<Summary>(&text).ok()?.self_test
}

async fn lock(out: &Path) -> Result<File> {
    let mut options = File::options();
    let options = options.create(true).read(true).append(true);
    let lock = options.open(out.join(".lock"))?;
    // A server that a killed suite was just starting holds the lock until it is named in it.
    let begun = Instant::now();
    while let Err(error) = lock.try_lock() {
        if begun.elapsed() > LOCKED {
            return Err(error).context("another suite writes into this folder");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(lock)
}

impl Here<'_> {
    /// Whether the budget has no room for a job.
    fn leaves_out(&self, job: &Job<'_>) -> bool {
        let cut = self.common.cut.as_ref();
        cut.is_some_and(|cut| cut.left_out.contains(&job.name))
    }

    /// Tests the client once, before anything else takes the machine's time.
    async fn test_client(&mut self, tell: &mut impl FnMut(&str)) {
        if self.common.client != Known::Nothing {
            return;
        }
        match self_test::brief().await {
            Ok(sustained) => self.common.client = Known::Events(sustained),
            Err(error) => tell(&format!("the client could not test itself: {error:#}")),
        }
    }
}

/// What of the jobs that are not finished the budget has no room for, if anything.
fn cut(suite: &Suite, out: &Path, budget: Option<Duration>) -> Result<Option<Cut>> {
    let Some(budget) = budget else {
        return Ok(None);
    };
    let (mut left, mut left_out) = (budget, Vec::new());
    for job in suite.jobs() {
        let is_finished = finished(&out.join(suite.folder_name(&job)))?.is_some();
        if !is_finished && !takes(&mut left, suite, &job) {
            left_out.push(job.name);
        }
    }
    Ok((!left_out.is_empty()).then_some(Cut {
        budget_seconds: budget.as_secs_f64(),
        left_out,
    }))
}

/// Whether the budget has room for a job, whose time is then taken from it.
fn takes(budget: &mut Duration, suite: &Suite, job: &Job<'_>) -> bool {
    let time = match suite.refusal(job) {
        Some(_) => Duration::ZERO,
        None => suite.expected(job),
    };
    match budget.checked_sub(time) {
        Some(left) => *budget = left,
        None => return false,
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
    here: &mut Here<'_>,
    job: &Job<'_>,
    folder: &Path,
    tell: &mut impl FnMut(&str),
) -> Result<Cell> {
    let suite = here.suite;
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
    if let Some(lack) = lack(here.out, &job.sides)? {
        (cell.status, cell.reason) = ("no_room".into(), lack);
        return Ok(cell);
    }
    let mut served = Vec::new();
    if let Err(error) = all(here, job, &programs, folder, &mut served, tell).await {
        if error.is::<Halt>() {
            return Err(error);
        }
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
    here: &mut Here<'_>,
    job: &Job<'_>,
    programs: &[PathBuf],
    folder: &Path,
    served: &mut Vec<Served>,
    tell: &mut impl FnMut(&str),
) -> Result<()> {
    here.test_client(tell).await;
    for side in &job.sides {
        here.versions
            .saw_model(here.out, side.model, here.may_mix)?;
    }
    if let [side] = job.sides[..] {
        score(side, folder)?;
    }
    for (i, (side, program)) in job.sides.iter().zip(programs).enumerate() {
        let server = &here.suite.server[&side.model.server];
        let log = folder.join(match job.sides.len() {
            1 => "server.log".to_owned(),
            _ => format!("server-{}.log", i + 1),
        });
        served.push(Served::start(server, *side, program, here.lock, log)?);
    }
    for ((side, program), served) in job.sides.iter().zip(programs).zip(served.iter_mut()) {
        let name = &side.model.server;
        served.ready(&here.suite.server[name], program).await?;
        let version = served.version.clone();
        here.versions.saw(here.out, name, version, here.may_mix)?;
    }
    let common = &here.common;
    loads::ask(here.suite, job, served, folder, common, &here.stop, tell).await
}
