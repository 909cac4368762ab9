//! The server's metrics over the run on the client's time axis: scraped twice a second and at both ends of the window, a
//! missed scrape left as a gap.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::clock::{Nanos, seconds};
use crate::driver::{Edge, Run};
use crate::metric_map::{MetricMap, Names, ServerKind};
use crate::scrape::{Delta, Scraper, Snapshot};

/// Between two scrapes.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a server may take to answer one of them.
const TIMEOUT: Duration = Duration::from_secs(1);
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

/// What was scraped during a run.
#[derive(Debug, Default)]
pub struct Watched {
    /// Every scrape in order.
    pub points: Vec<Point>,
    /// Those at the beginning of the window and at its end, as far as it came to that.
    pub edges: Vec<Point>,
}

/// Scrapes `run` until dropped.
pub async fn watch(scraper: &Scraper, run: &Run, watched: &mut Watched) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut edges = [Edge::Start, Edge::End].into_iter().peekable();
    loop {
        let next = edges.peek().copied();
        let is_edge = tokio::select! {
            biased;
            () = run.edge(next) => true,
            _ = ticks.tick() => false,
        };
        let point = scrape(scraper, run).await;
        if is_edge {
            edges.next();
            watched.edges.push(point.clone());
        }
        watched.points.push(point);
    }
}

/// Scrapes at the end of the window if that came when the run was ending.
pub async fn end_watch(scraper: &Scraper, run: &Run, watched: &mut Watched) {
    let has_come = run.window().end().is_some_and(|end| end <= run.clock.now());
    if has_come && watched.edges.len() == 1 {
        let point = scrape(scraper, run).await;
        watched.edges.push(point.clone());
        watched.points.push(point);
    }
}

async fn scrape(scraper: &Scraper, run: &Run) -> Point {
    let asked = run.clock.now();
    let mut snapshot = scraper.scrape(TIMEOUT).await.ok();
    if let Some(snapshot) = &mut snapshot {
        snapshot.text = String::new();
    }
    Point {
        at: (asked + run.clock.now()) / 2,
        snapshot,
    }
}

/// By how much the server's counters grew from the scrape at the beginning of the window to that at its end: the whole
/// run's, which is compared with the client's, contains the warm-up and what went on after the window.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InWindow {
    /// When the first scrape was, in seconds after the beginning of the window.
    pub from: f64,
    /// When the last was.
    pub to: f64,
    /// By name, those that the server has.
    pub grown: BTreeMap<&'static str, f64>,
    /// Means of what its histograms observed in between, in their units.
    pub means: BTreeMap<&'static str, f64>,
}

impl InWindow {
    /// From the scrapes at the edges, with the one after the run where the window ended with it; none where one is
    /// missing.
    pub fn new(kind: ServerKind, edges: &[Point], after: &Point, begin: Nanos) -> Option<Self> {
        let from = edges.first()?;
        let to = edges.get(1).unwrap_or(after);
        let delta = Delta {
            before: from.snapshot.as_ref()?,
            after: to.snapshot.as_ref()?,
        };
        let map = kind.map();
        let counters = [
            ("finished", map.finished),
            ("prompt_tokens", map.prompt_tokens),
            ("generation_tokens", map.generation_tokens),
            ("cached_tokens", map.cached_tokens),
            ("preemptions", map.preemptions),
        ];
        let histograms = [
            ("ttft_seconds", map.ttft),
            ("itl_seconds", map.itl),
            ("e2e_seconds", map.e2e),
            ("queue_seconds", map.queue_time),
            ("batch_size", map.batch_size),
            ("step_seconds", map.step_time),
        ];
        let mean = |names: Names| names.iter().find_map(|name| delta.mean(name));
        let means = histograms
            .into_iter()
            .filter_map(|(name, names)| Some((name, mean(names)?)));
        Some(Self {
            from: seconds(from.at) - seconds(begin),
            to: seconds(to.at) - seconds(begin),
            grown: counters
                .into_iter()
                .filter_map(|(name, names)| Some((name, delta.first(names)?)))
                .collect(),
            means: means.collect(),
        })
    }

