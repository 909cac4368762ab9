//! The plots of a page.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::group::Group;
use super::{dots, percentiles, shares};

pub fn all(groups: &[Group]) -> Markup {
    html! {
        section {
            h2 { "How latency is spread" }
            (percentiles::all(groups))
            (shares::all(groups))
            h2 { "Over the run" }
            (dots::all(groups))
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
