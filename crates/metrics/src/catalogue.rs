//! Every family as a scraper sees it: what dashboards, alert rules and manifests are generated from
//! and checked against.

use prometheus::proto::{MetricFamily, MetricType};

use crate::{BuildInfo, Metrics};

/// What a family counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, until the process restarts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, a sum and a count.
    Histogram,
}

/// One family of the exposition.
#[derive(Debug, Clone, PartialEq)]
pub struct Family {
    /// Full name, such as `octet_requests_running`.
    pub name: String,
    /// Its help line.
    pub help: String,
    /// What it counts.
    pub kind: Kind,
    /// Names of its labels, `le` left out.
    pub labels: Vec<String>,
    /// Upper bucket edges of a histogram, in the unit of the name, infinity left out.
    pub buckets: Vec<f64>,
}

/// Every family that a server publishes once its model is loaded, under our own names, by name.
pub fn catalogue() -> Vec<Family> {
    let metrics = Metrics::new("model");
    metrics.declare_endpoint("endpoint");
    metrics.set_cache_config(1, 1, "type");
    metrics.set_build_info(&BuildInfo::default());
    metrics.registry.gather().iter().map(describe).collect()
}

fn describe(family: &MetricFamily) -> Family {
    let series = family.get_metric().first();
    let labels = series.map(|series| series.get_label()).unwrap_or_default();
    let kind = match family.get_field_type() {
        MetricType::COUNTER => Kind::Counter,
        MetricType::HISTOGRAM => Kind::Histogram,
        MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => Kind::Gauge,
    };
    let edges = series.map_or_else(Vec::new, |series| {
        let buckets = series.get_histogram().get_bucket();
        buckets.iter().map(|bucket| bucket.upper_bound()).collect()
    });
    Family {
        name: family.name().to_owned(),
        help: family.help().to_owned(),
        kind,
        labels: labels.iter().map(|label| label.name().to_owned()).collect(),
        buckets: edges.into_iter().filter(|edge| edge.is_finite()).collect(),
    }
}
