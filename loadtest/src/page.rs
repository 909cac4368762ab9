//! `loadtest report`: one page of HTML from the results of one run, of repeats, or of several configurations,
//! with everything in it: no script, no font, no picture from elsewhere. The same files give the same bytes.

mod axis;
mod chart;
mod compare;
mod data;
mod facts;
mod group;
pub mod index;
mod metric;
mod ratio;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::interval::{Interval, within_run};
use crate::results::{PAGE, write_whole};
use crate::stats::Percentile;
use axis::{Axis, Scale};
use chart::{Chart, Form, Series};
use data::{Run, milliseconds, number};
use group::Group;
use metric::{Latency, Metric, Quantile};

/// Configurations on one page: more colours cannot be told apart.
const MAX_GROUPS: usize = 6;
/// Dots of one series; more hide each other.
const MAX_DOTS: usize = 2000;
const STYLE: &str = include_str!("page/style.css");

/// Reads result files and folders and writes their page.
///
/// # Errors
/// A file that cannot be read or written, or is not the result of a run.
pub fn write(places: &[PathBuf], output: &Path) -> Result<()> {
    let mut groups = Vec::new();
    for place in places {
        groups.extend(Group::read(place)?);
    }
    if groups.len() > MAX_GROUPS {
        let n = groups.len();
        bail!("{n} configurations, more than the {MAX_GROUPS} that fit one page");
    }
    name_apart(&mut groups);
    for run in groups.iter_mut().flat_map(|group| &mut group.runs) {
        run.link = link(&run.place, output);
    }
    let text = render(&groups);
    write_whole(output, |out| Ok(out.write_all(text.as_bytes())?))
}

