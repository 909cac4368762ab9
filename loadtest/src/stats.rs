//! Percentiles that a sample can carry. Per-request numbers are few: exact nearest rank. Chunk gaps
//! are many and get merged: a high-dynamic-range histogram.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer as _, V2DeflateSerializer};
use serde::{Serialize, Serializer};

use crate::clock::{Nanos, seconds};

/// The quantiles of every summary.
pub const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];
/// The 97.5th percentile of the standard normal distribution.
const NORMAL_P975: f64 = 1.959_963_984_540_054;
/// The highest recordable gap: one hour in microseconds.
const MAX_GAP_MICROS: u64 = 3_600_000_000;

/// The least sample that bounds quantile `q` with 95 % confidence: the smallest n for which the
/// largest of n values lies above the quantile with that probability, `1 - q^n >= 0.95`.
/// Samples within a run are correlated, so this is a minimum.
pub fn min_samples(q: f64) -> u64 {
    (0.05f64.ln() / q.ln()).ceil() as u64
}

/// Wilson's 95 % interval of a share of which `good` of `n` were counted; everything is possible when
/// nothing was. E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
/// Journal of the American Statistical Association 22 (1927).
pub fn wilson(good: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (share, n) = (good as f64 / n as f64, n as f64);
    let z2 = NORMAL_P975 * NORMAL_P975;
    let centre = share + z2 / (2.0 * n);
    let spread = NORMAL_P975 * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let bound = |x: f64| (x / (1.0 + z2 / n)).clamp(0.0, 1.0);
    (bound(centre - spread), bound(centre + spread))
}

/// A percentile, as far as the sample says something about it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Percentile {
    /// The sample is too small to bound it.
    TooFew,
    /// In seconds.
    Seconds(f64),
    /// So many failed that it has no bound.
    Infinite,
}

impl Serialize for Percentile {
    /// `null`, a number of seconds, or the string `inf`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::TooFew => serializer.serialize_none(),
            Self::Seconds(value) => serializer.serialize_f64(*value),
            Self::Infinite => serializer.serialize_str("inf"),
        }
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Percentile {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Percentile".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "Seconds; null of too small a sample, inf where too many requests failed.",
            "anyOf": [{"type": "number", "minimum": 0}, {"enum": [null, "inf"]}]
        })
    }
}

/// A summary of one latency, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Summary {
    /// Sample size.
    pub n: u64,
    /// Arithmetic mean, none without a sample.
    pub mean: Option<f64>,
    /// Median.
    pub p50: Percentile,
    /// 90th percentile.
    pub p90: Percentile,
    /// 95th percentile.
    pub p95: Percentile,
    /// 99th percentile.
    pub p99: Percentile,
    /// 99.9th percentile.
    pub p999: Percentile,
    /// Largest value, none without a sample.
    pub max: Option<f64>,
    /// The whole distribution in microseconds, where it is kept: an `HdrHistogram` in its encoding V2, compressed and in
    /// base 64, as its tools in other languages read and merge it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hdr: Option<String>,
}

impl Summary {
    fn build(
        n: u64,
        mean: Option<f64>,
        max: Option<f64>,
        quantile: impl Fn(f64) -> Percentile,
    ) -> Self {
        let bounded = |q| {
            if n < min_samples(q) {
                Percentile::TooFew
            } else {
                quantile(q)
            }
        };
        let [p50, p90, p95, p99, p999] = QUANTILES.map(bounded);
        Self {
            n,
            mean,
            p50,
            p90,
            p95,
            p99,
            p999,
            max,
            hdr: None,
        }
    }
}

/// A sample of per-request values.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    sorted: Vec<Nanos>,
}

impl FromIterator<Nanos> for Sample {
    fn from_iter<I: IntoIterator<Item = Nanos>>(values: I) -> Self {
        let mut sorted: Vec<Nanos> = values.into_iter().collect();
        sorted.sort_unstable();
        Self { sorted }
    }
}

impl Sample {
    /// The summary of the values.
    pub fn summary(&self) -> Summary {
        self.summary_with_failures(0)
    }

    /// The summary with the whole distribution, to three digits.
    pub fn summary_with_histogram(&self) -> Summary {
        let mut values = Gaps::default();
        self.sorted.iter().for_each(|value| values.record(*value));
        Summary {
            hdr: values.encoded(),
            ..self.summary()
        }
    }

