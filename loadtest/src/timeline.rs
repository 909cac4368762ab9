//! The server's metrics over the run on the client's time axis: scraped twice a second, a missed scrape
//! left as a gap.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::clock::{Clock, Nanos, seconds};
use crate::metric_map::{MetricMap, Names, ServerKind};
use crate::scrape::{Scraper, Snapshot};

/// Between two scrapes.
const INTERVAL: Duration = Duration::from_millis(500);
/// Points that are kept; a longer run keeps every second, third, … scrape.
const MAX_POINTS: usize = 600;
/// Fewer points than this in the window say nothing about a mean.
const MIN_POINTS: usize = 10;

/// One scrape of a run; nothing where it failed.
#[derive(Debug, Clone)]
pub struct Point {
    /// Middle between asking and being answered.
    pub at: Nanos,
    /// What was answered.
    pub snapshot: Option<Snapshot>,
}

/// Scrapes until dropped; what was seen is in `points`.
pub async fn watch(scraper: &Scraper, clock: Clock, points: &mut Vec<Point>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let asked = clock.now();
        let mut snapshot = scraper.scrape().await.ok();
        if let Some(snapshot) = &mut snapshot {
            snapshot.text = String::new();
        }
        points.push(Point {
            at: (asked + clock.now()) / 2,
            snapshot,
        });
    }
}

/// The series of a run, each as long as `t`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timeline {
    /// Whose metrics these are.
    pub kind: ServerKind,
    /// Seconds after the beginning of the window.
    pub t: Vec<f64>,
    /// The longest round trip of a scrape in seconds: how far off `t` may be, twice.
    pub round_trip_max: f64,
    /// By name, none where the server did not say.
    pub series: BTreeMap<&'static str, Vec<Option<f64>>>,
}

impl Timeline {
    /// The series of what was scraped; none of nothing.
    pub fn new(kind: ServerKind, points: &[Point], begin: Nanos) -> Option<Self> {
        let every = points.len().div_ceil(MAX_POINTS).max(1);
        let kept: Vec<&Point> = points.iter().step_by(every).collect();
        if kept.is_empty() {
            return None;
        }
        let read = |snapshot: &Option<Snapshot>| snapshot.as_ref().map(|s| seconds(s.round_trip));
        let mut series = BTreeMap::new();
        for (name, of) in rows(kind.map()) {
            let values = of.values(&kept);
            if values.iter().any(Option::is_some) {
                series.insert(name, values);
            }
        }
        let round_trips = points.iter().filter_map(|p| read(&p.snapshot));
        Some(Self {
            kind,
            t: kept
                .iter()
                .map(|p| seconds(p.at) - seconds(begin))
                .collect(),
            round_trip_max: round_trips.fold(0.0, f64::max),
            series,
        })
    }
}