/// What the runs in a folder say, in a few lines of text.
///
/// # Errors
/// A folder that holds no results.
pub fn summary(folder: &Path) -> Result<String> {
    let groups = Group::read(folder)?;
    if groups.len() > 1 {
        return Ok(compare::summary(&groups));
    }
    let metrics = Metric::headlines(&groups);
    let lines = metrics.iter().filter_map(|metric| {
        let (value, interval) = groups[0].summary(*metric)?;
        let spread = match interval {
            Some(i) => format!(
                "95 % {} over {} runs",
                ends(*metric, i),
                groups[0].counted().len()
            ),
            None => "one run, no interval".to_owned(),
        };
        Some(format!(
            "{:<26}{:>16}   {spread}",
            metric.name(),
            metric.words(value)
        ))
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Numbers groups of one name.
fn name_apart(groups: &mut [Group]) {
    let names: Vec<String> = groups.iter().map(|group| group.name.clone()).collect();
    for (i, group) in groups.iter_mut().enumerate() {
        if names.iter().filter(|name| **name == group.name).count() > 1 {
            let before = names[..=i]
                .iter()
                .filter(|name| **name == group.name)
                .count();
            group.name = format!("{} ({before})", group.name);
        }
    }
}

/// The page of a run's own, seen from `output`, if it lies in a folder below it.
fn link(place: &Path, output: &Path) -> Option<String> {
    let base = output.parent().unwrap_or(Path::new(""));
    let below = place.strip_prefix(base).ok()?;
    let has_page = place.is_dir() && below != Path::new("");
    has_page.then(|| below.join(PAGE).to_string_lossy().into_owned())
}

/// A page with a title and a body.
pub(crate) fn document(title: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body { main { h1 { (title) } (body) } }
        }
    };
    page.into_string()
}

/// The page of at least one group.
pub(crate) fn render(groups: &[Group]) -> String {
    let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    let title = match groups {
        [group] => format!("{}: load test", group.name),
        _ => format!("{}: load tests compared", names.join(" against ")),
    };
    let body = html! {
        @if groups.len() > 1 { (compare::verdicts(groups)) }
        @else { (verdict(&groups[0])) (tiles(&groups[0])) }
        @if groups.len() > 1 { (side_by_side(groups)) (compare::differences(groups)) }
        @for group in groups { @if group.runs.len() > 1 { (run_table(group)) } }
        (plots(groups))
        @for group in groups { (details(group, groups.len() > 1)) }
    };
    document(&title, &body)
}

/// What came out, in words, and whether to believe it.
fn verdict(group: &Group) -> Markup {
    let run = &group.runs[0];
    let (counted, excluded) = (group.counted(), group.excluded().count());
    let warned = counted.iter().any(|run| run.verdict == "warning");
    let (word, class) = match (group.is_valid(), warned || excluded > 0) {
        (true, false) => ("valid", "good"),
        (true, true) => ("valid, with warnings", "fair"),
        (false, _) => ("not valid", "bad"),
    };
    let [failed, measured] = [|r: &&Run| r.requests.failed, |r: &&Run| r.requests.measured]
        .map(|of| counted.iter().map(of).sum::<u64>());
    let value = |metric: Metric| group.summary(metric).map(|(value, _)| metric.words(value));
    let rate = value(Metric::OutputTokens).unwrap_or_default();
    let ttft = value(Metric::Latency(Latency::Ttft, Quantile::P50));
    html! {
        section class={ "verdict " (class) } {
            p class="headline" {
                (run.target.model) " gave " strong { (rate) }
                " to " (run.load.arrival.words())
                @if let Some(ttft) = ttft { "; half of the first tokens came within " strong { (ttft) } }
                "."
            }
            p {
                (measured - failed) " of " (measured) " requests succeeded. The measurement is " strong { (word) }
                @if group.runs.len() > 1 { ": " (counted.len()) " of " (group.runs.len()) " runs count" }
                @else { ": one run, which says nothing about the next one (" code { "--repeats 5" } " does)" }
                "."
            }
            (reasons(group))
        }
    }
}

/// What speaks against runs, each reason once.
fn reasons(group: &Group) -> Markup {
    let mut seen: Vec<(&str, Vec<String>)> = Vec::new();
    for (i, run) in group.runs.iter().enumerate() {
        for reason in &run.reasons {
            match seen.iter_mut().find(|(known, _)| known == reason) {
                Some((_, runs)) => runs.push((i + 1).to_string()),
                None => seen.push((reason, vec![(i + 1).to_string()])),
            }
        }
    }
    html! {
        @if !seen.is_empty() {
            ul { @for (reason, runs) in &seen {
                li { (reason) @if group.runs.len() > 1 { " (run " (runs.join(", ")) ")" } }
            } }
        }
    }
}

fn tiles(group: &Group) -> Markup {
    let groups = std::slice::from_ref(group);
    let latencies = [Latency::Ttft, Latency::Tpot, Latency::E2e];
    html! {
        section class="tiles" {
            (tile(group, Metric::OutputTokens, None))
            @if group.runs[0].goodput.is_some() { (tile(group, Metric::Goodput, None)) }
            @for latency in latencies {
                (tile(group, Metric::Latency(latency, Quantile::P50), Some(latency.highest(groups))))
            }
        }
    }
}

/// A metric with its interval, and one of its tail.
fn tile(group: &Group, metric: Metric, tail: Option<Metric>) -> Markup {
    let words = |metric: Metric| match group.summary(metric) {
        Some((value, _)) => metric.words(value),
        None => "–".to_owned(),
    };
    let interval = match group.summary(metric) {
        Some((_, Some(interval))) => {
            format!(
                "{}, 95 % over {} runs",
                ends(metric, interval),
                group.counted().len()
            )
        }
        _ => match median_within(group, metric) {
            Some(interval) => format!("{}, 95 % within this run only", ends(metric, interval)),
            None => "one run, no interval".to_owned(),
        },
    };
    html! {
        div class="tile" {
            p class="name" { (metric.name()) }
            p class="value" { (words(metric)) }
            p class="note" { (interval) }
            @if let (Metric::Goodput, [run]) = (metric, &group.runs[..]) { p class="note" { (kept(run)) } }
            @if let Some(tail) = tail.filter(|tail| *tail != metric) {
                p class="note" { (tail.name()) ": " (words(tail)) }
            }
        }
    }
}

/// The share of the requests that kept the limits.
fn kept(run: &Run) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let Some(goodput) = &run.goodput else {
        return String::new();
    };
    let share = &goodput.attainment;
    let value = share.value.map_or_else(|| "–".to_owned(), percent);
    format!(
        "limits kept by {value} ({} to {})",
        percent(share.low),
        percent(share.high)
    )
}