    /// The summary in which `failures` further values are infinite. Mean and maximum stay those of
    /// the finite values.
    pub fn summary_with_failures(&self, failures: u64) -> Summary {
        let finite = self.sorted.len() as u64;
        let n = finite + failures;
        let total: u128 = self.sorted.iter().map(|v| u128::from(*v)).sum();
        let mean = (finite > 0).then(|| total as f64 / finite as f64 / 1e9);
        let max = self.sorted.last().map(|v| seconds(*v));
        Summary::build(n, mean, max, |q| {
            let rank = nearest_rank(q, n);
            match self
                .sorted
                .get(usize::try_from(rank - 1).expect("a rank indexes memory"))
            {
                Some(value) => Percentile::Seconds(seconds(*value)),
                None => Percentile::Infinite,
            }
        })
    }
}

/// The rank, counted from one, of quantile `q` among `n` values: the least with `rank / n >= q`.
fn nearest_rank(q: f64, n: u64) -> u64 {
    // The subtraction keeps a product like 0.95 * 100 = 95.00000000000001 at rank 95.
    ((q * n as f64 - 1e-9).ceil() as u64).clamp(1, n)
}

/// Chunk gaps: unit one microsecond, up to one hour, three significant digits.
#[derive(Debug, Clone)]
pub struct Gaps {
    histogram: Histogram<u64>,
}

impl Default for Gaps {
    fn default() -> Self {
        let histogram =
            Histogram::new_with_bounds(1, MAX_GAP_MICROS, 3).expect("the bounds are valid");
        Self { histogram }
    }
}

impl Gaps {
    /// Adds one gap. What is shorter than a microsecond counts as zero, what is longer than an hour
    /// as an hour.
    pub fn record(&mut self, gap: Nanos) {
        self.histogram.saturating_record((gap + 500) / 1000);
    }

    /// The summary with the whole distribution.
    pub fn summary_with_histogram(&self) -> Summary {
        Summary {
            hdr: self.encoded(),
            ..self.summary()
        }
    }

    /// The histogram as [`Summary::hdr`] has it; none of nothing.
    fn encoded(&self) -> Option<String> {
        if self.histogram.is_empty() {
            return None;
        }
        let mut bytes = Vec::new();
        V2DeflateSerializer::new()
            .serialize(&self.histogram, &mut bytes)
            .expect("memory takes every byte");
        Some(STANDARD.encode(bytes))
    }

    /// Values in microseconds and how often each was seen, by value; [`Gaps::add`] puts them back.
    pub fn counts(&self) -> Vec<(u64, u64)> {
        let seen = self.histogram.iter_recorded();
        seen.map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .collect()
    }

    /// Adds what [`Gaps::counts`] gave: histograms are merged, percentiles never averaged.
    pub fn add(&mut self, counts: &[(u64, u64)]) {
        for (micros, count) in counts {
            let value = (*micros).min(MAX_GAP_MICROS);
            self.histogram.saturating_record_n(value, *count);
        }
    }

