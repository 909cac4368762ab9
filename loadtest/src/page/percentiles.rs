//! Latencies by percentile: a line through every request, and a band that says how far runs agree.

use maud::{Markup, html};

use super::MAX_POINTS;
use super::axis::{Axis, Scale};
use super::chart::{Chart, Form, Series};
use super::data::{Run, Sample};
use super::group::Group;
use crate::interval::{nearest_rank, of_mean};

/// Corners of a band along its line.
const CORNERS: u32 = 48;

/// A measure of a request.
type Measure = fn(&Sample) -> Option<f64>;

/// A chart of each latency.
pub fn all(groups: &[Group]) -> Markup {
    const LATENCIES: [(&str, Measure); 3] = [
        ("Time to first token", |s| s.ttft),
        ("Time per output token", |s| s.tpot),
        ("Whole answer", |s| s.e2e),
    ];
    html! {
        p class="note" {
            "Read from left to right: the share of requests that were at least this fast. Tails are at the right."
            @if groups.iter().any(|group| group.counted().len() > 1) {
                " Lines are all requests of all runs. Bands are 95 % intervals of the mean over runs of each run's own percentile, as far to the "
                "right as every single run can bound it. Those of few runs may go on beyond the edge."
            }
        }
        div class="charts" {
            @for (name, measure) in LATENCIES { (by_percentile(groups, name, measure)) }
        }
    }
}

fn by_percentile(groups: &[Group], name: &str, measure: Measure) -> Markup {
    let most = MAX_POINTS / groups.len();
    let series = groups.iter().enumerate().map(|(i, group)| {
        let runs: Vec<Vec<f64>> = group
            .counted()
            .into_iter()
            .map(|run| sorted(run, measure))
            .collect();
        let mut values = runs.concat();
        values.sort_by(f64::total_cmp);
        Series {
            band: band(&runs),
            ..Series::new(&group.name, Form::Line, i, line(&values, most))
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

fn sorted(run: &Run, measure: Measure) -> Vec<f64> {
    let mut values: Vec<f64> = run.samples.iter().filter_map(measure).collect();
    values.sort_by(f64::total_cmp);
    values
}

/// At most about `most` of the values at their shares, the smallest and the largest among them.
fn line(values: &[f64], most: usize) -> Vec<(f64, f64)> {
    let n = values.len() as f64;
    let last = values.len().saturating_sub(1);
    let every = last / most + 1;
    let known = values.iter().enumerate();
    let kept = known.filter(|(i, _)| i % every == 0 || *i == last);
    // The largest value stands at one share short of everything.
    kept.map(|(i, value)| ((i as f64 + 0.5) / n, *value))
        .collect()
}

/// Intervals of the mean over runs of their own percentiles; none of fewer than two runs. It ends at the highest
/// percentile that the smallest run bounds: the share `q` with `1 - q^n = 0.95`.
fn band(runs: &[Vec<f64>]) -> Vec<(f64, f64, f64)> {
    let least = runs.iter().map(Vec::len).min().unwrap_or(0);
    if runs.len() < 2 || least == 0 {
        return Vec::new();
    }
    // Corners are evenly spread over an axis by -log10(1 - q).
    let end = -(1.0 - 0.05f64.powf(1.0 / least as f64)).log10();
    let share = |corner: u32| 1.0 - 10f64.powf(-end * f64::from(corner) / f64::from(CORNERS));
    let corners = (0..=CORNERS).map(share).filter_map(|q| {
        let own: Option<Vec<f64>> = runs.iter().map(|run| nearest_rank(run, q)).collect();
        let interval = of_mean(&own?)?;
        Some((q, interval.low, interval.high))
    });
    corners.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_ends_however_it_is_thinned() {
        let values: Vec<f64> = (0..10_001u32).map(f64::from).collect();
        let points = line(&values, 300);
        assert!((290..=310).contains(&points.len()), "{}", points.len());
        assert_eq!((points[0].1, points.last().unwrap().1), (0.0, 10_000.0));
        assert_eq!(line(&values[..3], 300).len(), 3);
        assert_eq!(line(&[], 300), []);
    }

    #[test]
    fn a_band_is_the_interval_of_the_runs_own_percentiles_as_far_as_each_bounds_it() {
        let run = |shift: f64| {
            (1..=100)
                .map(|i| f64::from(i) + shift)
                .collect::<Vec<f64>>()
        };
        let corners = band(&[run(0.0), run(1.0), run(2.0)]);
        let (q, low, high) = *corners.last().unwrap();
        assert!((1.0 - q.powi(100) - 0.95).abs() < 1e-9, "{q}");
        // Three values one apart: 4.303 / sqrt(3) to either side.
        assert!((high - low - 2.0 * 4.302_653 / 3f64.sqrt()).abs() < 1e-6);
        // Rank ceil(0.9705 * 100) of each.
        assert!(((low + high) / 2.0 - 99.0).abs() < 1e-9);
        assert!(
            corners
                .windows(2)
                .all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1)
        );
        assert_eq!(band(&[run(0.0)]), [], "one run");
        assert_eq!(band(&[run(0.0), Vec::new()]), [], "a run without answers");
    }
}