fn ends(metric: Metric, interval: Interval) -> String {
    format!(
        "{} to {}",
        metric.words(interval.low.max(0.0)),
        metric.words(interval.high)
    )
}

/// The interval of a median as far as one run knows it.
fn median_within(group: &Group, metric: Metric) -> Option<Interval> {
    let (Metric::Latency(latency, Quantile::P50), [run]) = (metric, &group.runs[..]) else {
        return None;
    };
    let value = |s: &data::Sample| match latency {
        Latency::Ttft => s.ttft,
        Latency::Tpot => s.tpot,
        Latency::E2e => s.e2e,
    };
    let moments = run.samples.iter().filter_map(|s| Some((s.t, value(s)?)));
    let moments: Vec<(f64, f64)> = moments.collect();
    let answer = run.latency.e2e.p95.or(run.latency.e2e.max)?;
    within_run(&moments, run.window.seconds, answer, 0.5)
}

/// The numbers of all groups in one table.
fn side_by_side(groups: &[Group]) -> Markup {
    let mut metrics = vec![Metric::OutputTokens, Metric::CompletedRequests];
    if groups.iter().any(|group| group.runs[0].goodput.is_some()) {
        metrics.push(Metric::Goodput);
    }
    for latency in [Latency::Ttft, Latency::Tpot, Latency::E2e] {
        for quantile in [Quantile::P50, Quantile::P95, Quantile::P99] {
            metrics.push(Metric::Latency(latency, quantile));
        }
    }
    let failed = |group: &Group| -> u64 { group.runs.iter().map(|r| r.requests.failed).sum() };
    html! {
        section {
            h2 { "Side by side" }
            div class="wide" { table {
                thead { tr { th {} @for group in groups { th { (group.name) } } } }
                tbody {
                    @for metric in metrics {
                        tr { th { (metric.name()) } @for group in groups { td { (cell(group, metric)) } } }
                    }
                    tr { th { "Failed requests" } @for group in groups { td { (failed(group)) } } }
                    tr { th { "Runs counted" } @for group in groups { td { (group.counted().len()) " of " (group.runs.len()) } } }
                }
            } }
            p class="note" { "± is half of the 95 % interval of the mean over runs." }
        }
    }
}

fn cell(group: &Group, metric: Metric) -> String {
    match group.summary(metric) {
        None => "–".to_owned(),
        Some((value, None)) => metric.words(value),
        Some((value, Some(i))) => metric.plus_minus(value, value - i.low),
    }
}

/// The runs of a group one by one: no mean hides the worst of them.
fn run_table(group: &Group) -> Markup {
    let metrics = [
        Metric::OutputTokens,
        Metric::Latency(Latency::Ttft, Quantile::P50),
        Metric::Latency(Latency::Ttft, Quantile::P99),
        Metric::Latency(Latency::Tpot, Quantile::P50),
        Metric::Latency(Latency::E2e, Quantile::P50),
    ];
    let counted = group.counted();
    let slowest = counted
        .iter()
        .min_by(|a, b| a.rates.output_tokens.total_cmp(&b.rates.output_tokens));
    html! {
        section {
            h2 { "Run by run: " (group.name) }
            div class="wide" { table {
                thead { tr { th { "run" } th { "seed" } @for metric in metrics { th { (metric.name()) } } th { "failed" } th { "verdict" } } }
                tbody { @for (i, run) in group.runs.iter().enumerate() {
                    tr class=(if run.is_valid() { "" } else { "fail" }) {
                        th {
                            @match &run.link { Some(link) => a href=(link) { "run " (i + 1) }, None => { "run " (i + 1) } }
                            @if slowest.is_some_and(|slowest| std::ptr::eq(*slowest, run)) { " (least output)" }
                        }
                        td { (run.load.seed) }
                        @for metric in metrics { td { (metric.of(run).map_or("–".to_owned(), |v| metric.words(v))) } }
                        td { (run.requests.failed) }
                        td { (run.verdict) @if !run.is_valid() { ", left out" } }
                    }
                } }
            } }
        }
    }
}

