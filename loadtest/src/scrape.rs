//! Snapshots of the server's metrics: scraping, waiting until the server is quiet, and differences
//! between two snapshots. Which numbers must agree is the business of `reconcile`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::Method;
use hyper::body::Bytes;

use crate::clock::{Clock, Nanos};
use crate::exposition::{self, Sample};
use crate::metric_map::{MetricMap, Names, ServerKind};
use crate::target::Target;

const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);
const QUIET_POLL: Duration = Duration::from_millis(100);

/// Names of the server's metrics that the load test reads.
pub mod names {
    /// Answers by endpoint and status.
    pub const REQUESTS: &str = "octet_requests_total";
    /// Generations by finish reason.
    pub const FINISHED: &str = "octet_requests_finished_total";
    /// Requests refused before any work.
    pub const REJECTED: &str = "octet_requests_rejected_total";
    /// Prompt tokens.
    pub const PROMPT_TOKENS: &str = "octet_prompt_tokens_total";
    /// Prompt tokens from the prefix cache.
    pub const CACHED_TOKENS: &str = "octet_prompt_tokens_cached_total";
    /// Generated tokens.
    pub const GENERATION_TOKENS: &str = "octet_generation_tokens_total";
    /// Sequences being computed.
    pub const RUNNING: &str = "octet_requests_running";
    /// Sequences in the queue.
    pub const WAITING: &str = "octet_requests_waiting";
    /// Cache blocks owned by sequences.
    pub const BLOCKS_USED: &str = "octet_kv_cache_blocks_used";
    /// Time to first token.
    pub const TTFT: &str = "octet_time_to_first_token_seconds";
    /// Time between tokens.
    pub const ITL: &str = "octet_inter_token_latency_seconds";
    /// End-to-end latency.
    pub const E2E: &str = "octet_e2e_request_latency_seconds";
    /// Tokens computed by all steps.
    pub const STEP_TOKENS: &str = "octet_step_tokens_sum";
    /// Preemptions.
    pub const PREEMPTIONS: &str = "octet_preemptions_total";
    /// What the server is.
    pub const BUILD_INFO: &str = "octet_build_info";
    /// When the process started.
    pub const PROCESS_START: &str = "process_start_time_seconds";
}

/// Every counter whose difference is looked at; also what must be at rest when the server is quiet.
pub const COUNTERS: [&str; 12] = [
    names::FINISHED,
    names::REJECTED,
    names::PROMPT_TOKENS,
    names::CACHED_TOKENS,
    names::GENERATION_TOKENS,
    names::PREEMPTIONS,
    "octet_time_to_first_token_seconds_count",
    "octet_time_to_first_token_seconds_sum",
    "octet_inter_token_latency_seconds_count",
    "octet_e2e_request_latency_seconds_count",
    names::STEP_TOKENS,
    names::REQUESTS,
];

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    samples: Vec<Sample>,
    /// What the servers answered, one after the other; kept of the first and the last scrape of a run.
    pub text: String,
    /// How long the scrape took, which bounds what a difference of clocks can be.
    pub round_trip: Nanos,
}

/// A restriction to samples whose label has a value.
pub type Label<'a> = (&'a str, &'a str);

impl Snapshot {
    /// A snapshot of the text of an exposition.
    pub fn parse(text: &str) -> Result<Self, exposition::ParseError> {
        Ok(Self {
            samples: exposition::parse(text)?,
            text: text.to_owned(),
            round_trip: 0,
        })
    }

    /// Adds the samples of another server.
    pub fn absorb(&mut self, other: Self) {
        self.samples.extend(other.samples);
        self.text.push_str(&other.text);
        self.round_trip = self.round_trip.max(other.round_trip);
    }

    fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [Label<'a>],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.label(key) == Some(*value))
        })
    }

    /// Sum of the samples of `name` that carry all of `labels`. None without any sample of the
    /// name: a label that was never used counts as zero, a metric that does not exist does not.
    pub fn value(&self, name: &str, labels: &[Label<'_>]) -> Option<f64> {
        self.samples
            .iter()
            .any(|sample| sample.name == name)
            .then(|| {
                // Adding to plus zero keeps an empty sum from being minus zero.
                self.matching(name, labels)
                    .fold(0.0, |sum, sample| sum + sample.value)
            })
    }

    /// The values that `label` takes in `name`, among samples that carry all of `labels`.
    pub fn label_values(&self, name: &str, label: &str, labels: &[Label<'_>]) -> Vec<String> {
        let mut values: Vec<String> = self
            .matching(name, labels)
            .filter_map(|sample| sample.label(label).map(str::to_owned))
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// The samples of `name`, to be compared as they are.
    pub fn series(&self, name: &str) -> Vec<&Sample> {
        self.samples
            .iter()
            .filter(|sample| sample.name == name)
            .collect()
    }

    /// Whether the name of any sample begins so.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.samples.iter().any(|s| s.name.starts_with(prefix))
    }

    /// Sum of the samples of the first of `names` that exists.
    pub fn first(&self, names: Names) -> Option<f64> {
        names.iter().find_map(|name| self.value(name, &[]))
    }

    /// Requests that the server still works on.
    fn in_flight(&self, map: &MetricMap) -> f64 {
        let gauges = [map.running, map.waiting];
        gauges.iter().filter_map(|names| self.first(names)).sum()
    }

    fn is_at_rest_with(&self, other: &Self, kind: ServerKind, path: &str) -> bool {
        let map = kind.map();
        let stands = |names: Names| self.first(names) == other.first(names);
        // Scrapes count as requests too, so only the measured endpoint has to be at rest.
        let endpoint = [("endpoint", path)];
        let equal = |name: &str| {
            let labels: &[Label<'_>] = if name == names::REQUESTS {
                &endpoint
            } else {
                &[]
            };
            self.value(name, labels) == other.value(name, labels)
        };
        self.in_flight(map) == 0.0
            && other.in_flight(map) == 0.0
            && map.counters().all(stands)
            && (kind != ServerKind::Octet || COUNTERS.into_iter().all(equal))
    }
}

/// The metrics of the servers of a run, read as those of one: values are summed over all.
pub struct Scraper {
    targets: Vec<Target>,
    clock: Clock,
    /// Path of the measured endpoint, its label in the metrics.
    endpoint: &'static str,
    /// Whose metrics they are, where that is said.
    kind: Option<ServerKind>,
}

impl Scraper {
    /// Scrapes `targets`, whose addresses are those of the metrics themselves.
    pub fn new(
        targets: Vec<Target>,
        clock: Clock,
        endpoint: &'static str,
        kind: Option<ServerKind>,
    ) -> Self {
        Self {
            targets,
            clock,
            endpoint,
            kind,
        }
    }

    /// Whose metrics these are: as was said, else by their names.
    pub fn kind_of(&self, snapshot: &Snapshot) -> Option<ServerKind> {
        self.kind.or_else(|| ServerKind::of(snapshot))
    }

    /// One scrape of every server, each of which has so long to answer.
    pub async fn scrape(&self, timeout: Duration) -> Result<Snapshot> {
        let mut all = Snapshot::default();
        for target in &self.targets {
            all.absorb(self.scrape_one(target, timeout).await?);
        }
        Ok(all)
    }

    async fn scrape_one(&self, target: &Target, timeout: Duration) -> Result<Snapshot> {
        let started = self.clock.now();
        let (status, body) = target
            .fetch(
                Method::GET,
                "",
                "text/plain; version=0.0.4",
                Bytes::new(),
                timeout,
            )
            .await?;
        let round_trip = self.clock.now() - started;
        if status != 200 {
            bail!("{} answers {status}", target.url);
        }
        let text = std::str::from_utf8(&body).context("the metrics are not UTF-8")?;
        let snapshot = Snapshot::parse(text)
            .map_err(|error| anyhow::anyhow!("the metrics are not readable: {error}"))?;
        Ok(Snapshot {
            round_trip,
            ..snapshot
        })
    }

    /// Scrapes until two successive snapshots are equal with nothing in flight, for at most `bound`.
    /// Returns the last snapshot and whether it is quiet.
    pub async fn quiet(&self, bound: Duration) -> Result<(Snapshot, bool)> {
        let deadline = tokio::time::Instant::now() + bound;
        let mut last = self.scrape(SCRAPE_TIMEOUT).await?;
        let Some(kind) = self.kind_of(&last) else {
            return Ok((last, true));
        };
        loop {
            tokio::time::sleep(QUIET_POLL).await;
            let next = self.scrape(SCRAPE_TIMEOUT).await?;
            let is_quiet = next.is_at_rest_with(&last, kind, self.endpoint);
            if is_quiet || tokio::time::Instant::now() >= deadline {
                return Ok((next, is_quiet));
            }
            last = next;
        }
    }
}

/// The difference between two snapshots.
#[derive(Debug)]
pub struct Delta<'a> {
    /// Before the run.
    pub before: &'a Snapshot,
    /// After it.
    pub after: &'a Snapshot,
}

