//! First tokens one by one: over the run, with the failures at the upper edge, and by the length of the prompt.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::MAX_POINTS;
use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::{Run, Sample};
use super::group::Group;
use crate::interval::nearest_rank;

/// The window of a running median, as a share of the sample, and the least that it holds.
const WINDOW: (usize, usize) = (16, 9);

/// Over time and by prompt.
pub fn all(groups: &[Group]) -> Markup {
    let by_prompt = |s: &Sample| s.prompt_tokens as f64;
    let medians = groups.iter().enumerate().filter_map(|(i, group)| {
        let points = points(group, by_prompt, 1);
        let median = running_median(points);
        (median.len() > 1).then(|| {
            let name = format!("{}: running median", group.name);
            Series::new(name, Form::Through, i, median)
        })
    });
    let medians: Vec<Series> = medians.collect();
    let failed = failures(groups);
    let lengths: BTreeSet<u64> = groups
        .iter()
        .flat_map(Group::counted)
        .flat_map(|run| &run.samples)
        .map(|sample| sample.prompt_tokens)
        .collect();
    html! {
        div class="charts" {
            (chart(groups, "Time to first token, by start", "seconds since the window began", |s| s.t, &failed))
            // Prompts of one length stand above each other and show nothing.
            @if lengths.len() > 1 { (chart(groups, "Time to first token, by prompt", "prompt tokens", by_prompt, &medians)) }
        }
        @if !failed.is_empty() || !medians.is_empty() {
            p class="note" {
                @if !failed.is_empty() { "Crosses at the upper edge are requests that failed, where they were to start. " }
                @if !medians.is_empty() {
                    "A running median is that of the sixteenth part of the requests whose prompts are the nearest in length, at least of nine."
                }
            }
        }
    }
}

fn chart(
    groups: &[Group],
    title: &str,
    x: &'static str,
    place: fn(&Sample) -> f64,
    further: &[Series],
) -> Markup {
    let all: usize = groups
        .iter()
        .flat_map(Group::counted)
        .map(|run| run.samples.len())
        .sum();
    let every = all / MAX_POINTS + 1;
    let series = groups
        .iter()
        .enumerate()
        .map(|(i, group)| Series::new(&group.name, Form::Dots, i, points(group, place, every)));
    Chart {
        title: title.to_owned(),
        x: Axis::new(x, Scale::Linear),
        y: Axis::seconds(Scale::Log),
        series: series.chain(further.iter().cloned()).collect(),
    }
    .draw()
}

fn points(group: &Group, place: fn(&Sample) -> f64, every: usize) -> Vec<(f64, f64)> {
    let samples = group.counted().into_iter().flat_map(|run| &run.samples);
    let kept = samples.step_by(every);
    kept.filter_map(|s| Some((place(s), s.ttft?))).collect()
}

/// Where the failures of each group would have started.
fn failures(groups: &[Group]) -> Vec<Series> {
    let failed = |run: &Run| run.failures.len();
    let all: usize = groups.iter().flat_map(Group::counted).map(failed).sum();
    let every = all / MAX_POINTS + 1;
    let each = groups.iter().enumerate().map(|(i, group)| {
        let failures = group.counted().into_iter().flat_map(|run| &run.failures);
        let points = failures.step_by(every).map(|failure| (failure.t, 0.0));
        let name = format!("{}: failed", group.name);
        Series::new(name, Form::AtTop, i, points.collect())
    });
    each.filter(|series| !series.points.is_empty()).collect()
}

/// The median height of the points nearest in rank, at up to a few dozen places; none of so few points that one
/// window holds most of them.
fn running_median(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let window = (points.len() / WINDOW.0).max(WINDOW.1);
    if points.len() < 2 * window {
        return Vec::new();
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let starts = (0..=points.len() - window).step_by(window.div_ceil(3));
    let medians = starts.filter_map(|start| {
        let inside = &points[start..start + window];
        let mut heights: Vec<f64> = inside.iter().map(|(_, y)| *y).collect();
        heights.sort_by(f64::total_cmp);
        Some((inside[window / 2].0, nearest_rank(&heights, 0.5)?))
    });
    let mut medians: Vec<(f64, f64)> = medians.collect();
    // Prompts of one length have one median, that of the first window there.
    medians.dedup_by_key(|(x, _)| *x);
    medians
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_median_follows_the_line_and_not_the_stragglers() {
        // Every fifth takes ten times as long.
        let slow = |i: u32| if i.is_multiple_of(5) { 10.0 } else { 1.0 };
        let points = |n: u32| {
            (0..n)
                .rev()
                .map(move |i| (f64::from(i), f64::from(i + 100) * slow(i)))
        };
        let medians = running_median(points(800).collect());
        assert!((30..=60).contains(&medians.len()), "{}", medians.len());
        for (x, y) in &medians {
            assert!((y / (x + 100.0) - 1.0).abs() < 0.2, "{y} at {x}");
        }
        assert!(medians.windows(2).all(|two| two[0].0 < two[1].0));
        assert_eq!(running_median(points(17).collect()), [], "too few");
        let alike = (0..100).map(|i| (64.0, f64::from(i))).collect();
        assert_eq!(running_median(alike).len(), 1, "prompts of one length");
    }
}
