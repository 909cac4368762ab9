//! How often times were how long: what the client saw, and the server's own histogram as an outline.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::Run;
use super::group::Group;
use crate::server_times::Buckets;

/// Bins in a power of ten.
const PER_DECADE: f64 = 10.0;

/// Times in seconds with their counts.
type Counted = Vec<(f64, u64)>;

/// First tokens, and the gaps after them.
pub fn all(groups: &[Group]) -> Markup {
    let ttft = |run: &Run| -> Counted {
        let times = run.samples.iter().filter_map(|sample| sample.ttft);
        times.map(|seconds| (seconds, 1)).collect()
    };
    let gaps = |run: &Run| -> Counted {
        let counts = run.latency.chunk_gap_counts.iter();
        counts
            .map(|(micros, count)| (*micros as f64 * 1e-6, *count))
            .collect()
    };
    let has_outline = groups.iter().flat_map(Group::counted).any(|run| {
        let times = &run.server.times;
        times.ttft.is_some() || times.itl.is_some()
    });
    html! {
        div class="charts" {
            (chart(groups, "Time to first token: how often", "requests", ttft, |run| run.server.times.ttft.as_ref()))
            (chart(groups, "Gap between two events: how often", "gaps", gaps, |run| run.server.times.itl.as_ref()))
        }
        p class="note" {
            "Ten bins for each power of ten, so that areas are shares."
            @if has_outline {
                " Thin outlines are the server's own histograms in its own buckets, spread over bins of the same width; they contain the "
                "warm-up, and begin when the server has the request. Their first bucket has no lower end: it is spread down to the least that the client saw."
            }
        }
    }
}

fn chart(
    groups: &[Group],
    title: &str,
    what: &str,
    values: impl Fn(&Run) -> Counted,
    buckets: impl Fn(&Run) -> Option<&Buckets>,
) -> Markup {
    let mut series = Vec::new();
    for (i, group) in groups.iter().enumerate() {
        let runs = group.counted();
        let seen: Counted = runs.iter().flat_map(|run| values(run)).collect();
        let of = |side: &str| match groups.len() {
            1 => side.to_owned(),
            _ => format!("{}, {side}", group.name),
        };
        let name = match groups.len() {
            1 => "by the client",
            _ => &group.name,
        };
        series.push(Series::new(name, Form::Line, i, steps(&seen)));
        let servers: Option<Vec<&Buckets>> = runs.iter().map(|run| buckets(run)).collect();
        let outline = outline(&servers.unwrap_or_default(), &seen);
        if !outline.is_empty() {
            let name = of("by the server");
            series.push(Series::new(name, Form::Outline, i, outline));
        }
    }
    Chart {
        title: format!("{title} (share of {what})"),
        x: Axis::seconds(Scale::Log),
        y: Axis::new("", Scale::Linear),
        series,
    }
    .draw()
}

/// The corners of the outline of a histogram.
fn steps(values: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let total: u64 = values.iter().map(|(_, count)| count).sum();
    let mut bins: BTreeMap<i32, u64> = BTreeMap::new();
    for (seconds, count) in values.iter().filter(|(seconds, _)| *seconds > 0.0) {
        *bins.entry(bin(*seconds)).or_default() += count;
    }
    let (Some(first), Some(last)) = (bins.keys().next(), bins.keys().next_back()) else {
        return Vec::new();
    };
    let tops = (*first..=*last).map(|bin| {
        let share = bins.get(&bin).copied().unwrap_or(0) as f64 / total as f64;
        (edge(bin), edge(bin + 1), share)
    });
    corners(tops)
}

