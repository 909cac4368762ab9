//! The order of a whole run: reach the server, ask what it serves, scrape, load, wait for quiet,
//! scrape again, report.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::Cache;
use crate::calibration::{self, Around, Calibration};
use crate::clock::Clock;
use crate::config::Config;
use crate::content::{Content, Prompts};
use crate::dataset::Filtered;
use crate::driver::{Plan, Run, RunResult};
use crate::gpu_watch::GpuWatch;
use crate::metric_map::ServerKind;
use crate::probe;
use crate::progress;
use crate::reconcile::Reconciliation;
use crate::report::{self, LengthsBy, Report, ServerInfo};
use crate::scene::{self, Scene};
use crate::scrape::{Delta, Scraper, Snapshot, names};
use crate::scrapes::Scrapes;
use crate::self_test::{self, Known};
use crate::server_times::ServerTimes;
use crate::target::Target;
use crate::timeline::{self, InWindow, Point, Timeline, Watched};
use crate::tokenizer;
use crate::workload::{Nonce, TokensPerWord, Workload};
use crate::workload_file::written;

/// How long a server that says it is not ready yet is waited for.
const READY: Duration = Duration::from_secs(120);
/// One token per word, for servers that cannot be asked.
const PLAIN_WORDS: TokensPerWord = TokensPerWord {
    per_word: 1.0,
    overhead: 0.0,
};

/// Performs the run that `config` describes. `interrupted` ends it early when it completes.
pub async fn measure(config: &Config, interrupted: impl Future<Output = ()>) -> Result<Report> {
    let self_test = self_test(config).await;
    let clock = Clock::start();
    let mut targets = Vec::new();
    for url in &config.urls {
        let key = config.api_key.as_deref();
        targets.push(Target::resolve(url.clone(), key, config.protocol, clock).await?);
    }
    for target in &targets {
        probe::ready(target, READY, note).await?;
    }
    note_left_out(config);
    let (workload, lengths_by, dropped) = prepare(config, &targets[0]).await?;
    let is_here = targets[0].address.ip().is_loopback();
    let is_read = config.watches_machine && is_here;
    let memory_before = is_read.then(calibration::memory_read).flatten();
    let mut metrics = Metrics::open(config, clock).await;
    let mut scene = Scene {
        self_test,
        ..Scene::here(&targets[0], &workload.model).await
    };
    let plan = Plan {
        arrival: config.arrival,
        warmup: config.warmup(),
        requests: config.requests,
        exact_count: config.exact_count(),
        duration: config.duration,
        ramp_up: config.ramp_up,
        timeouts: config.timeouts,
        connections: config.connections,
        retries: config.retries,
        samples_texts: matches!(lengths_by, LengthsBy::Tokenizer | LengthsBy::TokenIds),
        gives_up_on: config.slo.filter(|_| config.may_give_up),
    };
    let first = targets[0].clone();
    let run = Run::new(plan, targets, workload.clone(), clock);
    let is_watched = config.watches_gpus && is_here;
    let gpus = is_watched.then(|| GpuWatch::start("nvidia-smi", clock));
    let result = drive(&run, config, &mut metrics, interrupted).await;
    let gpus = gpus.flatten().map(|gpus| gpus.end(result.window));
    scene.gpus = gpus.unwrap_or_default();
    let (mut server, scrapes) = metrics.close(&result, config).await;
    if server.not_available.is_none() {
        let after = scene::version(&first).await;
        server
            .reconciliation
            .version(scene.version.as_ref(), after.as_ref());
    }
    let retokenised = tokenizer::again(&first, &workload, &result.records).await;
    let memory = memory_before.and_then(|before| {
        let after = calibration::memory_read()?;
        Some(Around { before, after })
    });
    scene.calibration = Calibration::new(memory, &scene.gpus);
    let mut report = Report::new(config, &workload, result, server, scene);
    report.load.lengths_by = Some(lengths_by);
    report.load.dropped_fields = dropped;
    report.lengths.retokenised = retokenised;
    report.scrapes = scrapes;
    report.workload = written::text(config);
    Ok(report)
}

/// The client alone, where it is to be tested.
async fn self_test(config: &Config) -> Option<Option<f64>> {
    match config.self_test {
        Known::Nothing => return None,
        Known::TestedBefore => {}
        Known::Events(sustained) => return Some(sustained),
    }
    let found = self_test::brief().await;
    found
        .inspect_err(|error| note(&format!("the client could not test itself: {error:#}")))
        .ok()
}