impl Delta<'_> {
    /// By how much a counter grew. None when the server does not have it.
    pub fn counter(&self, name: &str, labels: &[Label<'_>]) -> Option<f64> {
        Some(self.after.value(name, labels)? - self.before.value(name, labels).unwrap_or(0.0))
    }

    /// By how much the first of `names` that exists grew.
    pub fn first(&self, names: Names) -> Option<f64> {
        names.iter().find_map(|name| self.counter(name, &[]))
    }

    /// What a histogram observed in between: upper edges in rising order, each with the number of the
    /// observations at or below it. None where it is missing.
    pub fn cumulative(&self, histogram: &str) -> Option<Vec<(f64, f64)>> {
        let name = format!("{histogram}_bucket");
        let edges = self.after.label_values(&name, "le", &[]);
        let mut grown: Vec<(f64, f64)> = edges
            .iter()
            .filter_map(|le| Some((le.parse().ok()?, self.counter(&name, &[("le", le)])?)))
            .collect();
        grown.sort_by(|a, b| a.0.total_cmp(&b.0));
        (!grown.is_empty()).then_some(grown)
    }

    /// The same as shares of all; none where nothing was observed.
    pub fn curve(&self, histogram: &str) -> Option<Vec<(f64, f64)>> {
        let mut curve = self.cumulative(histogram)?;
        let total = curve.last()?.1;
        curve.iter_mut().for_each(|(_, count)| *count /= total);
        (total > 0.0).then_some(curve)
    }

    /// By how many observations a histogram grew.
    pub fn count(&self, histogram: &str) -> Option<f64> {
        self.counter(&format!("{histogram}_count"), &[])
    }

    /// Mean of the observations in between. None without any.
    pub fn mean(&self, histogram: &str) -> Option<f64> {
        let count = self.count(histogram).filter(|count| *count > 0.0)?;
        Some(self.counter(&format!("{histogram}_sum"), &[])? / count)
    }

    /// The first counter that fell, which only a restarted server does.
    pub fn first_decrease(&self) -> Option<&'static str> {
        COUNTERS
            .into_iter()
            .find(|name| self.counter(name, &[]).is_some_and(|delta| delta < 0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot::parse(text).unwrap()
    }

    #[test]
    fn absent_metrics_differ_from_absent_labels() {
        let s = snapshot("a{x=\"1\",m=\"p\"} 2\na{x=\"1\",m=\"q\"} 3\na{x=\"2\"} 5\n");
        assert_eq!(s.value("a", &[]), Some(10.0));
        assert_eq!(s.value("a", &[("x", "1")]), Some(5.0));
        assert_eq!(s.value("a", &[("x", "1"), ("m", "q")]), Some(3.0));
        assert_eq!(s.value("a", &[("x", "9")]), Some(0.0));
        assert_eq!(s.value("b", &[]), None);
        assert_eq!(s.label_values("a", "x", &[]), ["1", "2"]);
    }

    #[test]
    fn differences() {
        let before = snapshot("h_count 2\nh_sum 1\noctet_prompt_tokens_total 7\n");
        let after = snapshot("h_count 6\nh_sum 3\noctet_prompt_tokens_total 5\nnew 4\n");
        let delta = Delta {
            before: &before,
            after: &after,
        };
        assert_eq!((delta.count("h"), delta.mean("h")), (Some(4.0), Some(0.5)));
        assert_eq!(
            (delta.counter("new", &[]), delta.counter("gone", &[])),
            (Some(4.0), None)
        );
        assert_eq!(delta.first_decrease(), Some(names::PROMPT_TOKENS));
        let same = Delta {
            before: &after,
            after: &after,
        };
        assert_eq!((same.mean("h"), same.first_decrease()), (None, None));
    }

    #[test]
    fn rest_means_nothing_running_and_nothing_moving_but_the_scrapes() {
        let text = |running: u32, finished: u32, requests: u32, scrapes: u32| {
            snapshot(&format!(
                "octet_requests_running 0\noctet_requests_waiting {running}\n\
                 octet_requests_finished_total{{finish_reason=\"stop\"}} {finished}\n\
                 octet_requests_total{{endpoint=\"/v1/completions\",code=\"200\"}} {requests}\n\
                 octet_requests_total{{endpoint=\"/metrics\",code=\"200\"}} {scrapes}\n"
            ))
        };
        let rest =
            |a: &Snapshot, b: &Snapshot| a.is_at_rest_with(b, ServerKind::Octet, "/v1/completions");
        assert!(rest(&text(0, 3, 3, 9), &text(0, 3, 3, 8)));
        assert!(!rest(&text(1, 3, 3, 9), &text(1, 3, 3, 8)));
        assert!(!rest(&text(0, 4, 3, 9), &text(0, 3, 3, 8)));
        assert!(!rest(&text(0, 3, 4, 9), &text(0, 3, 3, 8)));
    }

    /// A metric that is renamed in the server must not quietly become "not possible" here.
    #[test]
    fn the_server_has_every_metric_that_is_read() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/metrics/src/lib.rs");
        let source = std::fs::read_to_string(path).unwrap();
        let histograms = [names::TTFT, names::ITL, names::E2E];
        let others = [
            names::RUNNING,
            names::WAITING,
            names::BLOCKS_USED,
            names::BUILD_INFO,
        ];
        let map = ServerKind::Octet.map();
        let more = [
            map.kv_usage,
            map.prefix_queries,
            map.prefix_hits,
            map.batch_size,
            map.step_time,
            map.queue_time,
            map.prefill_time,
            map.decode_time,
        ]
        .concat();
        for name in COUNTERS
            .iter()
            .chain(&histograms)
            .chain(&others)
            .chain(&more)
        {
            let family = name
                .strip_suffix("_count")
                .or(name.strip_suffix("_sum"))
                .unwrap_or(name);
            let plain = family.strip_prefix("octet_").unwrap();
            assert!(source.contains(&format!("\"{plain}\"")), "{plain}");
        }
    }
}
