//! `loadtest index`: a table of everything in a folder of results, as `index.html` and `index.json`.

mod found;

use std::path::Path;

use anyhow::{Result, bail};
use maud::{Markup, html};
use serde::Serialize;

use super::group::Group;
use super::metric::{Latency, Metric, Quantile};
use super::tagged::{Of, tagged};
use super::{document, facts, suite};
use crate::results::{self, PAGE, write_whole};
use found::Found;

/// Version of `index.json`'s schema.
const SCHEMA: u32 = 1;

/// Columns of the table.
const HEADS: [&str; 11] = [
    "run",
    "load",
    "output",
    "",
    "first token p50",
    "p99",
    "each further p50",
    "runs",
    "verdict",
    "started (UTC)",
    "machine",
];

/// One configuration.
#[derive(Debug, Clone, Serialize)]
struct Entry {
    name: String,
    model: String,
    started: String,
    /// Its folder, seen from the index.
    folder: String,
    /// Its page, if it has one.
    page: Option<String>,
    /// The page of the comparison it is a side of.
    comparison: Option<String>,
    load: String,
    machine: String,
    runs: usize,
    /// Runs that numbers are taken from.
    counted: usize,
    output_tokens_per_second: Figure,
    ttft_p50_seconds: Figure,
    ttft_p99_seconds: Figure,
    tpot_p50_seconds: Figure,
    goodput_requests_per_second: Figure,
    verdict: &'static str,
}

/// A mean over runs and half of its 95 % interval, as far as there is one.
#[derive(Debug, Clone, Copy, Serialize)]
struct Figure {
    mean: Option<f64>,
    plus_minus: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Index<'a> {
    schema: u32,
    kind: &'static str,
    results: &'a [Entry],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    searches: &'a Vec<Found>,
}

/// Looks through `folder` and writes its index.
///
/// # Errors
/// A folder without results, a result that cannot be read, a file that cannot be written.
pub fn write(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    if let Some(page) = suite::page(folder)? {
        return write_page(folder, &page);
    }
    let mut searches = found::read(folder)?;
    let groups = Group::below(folder)?;
    if groups.is_empty() && searches.is_empty() {
        bail!("{} holds no results", folder.display());
    }
    let mut entries: Vec<Entry> = groups
        .iter()
        .map(|group| Entry::new(group, folder))
        .collect();
    // The newest first; what has no time last.
    entries.sort_by(|a, b| (&b.started, &a.folder).cmp(&(&a.started, &b.folder)));
    searches.sort_by(|a, b| (&b.started, &a.folder).cmp(&(&a.started, &b.folder)));
    let index = Index {
        schema: SCHEMA,
        kind: "index",
        results: &entries,
        searches: &searches,
    };
    results::write_json(&folder.join("index.json"), &index)?;
    let dry_run = groups
        .iter()
        .flat_map(|group| &group.runs)
        .any(|run| run.tool.dry_run);
    write_page(folder, &render(&entries, &searches, dry_run))
}

fn write_page(folder: &Path, page: &str) -> Result<()> {
    write_whole(&folder.join("index.html"), |out| {
        Ok(out.write_all(page.as_bytes())?)
    })
}

impl Entry {
    fn new(group: &Group, base: &Path) -> Self {
        let run = &group.runs[0];
        // Repeats share the folder above them.
        let place = match run.place.parent() {
            Some(parent) if run.is_repeated() => parent,
            _ => &run.place,
        };
        let below = |path: &Path| {
            path.strip_prefix(base)
                .unwrap_or(path)
                .to_string_lossy()
                .into_owned()
        };
        let page = |folder: &Path| {
            let page = folder.join(PAGE);
            page.is_file().then(|| below(&page))
        };
        let compared = run.series.is_some() && place != base && place.parent() != Some(base);
        let warned = group.counted().iter().any(|run| run.verdict == "warning");
        let figure = |metric: Metric| {
            let summary = group.summary(metric);
            Figure {
                mean: summary.map(|(value, _)| value),
                plus_minus: summary.and_then(|(value, i)| Some(value - i?.low)),
            }
        };
        let latency = |latency, quantile| figure(Metric::Latency(latency, quantile));
        Self {
            name: group.name.clone(),
            model: run.target.model.clone(),
            started: run.started.clone(),
            folder: below(place),
            page: page(place),
            comparison: place.parent().filter(|_| compared).and_then(page),
            load: run.load.arrival.brief(),
            machine: machine(group),
            runs: group.runs.len(),
            counted: group.counted().len(),
            output_tokens_per_second: figure(Metric::OutputTokens),
            ttft_p50_seconds: latency(Latency::Ttft, Quantile::P50),
            ttft_p99_seconds: latency(Latency::Ttft, Quantile::P99),
            tpot_p50_seconds: latency(Latency::Tpot, Quantile::P50),
            goodput_requests_per_second: figure(Metric::Goodput),
            verdict: match (group.is_valid(), warned) {
                (false, _) => "invalid",
                (true, true) => "warning",
                (true, false) => "valid",
            },
        }
    }
}

