//! How late the client was over the window: what of the latencies is its own.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::{Run, Summary, milliseconds};
use super::group::Group;
use crate::report::Lags;

/// The delays of the first counted run of each group; nothing where none kept them.
pub fn all(groups: &[Group]) -> Markup {
    let runs: Vec<&Run> = groups.iter().map(|group| group.counted()[0]).collect();
    let known = runs.iter().any(|run| run.client.lags.is_some());
    html! {
        @if known {
            section {
                h2 { "Was the client in time?" }
                div class="charts" {
                    (over_time(groups, &runs, "How late requests were sent (the latest of each moment)", |lags| &lags.send_lag_max))
                    (over_time(groups, &runs, "How late the client woke (the latest of each moment)", |lags| &lags.runtime_lag_max))
                }
                p class="note" {
                    @for (group, run) in groups.iter().zip(&runs) {
                        @if groups.len() > 1 { (group.name) ": " }
                        "99 % of the requests were sent at most " (worst(&run.client.send_lag)) " after their time (allowed: " (milliseconds(run.client.send_lag_limit))
                        "), and 99 % of its wake-ups, one every 10 ms, were at most " (run.client.runtime_lag.as_ref().map_or("–".to_owned(), worst))
                        " late (allowed: " (milliseconds(run.client.runtime_lag_limit)) "). "
                    }
                    @if groups.iter().any(|group| group.runs.len() > 1) { "Of the first run that counts." }
                }
            }
        }
    }
}

/// The 99th percentile, or the largest where so few samples have none.
fn worst(summary: &Summary) -> String {
    milliseconds(summary.p99.or(summary.max))
}

fn over_time(
    groups: &[Group],
    runs: &[&Run],
    title: &str,
    of: impl Fn(&Lags) -> &Vec<Option<f64>>,
) -> Markup {
    let series = groups
        .iter()
        .zip(runs)
        .enumerate()
        .map(|(i, (group, run))| {
            let lags = run.client.lags.iter().flat_map(|lags| {
                let slices = (0u32..).zip(of(lags));
                let middle = |n: u32| (f64::from(n) + 0.5) * lags.slice_seconds;
                slices.filter_map(move |(n, lag)| Some((middle(n), (*lag)?)))
            });
            Series::new(&group.name, Form::Line, i, lags.collect())
        });
    Chart {
        title: title.to_owned(),
        x: Axis::new("seconds since the window began", Scale::Linear),
        y: Axis::seconds(Scale::Linear),
        series: series.collect(),
    }
    .draw()
}