    /// The summary of all gaps.
    pub fn summary(&self) -> Summary {
        let n = self.histogram.len();
        let value = |micros: u64| micros as f64 / 1e6;
        let mean = (n > 0).then(|| self.histogram.mean() / 1e6);
        let max = (n > 0).then(|| value(self.histogram.max()));
        Summary::build(n, mean, max, |q| {
            Percentile::Seconds(value(self.histogram.value_at_quantile(q)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_least_sample_of_each_percentile() {
        assert_eq!(QUANTILES.map(min_samples), [5, 29, 59, 299, 2995]);
    }

    #[test]
    fn a_percentile_appears_exactly_when_the_sample_can_bound_it() {
        for (q, read) in [
            (0.95, (|s| s.p95) as fn(&Summary) -> Percentile),
            (0.99, |s| s.p99),
            (0.999, |s| s.p999),
        ] {
            let least = min_samples(q);
            let summary = |n: u64| (1..=n).collect::<Sample>().summary();
            assert_eq!(read(&summary(least - 1)), Percentile::TooFew, "{q}");
            assert!(
                matches!(read(&summary(least)), Percentile::Seconds(_)),
                "{q}"
            );
            let mut gaps = Gaps::default();
            (1..least).for_each(|t| gaps.record(t * 1000));
            assert_eq!(read(&gaps.summary()), Percentile::TooFew, "{q}");
            gaps.record(5000);
            assert!(
                matches!(read(&gaps.summary()), Percentile::Seconds(_)),
                "{q}"
            );
        }
    }

    /// Figures of R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    #[test]
    fn intervals_of_shares_are_those_of_the_literature() {
        for (good, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let found = wilson(good, n);
            assert!(
                (found.0 - low).abs() < 5e-5 && (found.1 - high).abs() < 5e-5,
                "{found:?}"
            );
        }
        assert_eq!(wilson(0, 0), (0.0, 1.0));
        assert_eq!(wilson(7, 7).1, 1.0);
    }

    #[test]
    fn nearest_ranks_are_exact() {
        let sample: Sample = (1..=100).map(|s| s * 1_000_000_000).collect();
        let summary = sample.summary();
        assert_eq!(summary.p50, Percentile::Seconds(50.0));
        assert_eq!(summary.p90, Percentile::Seconds(90.0));
        assert_eq!(summary.p95, Percentile::Seconds(95.0));
        assert_eq!(summary.p99, Percentile::TooFew);
        assert_eq!(
            (summary.n, summary.mean, summary.max),
            (100, Some(50.5), Some(100.0))
        );
    }

    #[test]
    fn failures_are_infinitely_slow() {
        let sample: Sample = (1..=290).map(|s| s * 1_000_000_000).collect();
        let summary = sample.summary_with_failures(10);
        assert_eq!((summary.n, summary.max), (300, Some(290.0)));
        assert_eq!(summary.p95, Percentile::Seconds(285.0));
        assert_eq!(summary.p99, Percentile::Infinite);
    }

    #[test]
    fn an_empty_sample_has_no_numbers() {
        let empty = Sample::default().summary();
        assert_eq!(
            (empty.n, empty.mean, empty.max, empty.p50),
            (0, None, None, Percentile::TooFew)
        );
        assert_eq!(Gaps::default().summary(), empty);
        let json = serde_json::to_value(Sample::default().summary_with_failures(5)).unwrap();
        assert_eq!(
            (&json["p50"], &json["p99"]),
            (&"inf".into(), &serde_json::Value::Null)
        );
    }

    /// What is kept is the histogram itself, and begins as those of the other implementations do.
    #[test]
    fn a_distribution_comes_back_from_its_encoding() {
        let values: Vec<Nanos> = (0..500).map(|i| i * i * 12_345).collect();
        let mut gaps = Gaps::default();
        values.iter().for_each(|value| gaps.record(*value));
        let of_sample = values
            .into_iter()
            .collect::<Sample>()
            .summary_with_histogram();
        let text = gaps.summary_with_histogram().hdr.unwrap();
        assert_eq!(of_sample.hdr.as_ref(), Some(&text));
        assert!(text.starts_with("HISTFAAA"), "{text}");
        let bytes = STANDARD.decode(text).unwrap();
        let mut decoder = hdrhistogram::serialization::Deserializer::new();
        let back: Histogram<u64> = decoder.deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(back, gaps.histogram);
        assert_eq!(Sample::default().summary_with_histogram().hdr, None);
    }

    #[test]
    fn a_gap_beyond_the_range_does_not_panic() {
        let mut gaps = Gaps::default();
        gaps.record(0);
        gaps.record(7_200_000_000_000);
        assert!((gaps.summary().max.unwrap() - 3600.0).abs() < 4.0);
    }

    #[test]
    fn merged_histograms_are_the_histogram_of_everything() {
        let (mut first, mut second, mut all) = (Gaps::default(), Gaps::default(), Gaps::default());
        for i in 0..5000u64 {
            let gap = i * i * 1000;
            if i % 3 == 0 { &mut first } else { &mut second }.record(gap);
            all.record(gap);
        }
        let mut merged = Gaps::default();
        merged.add(&first.counts());
        merged.add(&second.counts());
        assert_eq!(merged.counts(), all.counts());
        assert_eq!(merged.summary(), all.summary());
    }

    proptest! {
        /// Histogram and exact rank agree within the histogram's three digits.
        #[test]
        fn histogram_and_sample_agree(values in prop::collection::vec(1_000u64..10_000_000_000, 60..200)) {
            let mut gaps = Gaps::default();
            values.iter().for_each(|v| gaps.record(*v));
            let (approximate, exact) = (gaps.summary(), values.into_iter().collect::<Sample>().summary());
            for (a, b) in [(approximate.p50, exact.p50), (approximate.p95, exact.p95)] {
                let (Percentile::Seconds(a), Percentile::Seconds(b)) = (a, b) else { panic!("{a:?} {b:?}") };
                prop_assert!((a - b).abs() <= b * 2e-3 + 1e-6, "{} {}", a, b);
            }
        }
    }
}
