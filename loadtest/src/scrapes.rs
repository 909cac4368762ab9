//! What the server's metrics were over a run, for its folder: every scrape by what its numbers mean, and the text
//! of the first and the last. The page draws what `timeline` makes of it; this is for whoever wants more.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use serde::Serialize;

use crate::clock::Nanos;
use crate::metric_map::{MetricMap, Names, ServerKind};
use crate::scrape::Snapshot;
use crate::timeline::Point;

/// The scrapes of a run.
#[derive(Debug, Clone)]
pub struct Scrapes {
    /// Whose metrics they are.
    pub kind: ServerKind,
    /// Those of the run in their order.
    pub points: Vec<Point>,
    /// What was answered before the run, of several servers one after the other.
    pub first: String,
    /// What was answered after it.
    pub last: String,
}

/// One scrape in `metrics.jsonl`.
#[derive(Debug, Serialize)]
struct Line {
    /// Microseconds after the planned start of the first request, as in `requests.jsonl`.
    t: i64,
    /// Round trip in microseconds; none where the scrape failed.
    rtt: Option<u64>,
    /// Values by what they mean, those that the server has; of a histogram its sum and its count.
    series: BTreeMap<String, f64>,
}

impl Scrapes {
    /// Writes a line for each scrape; `origin` is the planned start of the first request.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn write(&self, out: &mut dyn Write, origin: Nanos) -> Result<()> {
        for point in &self.points {
            let line = Line {
                t: micros(point.at) - micros(origin),
                rtt: point.snapshot.as_ref().map(|s| s.round_trip / 1000),
                series: point
                    .snapshot
                    .as_ref()
                    .map(|s| self.series(s))
                    .unwrap_or_default(),
            };
            serde_json::to_writer(&mut *out, &line)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn series(&self, snapshot: &Snapshot) -> BTreeMap<String, f64> {
        let (values, histograms) = meanings(self.kind.map());
        let plain = values
            .into_iter()
            .filter_map(|(name, names)| Some((name.to_owned(), snapshot.first(names)?)));
        let parts = histograms.into_iter().flat_map(|(name, names)| {
            ["sum", "count"].map(|part| {
                let exists = |of: &str| snapshot.value(&format!("{of}_{part}"), &[]);
                let value = names.iter().find_map(|of| exists(of));
                Some((format!("{name}_{part}"), value?))
            })
        });
        plain.chain(parts.flatten()).collect()
    }
}

fn micros(at: Nanos) -> i64 {
    i64::try_from(at / 1000).unwrap_or(i64::MAX)
}

/// What a number means, and its names.
type Meaning = (&'static str, Names);

/// Gauges and counters, then histograms, by the names of their fields.
fn meanings(map: &MetricMap) -> ([Meaning; 10], [Meaning; 8]) {
    let values = [
        ("running", map.running),
        ("waiting", map.waiting),
        ("kv_usage", map.kv_usage),
        ("finished", map.finished),
        ("prompt_tokens", map.prompt_tokens),
        ("generation_tokens", map.generation_tokens),
        ("cached_tokens", map.cached_tokens),
        ("prefix_queries", map.prefix_queries),
        ("prefix_hits", map.prefix_hits),
        ("preemptions", map.preemptions),
    ];
    let histograms = [
        ("batch_size", map.batch_size),
        ("step_time", map.step_time),
        ("itl", map.itl),
        ("ttft", map.ttft),
        ("e2e", map.e2e),
        ("queue_time", map.queue_time),
        ("prefill_time", map.prefill_time),
        ("decode_time", map.decode_time),
    ];
    (values, histograms)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_scrape_is_a_line_and_one_that_failed_has_no_series() {
        let text = "octet_requests_running 2\noctet_step_batch_size_sum 9\noctet_step_batch_size_count 3\nother 5\n";
        let mut snapshot = Snapshot::parse(text).unwrap();
        snapshot.round_trip = 1_500_000;
        let point = |at, snapshot| Point { at, snapshot };
        let scrapes = Scrapes {
            kind: ServerKind::Octet,
            points: vec![point(1_000_000, Some(snapshot)), point(9_000_000, None)],
            first: text.into(),
            last: text.into(),
        };
        let mut out = Vec::new();
        scrapes.write(&mut out, 3_000_000).unwrap();
        let lines: Vec<Value> = String::from_utf8(out)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let series = json!({"running": 2.0, "batch_size_sum": 9.0, "batch_size_count": 3.0});
        let expected = [
            json!({"t": -2000, "rtt": 1500, "series": series}),
            json!({"t": 6000, "rtt": null, "series": {}}),
        ];
        assert_eq!(lines, expected);
    }
}
