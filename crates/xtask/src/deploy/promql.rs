//! Expressions of PromQL over the metric definitions: builders that know kinds and labels, and a
//! check for expressions written by hand. That an expression parses is Prometheus's own business in
//! the deploy stage.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use metrics::{Family, Kind};
use regex::Regex;

/// Labels that Prometheus adds to every series it scrapes.
const TARGET_LABELS: &[&str] = &["instance", "job", "le"];
/// What the boards filter by.
const FILTER: &str = r#"instance=~"$instance""#;

/// The metric definitions, by name without prefix.
pub struct Catalogue(Vec<Family>);

impl Catalogue {
    /// Reads them from the metrics crate.
    pub fn new() -> Self {
        Self(metrics::catalogue())
    }

    /// Every family.
    #[cfg(test)]
    pub fn families(&self) -> &[Family] {
        &self.0
    }

    /// The family `octet_{name}`, or `{name}` itself for those of the process.
    pub fn family(&self, name: &str) -> Result<&Family> {
        let find = |wanted: &str| self.0.iter().find(|family| family.name == wanted);
        find(&format!("octet_{name}"))
            .or_else(|| find(name))
            .with_context(|| format!("{name} is not a metric"))
    }

    fn of_kind(&self, name: &str, kind: Kind) -> Result<&Family> {
        let family = self.family(name)?;
        if family.kind != kind {
            bail!("{name} is a {:?}, not a {kind:?}", family.kind);
        }
        Ok(family)
    }

    /// `name{…}` with the filters of the boards, and further matchers; `suffix` as in `_bucket`.
    fn select(family: &Family, suffix: &str, matchers: &str) -> String {
        let mut filters = Vec::new();
        if family.labels.iter().any(|label| label == "model_name") {
            filters.push(r#"model_name=~"$model_name""#);
        }
        filters.push(FILTER);
        if !matchers.is_empty() {
            filters.push(matchers);
        }
        format!("{}{suffix}{{{}}}", family.name, filters.join(","))
    }

    /// The sum of a gauge over the labels left out of `by`.
    pub fn gauge(&self, name: &str, by: &str) -> Result<String> {
        let family = self.of_kind(name, Kind::Gauge)?;
        Ok(aggregate("sum", by, &Self::select(family, "", "")))
    }

    /// The largest value of a gauge.
    pub fn max(&self, name: &str, by: &str) -> Result<String> {
        let family = self.of_kind(name, Kind::Gauge)?;
        Ok(aggregate("max", by, &Self::select(family, "", "")))
    }

    /// Growth of a counter per second.
    pub fn rate(&self, name: &str, matchers: &str, by: &str) -> Result<String> {
        let family = self.of_kind(name, Kind::Counter)?;
        let selected = Self::select(family, "", matchers);
        let rate = format!("rate({selected}[$__rate_interval])");
        Ok(aggregate("sum", by, &rate))
    }

    /// Growth per second of a histogram's `_sum` or `_count`.
    pub fn histogram_rate(&self, name: &str, suffix: &str, by: &str) -> Result<String> {
        let family = self.of_kind(name, Kind::Histogram)?;
        let selected = Self::select(family, suffix, "");
        let rate = format!("rate({selected}[$__rate_interval])");
        Ok(aggregate("sum", by, &rate))
    }

    /// Mean of what a histogram observed.
    pub fn mean(&self, name: &str, by: &str) -> Result<String> {
        let sum = self.histogram_rate(name, "_sum", by)?;
        let count = self.histogram_rate(name, "_count", by)?;
        Ok(format!("{sum}\n/\n{count}"))
    }

    /// A quantile of what a histogram observed, interpolated inside its bucket.
    pub fn quantile(&self, q: f64, name: &str) -> Result<String> {
        Ok(format!("histogram_quantile({q}, {})", self.buckets(name)?))
    }

    /// A histogram's buckets, for a heat map or a quantile.
    pub fn buckets(&self, name: &str) -> Result<String> {
        let family = self.of_kind(name, Kind::Histogram)?;
        let selected = Self::select(family, "_bucket", "");
        let rate = format!("rate({selected}[$__rate_interval])");
        Ok(aggregate("sum", "le", &rate))
    }

    /// Names of our own families in an expression. Fails on a name that is none, on a matcher whose
    /// label the family lacks, on a grouping label that no family of the expression has, and on an
    /// edge that is none.
    pub fn check(&self, expression: &str) -> Result<BTreeSet<String>> {
        let mut used = BTreeSet::new();
        let mut known: BTreeSet<&str> = TARGET_LABELS.iter().copied().collect();
        let mut own = false;
        for found in
            pattern(r"\b((?:octet|process)_[a-z0-9_]+)(\{[^}]*\})?").captures_iter(expression)
        {
            if preceded_by_colon(expression, found.get(1).map_or(0, |name| name.start())) {
                continue;
            }
            let family = self.series(&found[1])?;
            own = true;
            known.extend(family.labels.iter().map(String::as_str));
            used.insert(family.name.clone());
            let matchers = found.get(2).map_or("", |matchers| matchers.as_str());
            check_matchers(family, matchers).with_context(|| format!("in {expression}"))?;
        }
        if own {
            for found in pattern(r"\b(?:by|on|without) ?\(([a-z_, ]*)\)").captures_iter(expression)
            {
                for label in found[1].split(',').map(str::trim) {
                    if !known.contains(label) {
                        bail!("{expression}: no metric has the label {label}");
                    }
                }
            }
        }
        Ok(used)
    }

    /// The family of a series: a histogram's name ends in `_bucket`, `_sum` or `_count`.
    fn series(&self, name: &str) -> Result<&Family> {
        let exact = self.0.iter().find(|family| family.name == name);
        if let Some(family) = exact.filter(|family| family.kind != Kind::Histogram) {
            return Ok(family);
        }
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        let histogram =
            |family: &&Family| family.kind == Kind::Histogram && Some(&*family.name) == base;
        let family = self.0.iter().find(histogram);
        family.with_context(|| format!("{name} is not a series of this server"))
    }
}

fn preceded_by_colon(text: &str, at: usize) -> bool {
    text[..at].ends_with(':')
}

fn check_matchers(family: &Family, matchers: &str) -> Result<()> {
    for found in pattern(r#"([a-z_]+) *(?:=~|!~|!=|=) *"([^"]*)""#).captures_iter(matchers) {
        let (label, value) = (&found[1], &found[2]);
        let is_known =
            TARGET_LABELS.contains(&label) || family.labels.iter().any(|own| own == label);
        if !is_known {
            bail!("{} has no label {label}", family.name);
        }
        let is_edge = |edge: f64| family.buckets.contains(&edge) || edge.is_infinite();
        if label == "le" && !value.parse().is_ok_and(is_edge) {
            bail!("{value} is no bucket edge of {}", family.name);
        }
        if label == "le" && !value.contains('.') {
            bail!("Prometheus 3 writes le=\"{value}\" as \"{value}.0\": choose a fraction");
        }
    }
    Ok(())
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern")
}

/// `sum by (labels) (inner)`, or `sum(inner)` for no labels.
fn aggregate(how: &str, by: &str, inner: &str) -> String {
    if by.is_empty() {
        format!("{how}({inner})")
    } else {
        format!("{how} by ({by}) ({inner})")
    }
}