/// The corners of a server's histogram, as shares of a bin's width. Its first and last bucket have no end of their
/// own: they reach as far as what the client saw.
fn outline(runs: &[&Buckets], seen: &[(f64, u64)]) -> Vec<(f64, f64)> {
    let Some(first) = runs.first() else {
        return Vec::new();
    };
    let total: u64 = runs.iter().flat_map(|run| &run.counts).sum();
    let is_alike = runs.iter().all(|run| run.edges == first.edges);
    let seconds = || {
        seen.iter()
            .map(|(seconds, _)| *seconds)
            .filter(|s| *s > 0.0)
    };
    let least = seconds().fold(f64::INFINITY, f64::min);
    if !is_alike || total == 0 || !least.is_finite() {
        return Vec::new();
    }
    let most = seconds().fold(0.0, f64::max);
    let (low, high) = (edge(bin(least)), edge(bin(most) + 1));
    let ends = first.edges.iter().copied();
    let (head, tail) = (first.edges.first(), first.edges.last());
    let start = low.min(head.map_or(low, |e| e / edge(1)));
    let stop = high.max(tail.map_or(high, |e| e * edge(1)));
    let lower = std::iter::once(start).chain(ends.clone());
    let upper = ends.chain(std::iter::once(stop));
    let tops = lower.zip(upper).enumerate().map(|(i, (from, to))| {
        let count: u64 = runs.iter().map(|run| run.counts[i]).sum();
        let width = (to / from).log10() * PER_DECADE;
        (from, to, count as f64 / total as f64 / width)
    });
    let mut tops: Vec<(f64, f64, f64)> = tops.collect();
    // Empty buckets at either side only make the axis longer.
    let is_empty = |top: &&(f64, f64, f64)| top.2 == 0.0;
    let before = tops.iter().take_while(is_empty).count();
    let after = tops.iter().rev().take_while(is_empty).count();
    tops.truncate(tops.len() - after);
    corners(tops.into_iter().skip(before))
}

/// Around bars given by their ends and heights.
fn corners(bars: impl Iterator<Item = (f64, f64, f64)>) -> Vec<(f64, f64)> {
    let bars: Vec<_> = bars.collect();
    let (Some(first), Some(last)) = (bars.first(), bars.last()) else {
        return Vec::new();
    };
    let (left, right) = ((first.0, 0.0), (last.1, 0.0));
    let tops = bars
        .iter()
        .flat_map(|(from, to, y)| [(*from, *y), (*to, *y)]);
    std::iter::once(left)
        .chain(tops)
        .chain(std::iter::once(right))
        .collect()
}

fn bin(seconds: f64) -> i32 {
    (seconds.log10() * PER_DECADE).floor() as i32
}

fn edge(bin: i32) -> f64 {
    10f64.powf(f64::from(bin) / PER_DECADE)
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

    /// Areas over the logarithm of time, in bins.
    fn area(points: &[(f64, f64)]) -> f64 {
        let bars = points[1..points.len() - 1].chunks(2);
        bars.map(|bar| (bar[1].0 / bar[0].0).log10() * PER_DECADE * bar[0].1)
            .sum()
    }

    #[test]
    fn an_outline_has_the_area_of_everything_whatever_the_buckets_are() {
        let buckets = |edges: &[f64], counts: &[u64]| Buckets {
            edges: edges.to_vec(),
            counts: counts.to_vec(),
        };
        let seen = [(0.003, 5), (2.0, 5)];
        for one in [
            buckets(&[0.01, 0.1, 1.0], &[4, 3, 2, 1]),
            buckets(&[0.01, 0.1, 1.0], &[0, 3, 7, 0]),
            buckets(&[0.5], &[1, 1]),
            buckets(&[], &[9]),
        ] {
            let points = outline(&[&one, &one], &seen);
            assert!((area(&points) - 1.0).abs() < 1e-9, "{one:?}: {points:?}");
            assert!(points.windows(2).all(|p| p[0].0 <= p[1].0), "{points:?}");
        }
        let middle = buckets(&[0.01, 0.1, 1.0], &[0, 0, 1, 0]);
        let points = outline(&[&middle], &seen);
        assert_eq!(
            (points[0].0, points[3].0),
            (0.1, 1.0),
            "empty ends are left out"
        );
        let other = buckets(&[0.5], &[1, 1]);
        assert_eq!(outline(&[&middle, &other], &seen), [], "other buckets");
        assert_eq!(outline(&[&middle], &[]), [], "nothing to hold it against");
    }
}
