//! The plots of a page.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::Sample;
use super::group::Group;

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
            labels: Vec::new(),
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
        y: Axis::seconds(Scale::Log),
        series: series.collect(),
    }
    .draw()
}

fn dots(groups: &[Group], title: &str, x: &'static str, place: Measure) -> Markup {
    let series = groups.iter().map(|group| {
        let samples: Vec<&Sample> = group
            .counted()
            .into_iter()
            .flat_map(|run| &run.samples)
            .collect();
        let step = samples.len() / MAX_DOTS + 1;
        let samples = samples.into_iter().step_by(step);
        Series {
            name: group.name.clone(),
            form: Form::Dots,
            labels: Vec::new(),
            points: samples.filter_map(|s| Some((place(s)?, s.ttft?))).collect(),
        }
    });
    Chart {
        title: title.to_owned(),
        x: Axis::new(x, Scale::Linear),
        y: Axis::seconds(Scale::Log),
        series: series.collect(),
    }
    .draw()
}