/// Mean of the requests that the server worked on inside the window; none where it was not asked often
/// enough or does not say.
pub fn in_flight_mean(kind: ServerKind, points: &[Point], window: (Nanos, Nanos)) -> Option<f64> {
    let map = kind.map();
    let inside = points
        .iter()
        .filter(|p| p.at >= window.0 && p.at < window.1);
    let values: Vec<f64> = inside
        .filter_map(|p| {
            let snapshot = p.snapshot.as_ref()?;
            Some(snapshot.first(map.running)? + snapshot.first(map.waiting).unwrap_or(0.0))
        })
        .collect();
    (values.len() >= MIN_POINTS).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// How a series comes about.
enum Row {
    /// As it stands.
    Gauge(Names),
    /// What a counter grew per second since the scrape before.
    Rate(Names),
    /// What one counter grew per growth of another.
    Ratio(Names, Names),
    /// Mean of what a histogram observed since the scrape before.
    Mean(Names),
}

fn rows(map: &MetricMap) -> [(&'static str, Row); 12] {
    [
        ("running", Row::Gauge(map.running)),
        ("waiting", Row::Gauge(map.waiting)),
        ("kv_usage", Row::Gauge(map.kv_usage)),
        ("finished_per_second", Row::Rate(map.finished)),
        ("prompt_tokens_per_second", Row::Rate(map.prompt_tokens)),
        (
            "generation_tokens_per_second",
            Row::Rate(map.generation_tokens),
        ),
        ("cached_tokens_per_second", Row::Rate(map.cached_tokens)),
        ("preemptions_per_second", Row::Rate(map.preemptions)),
        (
            "prefix_hit_ratio",
            Row::Ratio(map.prefix_hits, map.prefix_queries),
        ),
        ("batch_size_mean", Row::Mean(map.batch_size)),
        ("step_seconds_mean", Row::Mean(map.step_time)),
        ("itl_seconds_mean", Row::Mean(map.itl)),
    ]
}

impl Row {
    fn values(&self, points: &[&Point]) -> Vec<Option<f64>> {
        let mut last: Option<&Point> = None;
        points
            .iter()
            .map(|point| {
                let snapshot = point.snapshot.as_ref()?;
                let before = last.replace(point);
                if let Self::Gauge(names) = self {
                    return snapshot.first(names);
                }
                let before = before?;
                let earlier = before.snapshot.as_ref()?;
                let grown = |names: Names| Some(snapshot.first(names)? - earlier.first(names)?);
                let over = |a: f64, b: f64| (b > 0.0).then(|| a / b);
                match self {
                    Self::Gauge(_) => unreachable!("returned above"),
                    Self::Rate(names) => over(grown(names)?, seconds(point.at - before.at)),
                    Self::Ratio(part, whole) => over(grown(part)?, grown(whole)?),
                    Self::Mean(names) => {
                        let part = |suffix: &str| {
                            names.iter().find_map(|name| {
                                let name = format!("{name}_{suffix}");
                                Some(snapshot.value(&name, &[])? - earlier.value(&name, &[])?)
                            })
                        };
                        over(part("sum")?, part("count")?)
                    }
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    fn point(at: Nanos, text: &str) -> Point {
        let snapshot = (!text.is_empty()).then(|| Snapshot::parse(text).unwrap());
        Point { at, snapshot }
    }

    fn text(running: u32, tokens: u32, steps: u32) -> String {
        format!(
            "octet_requests_running {running}\noctet_requests_waiting 1\n\
             octet_generation_tokens_total {tokens}\n\
             octet_step_batch_size_sum {}\noctet_step_batch_size_count {steps}\n",
            3 * steps
        )
    }

    #[test]
    fn series_are_gauges_rates_and_means() {
        let points = [
            point(SECOND, &text(2, 10, 1)),
            point(3 * SECOND, &text(4, 30, 5)),
            point(4 * SECOND, ""),
            point(5 * SECOND, &text(0, 30, 5)),
        ];
        let timeline = Timeline::new(ServerKind::Octet, &points, 2 * SECOND).unwrap();
        assert_eq!(timeline.t, [-1.0, 1.0, 2.0, 3.0]);
        let series = |name: &str| timeline.series[name].clone();
        assert_eq!(series("running"), [Some(2.0), Some(4.0), None, Some(0.0)]);
        let rates = [None, Some(10.0), None, Some(0.0)];
        assert_eq!(series("generation_tokens_per_second"), rates);
        // A server that made no step has no mean of them.
        assert_eq!(series("batch_size_mean"), [None, Some(3.0), None, None]);
        assert!(
            !timeline.series.contains_key("kv_usage"),
            "not said, not drawn"
        );
        assert_eq!(Timeline::new(ServerKind::Octet, &[], 0), None);
    }

    #[test]
    fn a_long_run_is_thinned_and_keeps_its_rates() {
        let points: Vec<Point> = (0..1500)
            .map(|i| point(SECOND * i, &text(1, 7 * i as u32, 1)))
            .collect();
        let timeline = Timeline::new(ServerKind::Octet, &points, 0).unwrap();
        assert_eq!(timeline.t.len(), 500);
        let rates = &timeline.series["generation_tokens_per_second"];
        assert!(rates[1..].iter().all(|rate| *rate == Some(7.0)));
    }

    #[test]
    fn a_mean_needs_points_inside_the_window() {
        let points: Vec<Point> = (0..20).map(|i| point(i, &text(i as u32, 0, 0))).collect();
        let mean = |window| in_flight_mean(ServerKind::Octet, &points, window);
        assert_eq!(mean((5, 15)), Some(9.5 + 1.0));
        assert_eq!(mean((5, 14)), None);
    }
}
