//! Cells one after the other, and the summary of those that ended. A cell's folder holds its runs and,
//! once it is finished, `cell.json`; both appear complete or not at all.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use hyper::Method;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Fit, Model, Suite};
use crate::args::{Args, SuiteArgs};
use crate::clock::Clock;
use crate::config::Config;
use crate::results::{plain, write_json, write_run};
use crate::target::{HttpUrl, Target};
use crate::{app, page};

const POLL: Duration = Duration::from_millis(100);
const ANSWER: Duration = Duration::from_secs(2);
/// How long a server may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(40);
/// Variable of a server's environment: the folder of its suite.
const MARK: &str = "LOADTEST_SUITE_FOLDER";
/// Last bytes of a server's log that a failure shows.
const LOG_TAIL: usize = 2000;

/// How a cell ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Cell {
    model: String,
    precision: String,
    server: String,
    /// `done`, `does_not_fit`, `not_there` or `failed`.
    status: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    reason: String,
    runs: Vec<Figures>,
}

/// What the summary says of a run; the rest stands in its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    load: String,
    folder: String,
    output_tokens_per_second: f64,
    ttft_p50_seconds: Option<f64>,
    tpot_p50_seconds: Option<f64>,
    failed: u64,
    verdict: String,
}

#[derive(Serialize)]
struct Summary<'a> {
    schema: u32,
    kind: &'static str,
    name: &'a str,
    cells: Vec<Cell>,
    /// Cells that have not been run.
    left: usize,
}

/// Runs the cells that are not finished, as far as the budget goes. True when every cell was measured or
/// said why not.
///
/// # Errors
/// Another suite in the same folder, a file that cannot be written.
pub async fn run(suite: &Suite, args: &SuiteArgs, mut tell: impl FnMut(&str)) -> Result<bool> {
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| Path::new("results").join(plain(&suite.name)));
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let lock = File::create(out.join(".lock"))?;
    // A server that a killed suite was just starting holds the lock until it is a program of its own.
    let begun = Instant::now();
    while let Err(error) = lock.try_lock() {
        if begun.elapsed() > ANSWER {
            return Err(error).context("another suite writes into this folder");
        }
        tokio::time::sleep(POLL).await;
    }
    end_left_over(&out)?;
    let mut left = args.budget;
    let mut cells = Vec::new();
    let mut waiting = 0;
    for (model, precision) in suite.cells() {
        let folder = out.join(folder_name(suite, model, precision));
        let name = format!("{} {precision} on {}", model.name, model.server);
        if let Some(cell) = finished(&folder)? {
            tell(&format!("{name}: {} before", cell.status));
            cells.push(cell);
            continue;
        }
        let expected = suite.expected(&model.server);
        let fit = suite.fit(model.shape, precision);
        let takes = if fit.and_then(|f| f.refusal()).is_some() {
            Duration::ZERO
        } else {
            expected
        };
        match left {
            Some(budget) if takes > budget => {
                tell(&format!("{name}: left out, it would exceed the budget"));
                waiting += 1;
                continue;
            }
            Some(budget) => left = Some(budget - takes),
            None => {}
        }
        tell(&format!("{name}: begins"));
        let cell = measure(suite, model, precision, fit, &folder).await?;
        // What is not there today may be there tomorrow.
        if cell.status != "not_there" {
            write_json(&folder.join("cell.json"), &cell)?;
        }
        tell(&format!("{name}: {} {}", cell.status, cell.reason));
        cells.push(cell);
    }
    let is_clean = waiting == 0 && cells.iter().all(|cell| cell.status != "failed");
    let has_runs = cells.iter().any(|cell| !cell.runs.is_empty());
    let (kind, name) = ("suite", suite.name.as_str());
    write_json(
        &out.join("summary.json"),
        &Summary {
            schema: 1,
            kind,
            name,
            cells,
            left: waiting,
        },
    )?;
    if has_runs {
        page::index::write(&out)?;
    }
    Ok(is_clean)
}

/// A change of the command or of the loads makes another cell.
fn folder_name(suite: &Suite, model: &Model, precision: &str) -> String {
    let mut hash = Sha256::new();
    for word in &suite.server[&model.server].command {
        hash.update(word);
        hash.update([0]);
    }
    hash.update(&model.source);
    for load in &suite.load {
        hash.update(format!("\0{}\0{}\0{}", load.name, load.flags, load.repeats));
    }
    let digest = hash.finalize();
    let (model, server) = (plain(&model.name), plain(&model.server));
    format!(
        "{model}-{}-{server}-{:02x}{:02x}",
        plain(precision),
        digest[0],
        digest[1]
    )
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
    model: &Model,
    precision: &str,
    fit: Option<Fit>,
    folder: &Path,
) -> Result<Cell> {
    let mut cell = Cell {
        model: model.name.clone(),
        precision: precision.to_owned(),
        server: model.server.clone(),
        status: "done".into(),
        reason: String::new(),
        runs: Vec::new(),
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if let Some(refusal) = fit.and_then(|fit| fit.refusal()) {
        (cell.status, cell.reason) = ("does_not_fit".into(), refusal);
        return Ok(cell);
    }
    let program = &suite.server[&model.server].command[0];
    let Some(program) = find(program) else {
        (cell.status, cell.reason) = ("not_there".into(), format!("{program} is not installed"));
        return Ok(cell);
    };
    let log = tempfile::NamedTempFile::new()?;
    if let Err(error) = serve(
        suite,
        model,
        precision,
        &program,
        &log,
        folder,
        &mut cell.runs,
    )
    .await
    {
        let text = std::fs::read(log.path()).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]);
        (cell.status, cell.reason) = ("failed".into(), format!("{error:#}; {}", tail.trim()));
    }
    Ok(cell)
}

