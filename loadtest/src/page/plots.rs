//! The plots of a page.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::Sample;
use super::group::Group;
use super::shares;

/// Dots of one series; more hide each other.
const MAX_DOTS: usize = 2000;

/// A measure of a request.
type Measure = fn(&Sample) -> Option<f64>;

pub fn all(groups: &[Group]) -> Markup {
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
            (shares::all(groups))
            h2 { "Over the run" }
            div class="charts" {
                (dots(groups, "Time to first token, by start", "seconds since the window began", |s| Some(s.t)))
                (dots(groups, "Time to first token, by prompt", "prompt tokens", |s| Some(s.prompt_tokens as f64)))
            }
        }
    }
}

/// The server's own view over the window, on the client's clock: that of the first counted run, since runs are
/// not averaged over time.
pub fn server(groups: &[Group]) -> Markup {
    const SERIES: [(&str, &str, bool); 8] = [
        ("running", "Requests running", false),
        ("waiting", "Requests waiting", false),
        ("batch_size_mean", "Sequences in a step", false),
        ("step_seconds_mean", "Time of a step", true),
        (
            "generation_tokens_per_second",
            "Generated tokens per second",
            false,
        ),
        ("kv_usage", "Share of the KV cache in use", false),
        (
            "prefix_hit_ratio",
            "Share of prompt tokens from the prefix cache",
            false,
        ),
        ("preemptions_per_second", "Preemptions per second", false),
    ];
    let charts: Vec<Markup> = SERIES
        .iter()
        .filter_map(|(key, title, is_time)| over_time(groups, key, title, *is_time))
        .collect();
    html! {
        @if !charts.is_empty() {
            section {
                h2 { "What the server said meanwhile" }
                div class="charts" { @for chart in &charts { (chart) } }
                p class="note" { "Scrapes inside the window" @if groups.iter().any(|g| g.runs.len() > 1) { " of the first run that counts" } ". A gap is a scrape that is missing." }
            }
        }
    }
}

/// A metric of every group; none where no server has it or it is always zero.
fn over_time(groups: &[Group], key: &str, title: &str, is_time: bool) -> Option<Markup> {
    let series: Vec<Series> = groups
        .iter()
        .enumerate()
        .map(|(i, group)| Series::new(&group.name, Form::Line, i, in_window(group, key)))
        .collect();
    let is_seen = series.iter().flat_map(|s| &s.points).any(|(_, y)| *y > 0.0);
    is_seen.then(|| {
        let y = match is_time {
            true => Axis::seconds(Scale::Linear),
            false => Axis::new("", Scale::Linear),
        };
        Chart {
            title: title.to_owned(),
            x: Axis::new("seconds since the window began", Scale::Linear),
            y,
            series,
        }
        .draw()
    })
}

fn in_window(group: &Group, key: &str) -> Vec<(f64, f64)> {
    let run = group.counted()[0];
    let Some(timeline) = &run.server.timeline else {
        return Vec::new();
    };
    let values = timeline.series.get(key).into_iter().flatten();
    let points = timeline.t.iter().zip(values);
    points
        .filter(|(t, _)| (0.0..=run.window.seconds).contains(*t))
        .filter_map(|(t, value)| Some((*t, (*value)?)))
        .collect()
}

fn by_percentile(groups: &[Group], name: &str, measure: Measure) -> Markup {
    let series = groups.iter().enumerate().map(|(i, group)| {
        let samples = group.counted().into_iter().flat_map(|run| &run.samples);
        let mut values: Vec<f64> = samples.filter_map(measure).collect();
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let last = values.len().saturating_sub(1);
        // The largest value stands at one share short of everything.
        let points = values
            .iter()
            .enumerate()
            .filter(|(i, _)| last < MAX_DOTS || i % (last / MAX_DOTS + 1) == 0 || *i == last)
            .map(|(i, value)| ((i as f64 + 0.5) / n, *value));
        Series::new(&group.name, Form::Line, i, points.collect())
    });
    Chart {
        title: name.to_owned(),
        x: Axis::new("share of requests", Scale::Percentile),
        y: Axis::seconds(Scale::Log),
        series: series.collect(),
    }
    .draw()
}

fn dots(groups: &[Group], title: &str, x: &'static str, place: Measure) -> Markup {
    let series = groups.iter().enumerate().map(|(i, group)| {
        let samples: Vec<&Sample> = group
            .counted()
            .into_iter()
            .flat_map(|run| &run.samples)
            .collect();
        let step = samples.len() / MAX_DOTS + 1;
        let samples = samples.into_iter().step_by(step);
        let points = samples.filter_map(|s| Some((place(s)?, s.ttft?)));
        Series::new(&group.name, Form::Dots, i, points.collect())
    });
    Chart {
        title: title.to_owned(),
        x: Axis::new(x, Scale::Linear),
        y: Axis::seconds(Scale::Log),
        series: series.collect(),
    }
    .draw()
}
