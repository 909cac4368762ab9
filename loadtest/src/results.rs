//! The folder of a run: `run.json` with its results, `requests.jsonl` with every request, `metrics.jsonl` with
//! every scrape beside the text of the first and the last, `workload.toml` with its load, and `report.html`. Runs of one configuration stand beside each other in folders `1`, `2`, …, those of a
//! comparison in one such folder for each side. Files appear complete or not at all.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::clock::Nanos;
use crate::page;
use crate::page::search::Search;
use crate::record::{Phase, RequestRecord};
use crate::report::Report;
use crate::search::SearchReport;
use crate::stats::Gaps;

/// Name of the file with the results of a run.
pub const RUN: &str = "run.json";
/// Name of the file with its requests.
pub const REQUESTS: &str = "requests.jsonl";
/// Name of the file with what the server's metrics were over the run.
pub const METRICS: &str = "metrics.jsonl";
/// Names of the files with its metrics as they were before and after the run.
pub const SCRAPES: [&str; 2] = ["metrics-before.txt", "metrics-after.txt"];
/// Name of the file with the load.
pub const WORKLOAD: &str = "workload.toml";
/// Name of the file with the result of a search.
pub const SEARCH: &str = "search.json";
/// Name of a page.
pub const PAGE: &str = "report.html";

/// A new folder `<time>-<name>` in `parent`.
///
/// # Errors
/// A folder that is there already, or cannot be made.
pub fn new_folder(parent: &Path, started: &str, name: &str) -> Result<PathBuf> {
    let time: String = started.chars().filter(|c| !":Z".contains(*c)).collect();
    let folder = parent.join(format!("{time}-{}", plain(name)));
    std::fs::create_dir_all(parent)
        .and_then(|()| std::fs::create_dir(&folder))
        .with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// A name as part of a path: letters, digits, dots and dashes, at most 60 of them.
pub fn plain(name: &str) -> String {
    let fit = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    let text: String = name.chars().take(60).map(fit).collect();
    let text = text.trim_matches(['-', '.']);
    if text.is_empty() {
        "run".to_owned()
    } else {
        text.to_owned()
    }
}

/// Writes the files of a run into `folder`, which is made where it is missing; `run.json` and the page last.
///
/// # Errors
/// A file that cannot be written.
pub fn write_run(folder: &Path, report: &Report) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    write_whole(&folder.join(REQUESTS), |out| write_requests(out, report))?;
    write_whole(&folder.join(WORKLOAD), |out| {
        Ok(out.write_all(report.workload.as_bytes())?)
    })?;
    if let Some(scrapes) = &report.scrapes {
        let lines = |out: &mut dyn Write| scrapes.write(out, report.origin());
        write_whole(&folder.join(METRICS), lines)?;
        for (name, text) in SCRAPES.iter().zip([&scrapes.first, &scrapes.last]) {
            write_whole(
                &folder.join(name),
                |out| Ok(out.write_all(text.as_bytes())?),
            )?;
        }
    }
    write_json(&folder.join(RUN), report)?;
    page::write(&[folder.to_owned()], &folder.join(PAGE))
}

/// Writes the result of a search and its page into `folder`, which is made where it is missing.
///
/// # Errors
/// A file that cannot be written.
pub fn write_search(folder: &Path, report: &SearchReport) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let page = Search::parse(serde_json::to_value(report)?)?.render();
    page::write_text(&folder.join(PAGE), &page)?;
    // The last one: where it is, a suite does not search again.
    write_json(&folder.join(SEARCH), report)
}

/// Writes an object as JSON.
///
/// # Errors
/// A file that cannot be written.
pub fn write_json(path: &Path, object: &impl Serialize) -> Result<()> {
    write_whole(path, |out| {
        serde_json::to_writer_pretty(&mut *out, object)?;
        Ok(out.write_all(b"\n")?)
    })
}

/// Writes a file under another name and gives it its own once it is complete and on the disk.
///
/// # Errors
/// A file that cannot be written.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".part");
    let written = || -> Result<()> {
        let mut out = BufWriter::new(std::fs::File::create(&partial)?);
        write(&mut out)?;
        out.into_inner()
            .map_err(std::io::IntoInnerError::into_error)?
            .sync_all()?;
        Ok(std::fs::rename(&partial, path)?)
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

fn write_requests(out: &mut dyn Write, report: &Report) -> Result<()> {
    for record in &report.records {
        serde_json::to_writer(&mut *out, &RequestLine::new(record, report.origin()))?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// One request in `requests.jsonl`; times are in microseconds after the planned start of the first.
#[derive(Debug, Serialize)]
struct RequestLine<'a> {
    index: u64,
    phase: &'static str,
    conversation: u64,
    turn: u32,
    content: usize,
    server: usize,
    outcome: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    plan: u64,
    send: Option<u64>,
    head: Option<u64>,
    first: Option<u64>,
    last: Option<u64>,
    end: u64,
    prompt_tokens_asked: u32,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens_asked: u32,
    output_tokens: u64,
    /// Gaps between events as value and count.
    gaps: Vec<(u64, u64)>,
}

impl<'a> RequestLine<'a> {
    fn new(record: &'a RequestRecord, origin: Nanos) -> Self {
        let time = |at: Nanos| (at.saturating_sub(origin) + 500) / 1000;
        let mut gaps = Gaps::default();
        record.stream.gaps.iter().for_each(|gap| gaps.record(*gap));
        Self {
            index: record.index,
            phase: match record.phase {
                Phase::Warmup => "warmup",
                Phase::Measured => "measured",
                Phase::Background => "background",
                Phase::Retried => "retried",
            },
            conversation: record.conversation,
            turn: record.turn,
            content: record.content,
            server: record.server,
            outcome: record.outcome.name().into_owned(),
            detail: &record.detail,
            plan: time(record.t_plan),
            send: record.t_send.map(time),
            head: record.t_head.map(time),
            first: record.stream.t_first.map(time),
            last: record.stream.t_last.map(time),
            end: time(record.t_end),
            prompt_tokens_asked: record.asked_prompt_tokens,
            prompt_tokens: record.prompt_tokens(),
            cached_tokens: record.cached_tokens(),
            output_tokens_asked: record.asked_output_tokens,
            output_tokens: record.output_tokens(),
            gaps: gaps.counts(),
        }
    }
}