/// Beside this program, where a release puts both, else where the shell looks.
fn find(program: &str) -> Option<PathBuf> {
    let here = std::env::current_exe()
        .ok()
        .and_then(|p| Some(p.parent()?.to_owned()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = here.into_iter().chain(std::env::split_paths(&path));
    folders
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

async fn serve(
    suite: &Suite,
    model: &Model,
    precision: &str,
    program: &Path,
    log: &tempfile::NamedTempFile,
    folder: &Path,
    runs: &mut Vec<Figures>,
) -> Result<()> {
    let server = &suite.server[&model.server];
    let port = TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port()
        .to_string();
    let pairs = [
        ("{source}", model.source.as_str()),
        ("{precision}", precision),
        ("{name}", &model.name),
        ("{port}", &port),
    ];
    let filled = |word: &String| {
        pairs
            .iter()
            .fold(word.clone(), |w, (key, value)| w.replace(key, value))
    };
    let words = server.command[1..]
        .iter()
        .map(filled)
        .filter(|word| !word.is_empty());
    let mut child = Command::new(program)
        .args(words)
        .env(MARK, mark(folder.parent().unwrap_or(folder))?)
        .stdin(Stdio::null())
        .stdout(log.reopen()?)
        .stderr(log.reopen()?)
        .spawn()
        .map(Served)?;
    let url = format!("http://127.0.0.1:{port}");
    ready(
        &mut child.0,
        &url,
        &server.ready,
        Duration::from_secs_f64(server.start_s),
    )
    .await?;
    for load in &suite.load {
        for repeat in 1..=load.repeats {
            let place = if load.repeats > 1 {
                folder.join(plain(&load.name)).join(repeat.to_string())
            } else {
                folder.join(plain(&load.name))
            };
            let name = format!(
                "{} {precision} on {}, {}",
                model.name, model.server, load.name
            );
            let seed = repeat.to_string();
            let fixed = [
                "loadtest", "--quiet", "--url", &url, "--name", &name, "--seed", &seed,
            ];
            let args = Args::try_parse_from(fixed.into_iter().chain(load.flags.split_whitespace()))
                .with_context(|| format!("the load {}", load.name))?;
            let report = app::measure(&Config::try_from(args)?, std::future::pending()).await?;
            write_run(&place, &report)?;
            let verdict = serde_json::to_value(report.verdict)?;
            let json = serde_json::to_value(&report.latency)?;
            runs.push(Figures {
                load: load.name.clone(),
                folder: place
                    .strip_prefix(folder)
                    .unwrap_or(&place)
                    .display()
                    .to_string(),
                output_tokens_per_second: report.rates.output_tokens,
                ttft_p50_seconds: json["ttft"]["p50"].as_f64(),
                tpot_p50_seconds: json["tpot"]["p50"].as_f64(),
                failed: report.requests.failed,
                verdict: verdict.as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    Ok(())
}

/// What marks the servers of a suite, so that the next one over the same folder finds those that were
/// left when it was killed, at whatever moment that was.
fn mark(out: &Path) -> Result<String> {
    let out = std::path::absolute(out)?;
    Ok(out.display().to_string())
}

/// Ends the servers of a suite that was killed.
fn end_left_over(out: &Path) -> Result<()> {
    let wanted = format!("{MARK}={}", mark(out)?);
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Ok(());
    };
    for process in processes.flatten() {
        // Those of other users cannot be read, and are not ours.
        let variables = std::fs::read(process.path().join("environ")).unwrap_or_default();
        if variables.split(|b| *b == 0).any(|v| v == wanted.as_bytes()) {
            let _ = Command::new("kill")
                .arg("-9")
                .arg(process.file_name())
                .status();
        }
    }
    Ok(())
}

async fn ready(child: &mut Child, url: &str, path: &str, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let clock = Clock::start();
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the server ended before it was ready ({status})");
        }
        if let Ok(target) = Target::resolve(HttpUrl::parse_base(url)?, None, clock).await {
            let answer = target
                .fetch(Method::GET, path, "*/*", Bytes::new(), ANSWER)
                .await;
            if matches!(answer, Ok((200, _))) {
                return Ok(());
            }
        }
        if begun.elapsed() > limit {
            bail!("the server was not ready within {} s", limit.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A running server: asked to end when dropped, and made to when it does not.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let pid = self.0.id().to_string();
        let _ = Command::new("kill").arg(&pid).status();
        let begun = Instant::now();
        while begun.elapsed() < STOP {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
