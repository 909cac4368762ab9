//! Runs of several configurations on one plane: what all get against what one user sees, and how long the first token
//! takes against what is served. Every point is a run.

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::{Run, milliseconds};
use super::group::Group;
use super::traffic;

/// Both, for more than one configuration.
pub fn all(groups: &[Group]) -> Markup {
    html! {
        section {
            h2 { "Speed for one against speed for all" }
            div class="charts" { (speeds(groups)) (knee(groups)) }
            p class="note" {
                "Every mark is a run that counts."
                @if has_tails(groups) { " Rings are its 99th percentile." }
            }
            @for (i, group) in groups.iter().enumerate() { (traffic::note(i + 1, group, true)) }
        }
    }
}

fn speeds(groups: &[Group]) -> Markup {
    let place = |run: &Run| Some((1.0 / run.latency.tpot.p50?, run.rates.output_tokens));
    Chart {
        title: "Output of the server (tokens per second) against what one user sees".into(),
        x: Axis::new(
            "tokens per second of one user, once its answer has begun",
            Scale::Linear,
        ),
        y: Axis::new("tokens per second", Scale::Linear),
        series: series(groups, Form::Apart, "", place),
    }
    .draw()
}

fn knee(groups: &[Group]) -> Markup {
    let median = |run: &Run| Some((run.rates.completed_requests, run.latency.ttft.p50?));
    let tail = |run: &Run| Some((run.rates.completed_requests, run.latency.ttft.p99?));
    let mut all = series(groups, Form::Apart, "", median);
    let tails = series(groups, Form::Rings, ", p99", tail);
    all.extend(tails.into_iter().filter(|s| !s.points.is_empty()));
    if let (Some(limit), Some((x, _))) = (limit(groups), all.iter().find_map(|s| s.points.first()))
    {
        let name = format!("limit: {}", milliseconds(Some(limit)));
        let points = vec![(*x, limit)];
        all.push(Series::new(name, Form::Level, 0, points));
    }
    Chart {
        title: "Time to first token (median) against answers per second".into(),
        x: Axis::new("answers per second", Scale::Linear),
        y: Axis::seconds(Scale::Log),
        series: all,
    }
    .draw()
}

fn has_tails(groups: &[Group]) -> bool {
    let mut runs = groups.iter().flat_map(Group::counted);
    runs.any(|run| run.latency.ttft.p99.is_some())
}

fn series(
    groups: &[Group],
    form: Form,
    suffix: &str,
    place: impl Fn(&Run) -> Option<(f64, f64)>,
) -> Vec<Series> {
    let each = groups.iter().enumerate().map(|(i, group)| {
        let mut points: Vec<_> = group.counted().into_iter().filter_map(&place).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series::new(format!("{}{suffix}", group.name), form, i, points)
    });
    each.collect()
}

/// What the first token may take, if all runs that have a limit have the same.
fn limit(groups: &[Group]) -> Option<f64> {
    let runs = groups.iter().flat_map(|group| &group.runs);
    let mut limits: Vec<f64> = runs
        .filter_map(|run| run.goodput.as_ref()?.slo.as_ref()?.ttft_seconds)
        .collect();
    limits.dedup();
    match limits[..] {
        [limit] => Some(limit),
        _ => None,
    }
}