/// A measure of a request.
type Measure = fn(&data::Sample) -> Option<f64>;

fn plots(groups: &[Group]) -> Markup {
    const LATENCIES: [(&str, Measure); 3] = [
        ("Time to first token", |s| s.ttft),
        ("Time per output token", |s| s.tpot),
        ("Whole answer", |s| s.e2e),
    ];
    html! {
        section {
            h2 { "How latency is spread" }
            p class="note" {
                "Read from left to right: the share of requests that were at least this fast. Tails are at the right."
            }
            div class="charts" {
                @for (name, measure) in LATENCIES { (by_percentile(groups, name, measure)) }
            }
            h2 { "Over the run" }
            div class="charts" {
                (dots(groups, "Time to first token, by start", "seconds since the window began", |s| Some(s.t)))
                (dots(groups, "Time to first token, by prompt", "prompt tokens", |s| Some(s.prompt_tokens as f64)))
            }
        }
    }
}

fn by_percentile(groups: &[Group], name: &str, measure: Measure) -> Markup {
    let series = groups.iter().map(|group| {
        let samples = group.counted().into_iter().flat_map(|run| &run.samples);
        let mut values: Vec<f64> = samples.filter_map(measure).collect();
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let last = values.len().saturating_sub(1);
        Series {
            name: group.name.clone(),
            form: Form::Line,
            // The largest value stands at one share short of everything.
            points: values
                .iter()
                .enumerate()
                .filter(|(i, _)| last < MAX_DOTS || i % (last / MAX_DOTS + 1) == 0 || *i == last)
                .map(|(i, value)| ((i as f64 + 0.5) / n, *value))
                .collect(),
        }
    });
    Chart {
        title: name.to_owned(),
        x: Axis::new("share of requests", Scale::Percentile),
        y: Axis::new("seconds", Scale::Log),
        series: series.collect(),
    }
    .draw()
}

fn dots(groups: &[Group], title: &str, x: &'static str, place: Measure) -> Markup {
    let series = groups.iter().map(|group| {
        let samples: Vec<&data::Sample> = group
            .counted()
            .into_iter()
            .flat_map(|run| &run.samples)
            .collect();
        let step = samples.len() / MAX_DOTS + 1;
        let samples = samples.into_iter().step_by(step);
        Series {
            name: group.name.clone(),
            form: Form::Dots,
            points: samples.filter_map(|s| Some((place(s)?, s.ttft?))).collect(),
        }
    });
    Chart {
        title: title.to_owned(),
        x: Axis::new(x, Scale::Linear),
        y: Axis::new("seconds", Scale::Log),
        series: series.collect(),
    }
    .draw()
}

/// Everything else about a configuration.
fn details(group: &Group, named: bool) -> Markup {
    let first = &group.runs[0];
    html! {
        section {
            h2 { "What was run" @if named { ": " (group.name) } }
            @if !first.tool.command.is_empty() { pre { (first.tool.command) } }
            dl { @for (name, value) in facts::of_run(first) { dt { (name) } dd { (value) } } }
            dl {
                dt { "started" } dd { (first.started) }
                dt { "window" } dd { (number(first.window.seconds)) " s" }
                dt { "lengths" } dd {
                    "mean prompt " (number(first.lengths.prompt_mean.unwrap_or(0.0))) ", mean output "
                    (number(first.lengths.output_mean.unwrap_or(0.0))) " tokens"
                }
                dt { "digest of the requests" } dd { code { (first.load.workload_sha256) } }
            }
            (cost(group))
            @if let [run] = &group.runs[..] {
                (latency_table(run))
                (outcome_table(run))
                (checks_table(run))
            } @else {
                (all_gaps(group))
                @for (i, run) in group.runs.iter().enumerate() {
                    details { summary { "Run " (i + 1) } (latency_table(run)) (outcome_table(run)) (checks_table(run)) }
                }
            }
        }
    }
}