async fn drive(
    run: &Arc<Run>,
    config: &Config,
    metrics: &mut Metrics,
    interrupted: impl Future<Output = ()>,
) -> RunResult {
    let result = {
        let watched = metrics.watch(run);
        let finished = run.run();
        let shown = progress::show(Arc::clone(run), config);
        tokio::pin!(watched, finished, interrupted, shown);
        let (mut is_shown, mut is_running) = (true, true);
        loop {
            tokio::select! {
                biased;
                result = &mut finished => break result,
                () = &mut interrupted, if is_running => {
                    is_running = false;
                    run.stop();
                }
                () = &mut shown, if is_shown => is_shown = false,
                () = &mut watched => unreachable!("metrics are watched until the run ends"),
            }
        }
    };
    metrics.end_watch(run).await;
    result
}

/// Finds out what the workload needs to know of the server.
async fn prepare(
    config: &Config,
    target: &Target,
) -> Result<(Workload, LengthsBy, Vec<&'static str>)> {
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
        vocabulary: None,
        temperature: config.temperature,
        nonce: match config.cache {
            Cache::Cold => Some(Nonce::of_this_run(false)),
            Cache::Shared => Some(Nonce::of_this_run(true)),
            Cache::Warm => None,
        },
    };
    let dropped = drop_refused(&mut workload, target).await;
    let by = set_lengths(&mut workload, config, target).await;
    Ok((workload, by, dropped))
}

/// Leaves out what a target refuses, which only a refusal tells.
async fn drop_refused(workload: &mut Workload, target: &Target) -> Vec<&'static str> {
    let is_asked = workload.contents.iter().any(|c| c.ignore_eos);
    // A target that does not answer is told of by the next question.
    let is_refused = is_asked
        && probe::refuses_ignore_eos(target, workload)
            .await
            .unwrap_or(false);
    if !is_refused {
        return Vec::new();
    }
    note("the server refuses ignore_eos: answers may be shorter than is asked");
    for content in &mut workload.contents {
        content.ignore_eos = false;
    }
    vec!["ignore_eos"]
}

/// Finds out how prompts of a length are made: exactly where the server lets its tokenizer be asked, else as near as two
/// answers tell.
async fn set_lengths(workload: &mut Workload, config: &Config, target: &Target) -> LengthsBy {
    if let Some(per_word) = config.tokens_per_word {
        workload.tokens_per_word = TokensPerWord {
            per_word,
            overhead: 0.0,
        };
        return LengthsBy::Flag;
    }
    match probe::calibrate(target, workload).await {
        Ok(found) => workload.tokens_per_word = found,
        Err(error) => {
            note(&format!(
                "one token per word is assumed, since the server does not tell: {error:#}"
            ));
            return LengthsBy::Assumption;
        }
    }
    let has_words = |content: &Content| matches!(content.prompts, Prompts::Words(_));
    if !config.asks_tokenizer {
        return LengthsBy::Usage;
    }
    if workload.trace.is_none() && !workload.contents.iter().any(has_words) {
        return LengthsBy::Usage;
    }
    match tokenizer::learn(target, workload).await {
        Ok(Some(vocabulary)) => {
            let has_ids = vocabulary.has_ids();
            workload.vocabulary = Some(Arc::new(vocabulary));
            match has_ids {
                true => LengthsBy::TokenIds,
                false => LengthsBy::Tokenizer,
            }
        }
        Ok(None) => LengthsBy::Usage,
        Err(error) => {
            note(&format!("lengths of prompts are aimed at: {error:#}"));
            LengthsBy::Usage
        }
    }
}

/// The server's metrics, if there are any.
struct Metrics {
    open: Result<Open>,
    watched: Watched,
}

/// Metrics that were read before the run.
struct Open {
    scraper: Scraper,
    kind: ServerKind,
    before: Snapshot,
    was_quiet: bool,
}

impl Metrics {
    async fn open(config: &Config, clock: Clock) -> Self {
        Self {
            open: Self::scrape(config, clock).await,
            watched: Watched::default(),
        }
    }

