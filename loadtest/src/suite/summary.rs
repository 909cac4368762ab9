//! What became of a suite and of each of its jobs, read from the results that lie in their folders.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::loads::place;
use super::{Fit, Job, Side};
use crate::page;
use crate::report::Cut;
use crate::results::{PAGE, RUN, SEARCH};
use crate::search::Over;

/// Name of the file that says what became of every job.
pub const SUMMARY: &str = "summary.json";

/// What became of a suite.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    pub(super) schema: u32,
    pub(super) kind: String,
    /// What the suite calls itself.
    pub name: String,
    /// The machine that it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Whether its models are stand-ins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// What the results were made with more than one version of, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixed: Vec<String>,
    /// The jobs that ended, in order.
    pub cells: Vec<Cell>,
    /// Jobs that have not been run.
    pub left: usize,
    /// What the budget has no room for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// What the client can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_test: Option<Tested>,
}

/// What the client's test of itself showed, before the first server was started.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Token events per second with which it kept up; none where it kept up with nothing.
    pub sustained_events_per_second: Option<f64>,
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
    /// `done`, `does_not_fit`, `not_there`, `no_room` or `failed`.
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
    /// The rates, or numbers of users, that were searched for.
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
    /// What was raised.
    #[serde(default)]
    pub over: Over,
    /// Requests per second; none when no rate passed, or users were raised.
    pub rate: Option<f64>,
    /// Users; none when no number of them passed, or rates were raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<u64>,
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

impl SideName {
    pub(super) fn new(side: &Side<'_>) -> Self {
        Self {
            model: side.model.name.clone(),
            precision: side.precision.to_owned(),
            server: side.model.server.clone(),
        }
    }
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

/// What was found by searches.
pub fn searches(job: &Job<'_>, folder: &Path) -> Result<Vec<Found>> {
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
                over: Over::deserialize(&report["over"]).unwrap_or_default(),
                rate: report["rate"].as_f64(),
                users: report["users"].as_u64(),
                stop: report["stop"].as_str().unwrap_or_default().to_owned(),
                page: page.is_file().then(|| below.display().to_string()),
            });
        }
    }
    Ok(found)
}

/// The runs that are there.
pub fn figures(job: &Job<'_>, folder: &Path) -> Result<Vec<Figures>> {
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
