//! `loadtest report`: one page of HTML from the JSON of one run or several, with everything in it: no
//! script, no font, no picture from elsewhere. The same files give the same bytes.

mod axis;
mod chart;
mod data;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use axis::{Axis, Scale};
use chart::{Chart, Form, Series};
use data::{Run, Summary, milliseconds, number};

/// Runs on one page: more colours cannot be told apart.
const MAX_RUNS: usize = 6;
/// Dots of one series; more hide each other.
const MAX_DOTS: usize = 2000;
const STYLE: &str = include_str!("page/style.css");

/// Reads runs and writes their page.
///
/// # Errors
/// A file that cannot be read or written, or is not the result of a run.
pub fn write(files: &[PathBuf], output: &Path) -> Result<()> {
    if files.len() > MAX_RUNS {
        bail!(
            "{} runs, more than the {MAX_RUNS} that fit one page",
            files.len()
        );
    }
    let runs = files
        .iter()
        .map(|file| Run::read(file))
        .collect::<Result<Vec<_>>>()?;
    let text = render(&runs);
    std::fs::write(output, text).with_context(|| format!("cannot write {}", output.display()))
}

/// The page.
pub(crate) fn render(runs: &[Run]) -> String {
    let title = match runs {
        [run] => format!("{}: load test", run.target.model),
        _ => format!("{} load tests compared", runs.len()),
    };
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
            body {
                main {
                    h1 { (title) }
                    @for run in runs { (verdict(run)) }
                    @if runs.len() > 1 { (comparison(runs)) }
                    @if let [run] = runs { (tiles(run)) }
                    (plots(runs))
                    @for run in runs { (details(run, runs.len() > 1)) }
                }
            }
        }
    };
    page.into_string()
}

/// What came out, in words, and whether to believe it.
fn verdict(run: &Run) -> Markup {
    let (word, class) = match run.verdict.as_str() {
        "valid" => ("valid", "good"),
        "warning" => ("valid, with warnings", "fair"),
        _ => ("not valid", "bad"),
    };
    html! {
        section class={ "verdict " (class) } {
            p {
                strong { (run.name) } ": " (run.target.model) " gave "
                strong { (number(run.rates.output_tokens)) " tokens/s" }
                " to " (run.load.arrival.words()) "; half of the first tokens came within "
                strong { (milliseconds(run.latency.ttft.p50)) } ". "
                (run.requests.succeeded) " of " (run.requests.measured) " requests succeeded."
            }
            p { "The measurement is " strong { (word) } "." }
            @if !run.reasons.is_empty() {
                ul { @for reason in &run.reasons { li { (reason) } } }
            }
        }
    }
}

fn tiles(run: &Run) -> Markup {
    let latency = &run.latency;
    html! {
        section class="tiles" {
            (tile("Output", &format!("{} tokens/s", number(run.rates.output_tokens)), "over the whole window"))
            (tile("First token", &milliseconds(latency.ttft.p50), &tail(&latency.ttft)))
            (tile("Each further token", &milliseconds(latency.tpot.p50), &tail(&latency.tpot)))
            (tile("Whole answer", &milliseconds(latency.e2e.p50), &tail(&latency.e2e)))
        }
    }
}

fn tile(name: &str, value: &str, note: &str) -> Markup {
    html! { div class="tile" { p class="name" { (name) } p class="value" { (value) } p class="note" { (note) } } }
}

/// The highest percentile that the sample carries.
fn tail(summary: &Summary) -> String {
    let named = [
        ("p99", summary.p99),
        ("p95", summary.p95),
        ("p90", summary.p90),
    ];
    match named.into_iter().find(|(_, value)| value.is_some()) {
        Some((name, value)) => format!("median; {name} {}", milliseconds(value)),
        None => "median; too few requests for more".to_owned(),
    }
}

/// All runs in one table, the first as the yardstick.
fn comparison(runs: &[Run]) -> Markup {
    type Metric = (&'static str, bool, fn(&Run) -> Option<f64>);
    const METRICS: &[Metric] = &[
        ("output tokens/s", true, |r| Some(r.rates.output_tokens)),
        ("requests/s completed", true, |r| {
            Some(r.rates.completed_requests)
        }),
        ("TTFT p50, s", false, |r| r.latency.ttft.p50),
        ("TTFT p99, s", false, |r| r.latency.ttft.p99),
        ("TPOT p50, s", false, |r| r.latency.tpot.p50),
        ("end to end p50, s", false, |r| r.latency.e2e.p50),
        ("failed requests", false, |r| Some(r.requests.failed as f64)),
    ];
    let same = runs
        .windows(2)
        .all(|pair| pair[0].load.workload_sha256 == pair[1].load.workload_sha256);
    html! {
        section {
            h2 { "Side by side" }
            @if !same {
                p class="verdict bad" {
                    "Not comparable: the runs did not send the same requests (their digests differ)."
                }
            }
            table {
                thead { tr { th { "" } @for run in runs { th { (run.name) } } } }
                tbody {
                    @for (name, _, metric) in METRICS {
                        tr {
                            th { (name) }
                            @for run in runs { td { (ratio(metric(run), metric(&runs[0]), std::ptr::eq(run, &runs[0]))) } }
                        }
                    }
                }
            }
            p class="note" {
                "In brackets: times the first run. One run of each says nothing about the spread between runs."
            }
        }
    }
}

fn ratio(value: Option<f64>, first: Option<f64>, is_first: bool) -> String {
    let Some(value) = value else {
        return "–".to_owned();
    };
    match first {
        Some(first) if !is_first && first > 0.0 => {
            format!("{} ({:.2}×)", number(value), value / first)
        }
        _ => number(value),
    }
}

/// A measure of a request.
type Measure = fn(&data::Sample) -> Option<f64>;

fn plots(runs: &[Run]) -> Markup {
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
                @for (name, measure) in LATENCIES { (by_percentile(runs, name, measure)) }
            }
            h2 { "Over the run" }
            div class="charts" {
                (dots(runs, "Time to first token, by start", "seconds since the window began", |s| Some(s.t)))
                (dots(runs, "Time to first token, by prompt", "prompt tokens", |s| Some(s.prompt_tokens as f64)))
            }
        }
    }
}

fn by_percentile(runs: &[Run], name: &str, measure: Measure) -> Markup {
    let series = runs.iter().map(|run| {
        let mut values: Vec<f64> = run.samples.iter().filter_map(measure).collect();
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let last = values.len().saturating_sub(1);
        Series {
            name: run.name.clone(),
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

fn dots(runs: &[Run], title: &str, x: &'static str, place: Measure) -> Markup {
    let series = runs.iter().map(|run| {
        let step = run.samples.len() / MAX_DOTS + 1;
        let samples = run.samples.iter().step_by(step);
        Series {
            name: run.name.clone(),
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

/// Everything else about one run.
fn details(run: &Run, named: bool) -> Markup {
    html! {
        section {
            h2 { "What was run" @if named { ": " (run.name) } }
            pre { (run.command()) }
            dl {
                dt { "Server" } dd { (run.target.url) (run.target.endpoint) }
                dt { "Window" } dd { (number(run.window.seconds)) " s" }
                dt { "Lengths" } dd {
                    "mean prompt " (number(run.lengths.prompt_mean.unwrap_or(0.0))) ", mean output "
                    (number(run.lengths.output_mean.unwrap_or(0.0))) " tokens"
                }
                dt { "Requests" } dd { code { (run.load.workload_sha256) } }
            }
            (latency_table(run))
            (outcome_table(run))
            (checks_table(run))
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
