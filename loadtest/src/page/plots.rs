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
            div class="charts" { (ttft_shares(groups)) (gap_shares(groups)) }
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
        .map(|group| Series {
            name: group.name.clone(),
            form: Form::Line,
            labels: Vec::new(),
            intervals: Vec::new(),
            points: in_window(group, key),
        })
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

/// The distribution of the first token's time.
fn ttft_shares(groups: &[Group]) -> Markup {
    let values = |group: &Group| {
        let samples = group.counted().into_iter().flat_map(|run| &run.samples);
        samples.filter_map(|s| Some((s.ttft?, 1))).collect()
    };
    shares(
        groups,
        "Time to first token: how often",
        "share of requests",
        values,
    )
}

/// The distribution of the gaps between events.
fn gap_shares(groups: &[Group]) -> Markup {
    let values = |group: &Group| {
        let gaps = group
            .counted()
            .into_iter()
            .flat_map(|run| &run.latency.chunk_gap_counts);
        gaps.map(|(micros, count)| (*micros as f64 * 1e-6, *count))
            .collect()
    };
    shares(
        groups,
        "Gap between two events: how often",
        "share of gaps",
        values,
    )
}

/// Steps of a histogram of times with their counts.
fn shares(
    groups: &[Group],
    title: &str,
    what: &'static str,
    values: impl Fn(&Group) -> Vec<(f64, u64)>,
) -> Markup {
    let series = groups.iter().map(|group| Series {
        name: group.name.clone(),
        form: Form::Line,
        labels: Vec::new(),
        intervals: Vec::new(),
        points: steps(&values(group)),
    });
    Chart {
        title: title.to_owned(),
        x: Axis::seconds(Scale::Log),
        y: Axis::new(what, Scale::Linear),
        series: series.collect(),
    }
    .draw()
}

/// Ten bins for each power of ten, as the corners of their outline.
fn steps(values: &[(f64, u64)]) -> Vec<(f64, f64)> {
    const PER_DECADE: f64 = 10.0;
    let total: u64 = values.iter().map(|(_, count)| count).sum();
    let mut bins: std::collections::BTreeMap<i32, u64> = std::collections::BTreeMap::new();
    for (seconds, count) in values.iter().filter(|(seconds, _)| *seconds > 0.0) {
        *bins
            .entry((seconds.log10() * PER_DECADE).floor() as i32)
            .or_default() += count;
    }
    let (Some(first), Some(last)) = (bins.keys().next(), bins.keys().next_back()) else {
        return Vec::new();
    };
    let edge = |bin: i32| 10f64.powf(f64::from(bin) / PER_DECADE);
    let corners = (*first..=*last).flat_map(|bin| {
        let share = bins.get(&bin).copied().unwrap_or(0) as f64 / total as f64;
        [(edge(bin), share), (edge(bin + 1), share)]
    });
    let (left, right) = ((edge(*first), 0.0), (edge(*last + 1), 0.0));
    std::iter::once(left)
        .chain(corners)
        .chain(std::iter::once(right))
        .collect()
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
            intervals: Vec::new(),
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
            intervals: Vec::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_hold_everything_once() {
        let values = [(0.01, 1), (0.0101, 2), (0.5, 1), (0.0, 1)];
        let points = steps(&values);
        let tops: f64 = points[1..points.len() - 1]
            .chunks(2)
            .map(|pair| pair[0].1)
            .sum();
        assert!(
            (tops - 0.8).abs() < 1e-12,
            "a gap of zero has no place: {points:?}"
        );
        assert!(points.windows(2).all(|p| p[0].0 <= p[1].0), "{points:?}");
        assert_eq!(steps(&[]), []);
    }
}