    /// Generated tokens per second by the server's count.
    pub fn output_tokens_per_second(&self) -> Option<f64> {
        let tokens = self.grown.get("generation_tokens")?;
        (self.to > self.from).then(|| tokens / (self.to - self.from))
    }
}

/// The series of a run, each as long as `t`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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

/// Mean over time of the requests that the server worked on inside the window; none where it was not asked often enough or
/// does not say. Between two scrapes the number is taken to go straight from one to the other; what lies around a missed one
/// is left out.
pub fn in_flight_mean(kind: ServerKind, points: &[Point], window: (Nanos, Nanos)) -> Option<f64> {
    let map = kind.map();
    let inside = |p: &&Point| p.at >= window.0 && p.at < window.1;
    let values: Vec<(Nanos, Option<f64>)> = points
        .iter()
        .filter(inside)
        .map(|p| {
            let value = p.snapshot.as_ref().and_then(|snapshot| {
                Some(snapshot.first(map.running)? + snapshot.first(map.waiting).unwrap_or(0.0))
            });
            (p.at, value)
        })
        .collect();
    let (mut area, mut length) = (0.0, 0.0);
    for pair in values.windows(2) {
        if let [(from, Some(a)), (to, Some(b))] = *pair {
            area += (a + b) / 2.0 * seconds(to - from);
            length += seconds(to - from);
        }
    }
    let known = values.iter().filter(|(_, value)| value.is_some()).count();
    (known >= MIN_POINTS && length > 0.0).then(|| area / length)
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
        let points: Vec<Point> = (0..20)
            .map(|i| point(i * SECOND, &text(i as u32, 0, 0)))
            .collect();
        let mean =
            |(from, to)| in_flight_mean(ServerKind::Octet, &points, (from * SECOND, to * SECOND));
        assert_eq!(mean((5, 15)), Some(9.5 + 1.0));
        assert_eq!(mean((5, 14)), None);
    }

    /// Scrapes come close together at the edges of the window; a mean over scrapes would count that twice.
    #[test]
    fn a_mean_is_one_over_time_and_leaves_out_what_is_not_known() {
        let at = |i: u64| point(i * SECOND, &text(if i < 5 { 9 } else { 1 }, 0, 0));
        let mut points: Vec<Point> = (0..15).map(at).collect();
        let crowd = (1..20).map(|i| point(i * 1000, &text(9, 0, 0)));
        points.splice(1..1, crowd);
        let mean =
            |points: &[Point]| in_flight_mean(ServerKind::Octet, points, (0, 15 * SECOND)).unwrap();
        // Four seconds of ten, one from ten to two, nine of two.
        let expected = (40.0 + 6.0 + 18.0) / 14.0;
        assert!((mean(&points) - expected).abs() < 1e-9);
        let missed = points.len() - 10;
        points[missed].snapshot = None;
        // The second before it and the second after it are not known.
        let expected = (40.0 + 16.0) / 12.0;
        assert!((mean(&points) - expected).abs() < 1e-9);
    }

    #[test]
    fn what_grew_in_the_window_is_between_the_scrapes_at_its_edges() {
        let edges = [
            point(3 * SECOND, &text(1, 100, 10)),
            point(5 * SECOND, &text(1, 140, 14)),
        ];
        let after = point(9 * SECOND, &text(0, 500, 50));
        let of = |edges: &[Point]| InWindow::new(ServerKind::Octet, edges, &after, 3 * SECOND);
        let both = of(&edges).unwrap();
        assert_eq!((both.from, both.to), (0.0, 2.0));
        assert_eq!(both.grown, BTreeMap::from([("generation_tokens", 40.0)]));
        assert_eq!(both.means, BTreeMap::from([("batch_size", 3.0)]));
        assert_eq!(both.output_tokens_per_second(), Some(20.0));
        // A window that ends with its last request ends with the run.
        let open = of(&edges[..1]).unwrap();
        assert_eq!((open.to, open.grown["generation_tokens"]), (6.0, 400.0));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[point(SECOND, ""), edges[1].clone()]), None, "missed");
    }
}