/// What a million tokens cost, as the mean over runs.
fn cost(group: &Group) -> Markup {
    let counted = group.counted();
    let costs: Vec<&data::Cost> = counted.iter().filter_map(|run| run.cost.as_ref()).collect();
    let Some(first) = costs.first().filter(|_| costs.len() == counted.len()) else {
        return html! {};
    };
    let mean = |of: &dyn Fn(&data::Cost) -> f64| {
        number(costs.iter().map(|cost| of(cost)).sum::<f64>() / costs.len() as f64)
    };
    let price = &first.price;
    html! {
        h3 { "Cost of a million tokens" }
        @if let Some(reason) = costs.iter().find_map(|cost| cost.not_stated.as_ref()) {
            p { "Not stated: " (reason) "." }
        } @else {
            table {
                thead { tr { th { "machine in use" } th { "output tokens" } th { "prompt and output tokens" } } }
                tbody { @for (i, line) in first.uses.iter().enumerate() { tr {
                    th { (number(line.share * 100.0)) " %" }
                    td { (mean(&|cost| cost.uses[i].per_million_output_tokens)) }
                    td { (mean(&|cost| cost.uses[i].per_million_total_tokens)) }
                } } }
            }
        }
        p class="note" { "At " (number(price.per_hour)) " an hour" @if !price.note.is_empty() { " (" (price.note) ")" } ", at this load." }
    }
}

/// Gaps between events over all runs: their histograms are added, their percentiles are not averaged.
fn all_gaps(group: &Group) -> Markup {
    let gaps = group.gaps().summary();
    let value = |p: Percentile| match p {
        Percentile::Seconds(value) => milliseconds(Some(value)),
        _ => "–".to_owned(),
    };
    let row = [
        ("p50", gaps.p50),
        ("p90", gaps.p90),
        ("p99", gaps.p99),
        ("p99.9", gaps.p999),
    ];
    html! {
        @if gaps.n > 0 {
            p {
                "Gaps between events, all runs in one histogram of " (gaps.n) ":"
                @for (name, p) in row { " " (name) " " (value(p)) "," }
                " longest " (milliseconds(gaps.max)) "."
            }
        }
    }
}

fn latency_table(run: &Run) -> Markup {
    let l = &run.latency;
    let rows = [
        ("time to first token", &l.ttft),
        ("time per output token", &l.tpot),
        ("gap between events", &l.chunk_gap),
        ("longest stall", &l.longest_stall),
        ("whole answer", &l.e2e),
        ("send lag of the client", &run.client.send_lag),
    ];
    html! {
        h3 { "Latency" }
        div class="wide" {
            table {
                thead { tr { th { "" } @for name in ["n", "mean", "p50", "p90", "p95", "p99", "max"] { th { (name) } } } }
                tbody {
                    @for (name, s) in rows {
                        tr {
                            th { (name) } td { (s.n) }
                            @for value in [s.mean, s.p50, s.p90, s.p95, s.p99, s.max] { td { (milliseconds(value)) } }
                        }
                    }
                }
            }
        }
        p class="note" { "A percentile that so few samples cannot bound is shown as –." }
    }
}

fn outcome_table(run: &Run) -> Markup {
    html! {
        h3 { "Outcomes" }
        table { tbody { @for (name, outcome) in &run.outcomes { tr { th { (name) } td { (outcome.count) } } } } }
    }
}

fn checks_table(run: &Run) -> Markup {
    html! {
        h3 { "Counts of the client against counts of the server" }
        @if let Some(reason) = &run.server.not_available {
            p { "Not compared: " (reason) }
        }
        div class="wide" {
            table {
                tbody {
                    @for check in &run.server.checks {
                        tr class=(check.verdict) {
                            th { (check.id) " " (check.what) }
                            td { (check.client_words()) } td { (check.server.map_or("–".into(), number)) }
                            td { (check.verdict) }
                        }
                    }
                }
            }
        }
    }
}
