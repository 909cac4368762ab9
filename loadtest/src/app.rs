//! The order of a whole run: reach the server, ask what it serves, scrape, load, wait for quiet,
//! scrape again, report.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::args::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::driver::{Plan, Run, RunResult};
use crate::probe;
use crate::progress;
use crate::reconcile::Reconciliation;
use crate::report::{Report, ServerInfo};
use crate::scrape::{Delta, Scraper, Snapshot};
use crate::target::Target;
use crate::workload::{self, TokensPerWord, Workload};

/// How long the server may take to come to rest before and after the run.
const QUIET_BOUND: Duration = Duration::from_secs(10);
/// One token per word, for servers that cannot be asked.
const PLAIN_WORDS: TokensPerWord = TokensPerWord {
    per_word: 1.0,
    overhead: 0.0,
};

/// Performs the run that `config` describes. `interrupted` ends it early when it completes.
pub async fn measure(config: &Config, interrupted: impl Future<Output = ()>) -> Result<Report> {
    let clock = Clock::start();
    let mut targets = Vec::new();
    for url in &config.urls {
        targets.push(Target::resolve(url.clone(), config.api_key.as_deref(), clock).await?);
    }
    let workload = prepare(config, &targets[0]).await?;
    let metrics = Metrics::open(config, clock).await;
    let plan = Plan {
        arrival: config.arrival,
        warmup: config.warmup,
        requests: config.requests,
        duration: config.duration,
        ramp_up: config.ramp_up,
        timeouts: config.timeouts,
    };
    let run = Run::new(plan, targets, workload.clone(), clock);
    let result = drive(&run, config, interrupted).await;
    let server = metrics.close(&result, config).await;
    Ok(Report::new(config, &workload, &result, server))
}

async fn drive(
    run: &Arc<Run>,
    config: &Config,
    interrupted: impl Future<Output = ()>,
) -> RunResult {
    let finished = run.run();
    tokio::pin!(finished, interrupted);
    let shown = progress::show(Arc::clone(run), config);
    tokio::pin!(shown);
    let (mut is_shown, mut is_running) = (true, true);
    loop {
        tokio::select! {
            biased;
            result = &mut finished => return result,
            () = &mut interrupted, if is_running => {
                is_running = false;
                run.stop();
            }
            () = &mut shown, if is_shown => is_shown = false,
        }
    }
}

/// Finds out what the workload needs to know of the server.
async fn prepare(config: &Config, target: &Target) -> Result<Workload> {
    let model = match &config.model {
        Some(model) => model.clone(),
        None => probe::first_model(target).await?,
    };
    let mut workload = Workload {
        api: config.api,
        model,
        seed: config.seed,
        contents: config.contents.clone(),
        trace: config.trace.clone(),
        tokens_per_word: PLAIN_WORDS,
        temperature: config.temperature,
        nonce: (config.cache == Cache::Cold).then(workload::nonce),
    };
    workload.tokens_per_word = match config.tokens_per_word {
        Some(per_word) => TokensPerWord {
            per_word,
            overhead: 0.0,
        },
        None => probe::calibrate(target, &workload)
            .await
            .unwrap_or_else(|error| {
                note(&format!(
                    "one token per word is assumed, since the server does not tell: {error:#}"
                ));
                PLAIN_WORDS
            }),
    };
    Ok(workload)
}

/// The server's metrics before the run, if there are any.
struct Metrics(Result<(Scraper, Snapshot, bool)>);

impl Metrics {
    async fn open(config: &Config, clock: Clock) -> Self {
        Self(Self::scrape(config, clock).await)
    }

    async fn scrape(config: &Config, clock: Clock) -> Result<(Scraper, Snapshot, bool)> {
        let key = config.api_key.as_deref();
        let mut targets = Vec::new();
        for url in &config.metrics_urls {
            targets.push(Target::resolve(url.clone(), key, clock).await?);
        }
        let scraper = Scraper::new(targets, clock, config.api.path());
        let (before, was_quiet) = scraper.quiet(QUIET_BOUND).await?;
        anyhow::ensure!(before.is_octet(), "the server has no octet_ metrics");
        Ok((scraper, before, was_quiet))
    }

    /// Scrapes again and compares.
    async fn close(self, result: &RunResult, config: &Config) -> ServerInfo {
        let not_available = |reason: String, lost| ServerInfo {
            not_available: Some(reason),
            lost,
            quiet: true,
            reconciliation: Reconciliation::default(),
        };
        let (scraper, before, was_quiet) = match self.0 {
            Ok(open) => open,
            Err(error) => return not_available(format!("{error:#}"), false),
        };
        let (after, is_quiet) = match scraper.quiet(QUIET_BOUND).await {
            Ok((after, is_quiet)) if after.is_octet() => (after, is_quiet),
            Ok(_) => return not_available("the octet_ metrics are gone".into(), true),
            Err(error) => return not_available(format!("{error:#}"), true),
        };
        let delta = Delta {
            before: &before,
            after: &after,
        };
        ServerInfo {
            not_available: None,
            lost: false,
            quiet: was_quiet && is_quiet,
            reconciliation: Reconciliation::new(&result.records, &delta, config.api),
        }
    }
}

/// Writes a report as JSON, complete or not at all.
pub fn write_json(report: &impl Serialize, path: &Path) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    let mut partial = path.as_os_str().to_owned();
    partial.push(".part");
    std::fs::write(&partial, text)
        .and_then(|()| std::fs::rename(&partial, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Tells the user something on standard error.
fn note(text: &str) {
    // A closed standard error is no reason to end the measurement.
    let _ = writeln!(std::io::stderr(), "note: {text}");
}