    async fn scrape(config: &Config, clock: Clock) -> Result<Open> {
        let key = config.api_key.as_deref();
        let mut targets = Vec::new();
        for url in &config.metrics_urls {
            targets.push(Target::resolve(url.clone(), key, config.protocol, clock).await?);
        }
        let scraper = Scraper::new(targets, clock, config.api.path(), config.target_kind);
        let (before, was_quiet) = scraper.quiet(config.rest).await?;
        let kind = scraper.kind_of(&before);
        let kind = kind.context("the metrics are those of no known server")?;
        Ok(Open {
            scraper,
            kind,
            before,
            was_quiet,
        })
    }

    /// Scrapes until dropped.
    async fn watch(&mut self, run: &Run) {
        match &self.open {
            Ok(open) => timeline::watch(&open.scraper, run, &mut self.watched).await,
            Err(_) => std::future::pending().await,
        }
    }

    /// Catches up on what the end of the run kept `watch` from.
    async fn end_watch(&mut self, run: &Run) {
        if let Ok(open) = &self.open {
            timeline::end_watch(&open.scraper, run, &mut self.watched).await;
        }
    }

    /// Scrapes again and compares.
    async fn close(self, result: &RunResult, config: &Config) -> (ServerInfo, Option<Scrapes>) {
        let not_available = |reason: String, lost| {
            let server = ServerInfo {
                not_available: Some(reason),
                lost,
                quiet: true,
                kind: None,
                build: BTreeMap::new(),
                timeline: None,
                in_window: None,
                times: ServerTimes::default(),
                reconciliation: Reconciliation::default(),
            };
            (server, None)
        };
        let Open {
            scraper,
            kind,
            before,
            was_quiet,
        } = match self.open {
            Ok(open) => open,
            Err(error) => return not_available(format!("{error:#}"), false),
        };
        let (after, is_quiet) = match scraper.quiet(config.rest).await {
            Ok((after, is_quiet)) if scraper.kind_of(&after) == Some(kind) => (after, is_quiet),
            Ok(_) => return not_available("the metrics are gone".into(), true),
            Err(error) => return not_available(format!("{error:#}"), true),
        };
        let Watched { points, edges } = self.watched;
        let last = Point {
            // Nothing is counted between the end of such a window and that scrape.
            at: result.window.1,
            snapshot: Some(after.clone()),
        };
        let in_window = InWindow::new(kind, &edges, &last, result.window.0);
        let delta = Delta {
            before: &before,
            after: &after,
        };
        let records = &result.records;
        let mut reconciliation = match kind {
            ServerKind::Octet => Reconciliation::new(records, &delta, config.api),
            other => Reconciliation::of_peer(records, &delta, other),
        };
        let seen = timeline::in_flight_mean(kind, &points, result.window);
        let (own, _) = report::in_flight(records, result.window);
        reconciliation.in_flight(own, seen);
        let server = ServerInfo {
            not_available: None,
            lost: false,
            quiet: was_quiet && is_quiet,
            kind: Some(kind),
            build: build_of(&before),
            timeline: Timeline::new(kind, &points, result.window.0),
            in_window,
            times: ServerTimes::new(kind, &delta, records),
            reconciliation,
        };
        let scrapes = Scrapes {
            kind,
            points,
            first: before.text,
            last: after.text,
        };
        (server, Some(scrapes))
    }
}

/// What a server says of its build; several servers are taken to be alike.
fn build_of(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let series = snapshot.series(names::BUILD_INFO);
    let labels = series.first().map(|sample| sample.labels.clone());
    labels
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

/// Tells what of a dataset or a trace is not asked as it stands there.
fn note_left_out(config: &Config) {
    for content in &config.contents {
        if let Prompts::Dataset(dataset) = &content.prompts {
            let Filtered {
                empty,
                not_by_a_user,
                too_long,
            } = dataset.filtered;
            let left = dataset.conversations.len();
            note(&format!(
                "{}: {left} conversations; left out: {empty} without an answered question, \
                 {not_by_a_user} not begun by a user, {too_long} too long",
                dataset.name
            ));
        }
    }
    if let Some(trace) = &config.trace {
        let (left, empty, clipped) = (trace.requests.len(), trace.empty, trace.clipped);
        note(&format!(
            "the trace: {left} requests; {empty} of length zero left out, {clipped} prompts cut"
        ));
    }
}

/// Tells the user something on standard error.
fn note(text: &str) {
    // A closed standard error is no reason to end the measurement.
    let _ = writeln!(std::io::stderr(), "note: {text}");
}