fn machine(group: &Group) -> String {
    let known = facts::machine(&group.runs[0]);
    let short = known.iter().take(2).map(|(_, value)| value.as_str());
    let parts: Vec<&str> = short.collect();
    match parts[..] {
        [cpu, cores] => format!("{cpu}, {cores} cores"),
        _ => String::new(),
    }
}

impl Figure {
    /// The figure `key` of the result of this number in the index.
    fn tagged(self, result: usize, key: &str, metric: Metric) -> Markup {
        let words = match (self.mean, self.plus_minus) {
            (None, _) => return html! { "–" },
            (Some(mean), None) => metric.words(mean),
            (Some(mean), Some(half)) => metric.plus_minus(mean, half),
        };
        let key = format!("results.{result}.{key}.mean");
        tagged(Of::Index, &key, self.mean.unwrap_or_default(), &words)
    }

    fn without_interval(self) -> Self {
        Self {
            plus_minus: None,
            ..self
        }
    }
}

fn render(entries: &[Entry], searches: &[Found], dry_run: bool) -> String {
    let of_runs = entries.iter().map(|entry| entry.model.as_str());
    let of_searches = searches.iter().map(|found| found.model.as_str());
    let mut models: Vec<&str> = of_runs.chain(of_searches).collect();
    models.sort_unstable();
    models.dedup();
    let body = html! {
        @if models.len() > 1 {
            nav { "Models: " @for (i, model) in models.iter().enumerate() { a href={ "#m" (i) } { (model) } " " } }
        }
        @for (i, model) in models.iter().enumerate() {
            section id={ "m" (i) } {
                h2 { (model) }
                (table(&entries.iter().enumerate().filter(|(_, entry)| entry.model == *model).collect::<Vec<_>>()))
                (found::table(&searches.iter().enumerate().filter(|(_, found)| found.model == *model).collect::<Vec<_>>()))
            }
        }
        p class="note" {
            "± is half of the 95 % interval of the mean over runs; a single run has none. Percentiles that so few requests cannot bound are –."
        }
    };
    document("Load tests", dry_run, &body)
}

fn table(entries: &[(usize, &Entry)]) -> Markup {
    if entries.is_empty() {
        return html! {};
    }
    let most = entries
        .iter()
        .filter_map(|(_, e)| e.output_tokens_per_second.mean)
        .fold(0.0, f64::max);
    html! {
        div class="wide" tabindex="0" { table {
            thead { tr { @for name in HEADS { th { (name) } } } }
            tbody { @for (i, entry) in entries { tr class=(if entry.verdict == "invalid" { "fail" } else { "" }) {
                th {
                    @match &entry.page { Some(page) => a href=(page) { (entry.name) }, None => (entry.name) }
                    @if let Some(page) = &entry.comparison { " (" a href=(page) { "compared" } ")" }
                }
                td { (entry.load) }
                td { (entry.output_tokens_per_second.tagged(*i, "output_tokens_per_second", Metric::OutputTokens)) }
                td { (bar(entry.output_tokens_per_second.mean, most)) }
                td { (entry.ttft_p50_seconds.tagged(*i, "ttft_p50_seconds", Metric::Latency(Latency::Ttft, Quantile::P50))) }
                td { (entry.ttft_p99_seconds.without_interval().tagged(*i, "ttft_p99_seconds", Metric::Latency(Latency::Ttft, Quantile::P99))) }
                td { (entry.tpot_p50_seconds.without_interval().tagged(*i, "tpot_p50_seconds", Metric::Latency(Latency::Tpot, Quantile::P50))) }
                td { (entry.counted) " of " (entry.runs) }
                td { (entry.verdict) }
                td { (entry.started.replace('T', " ").get(..16).unwrap_or(&entry.started)) }
                td { (entry.machine) }
            } } }
        } }
    }
}

/// A value as a bar from zero, beside others of its table.
fn bar(value: Option<f64>, most: f64) -> Markup {
    let Some(value) = value.filter(|_| most > 0.0) else {
        return html! {};
    };
    let width = (value / most * 80.0).round();
    html! {
        svg class="bar" viewBox="0 0 80 10" role="img" {
            title { (format!("{:.0} % of the most", value / most * 100.0)) }
            rect width=(width) height="10" {}
        }
    }
}
