//! What is read off a run to be compared.

use maud::{Markup, html};

use super::data::{Run, Summary, milliseconds, number};
use super::group::Group;
use super::tagged::{Of, tagged};
use crate::interval::Interval;

/// A latency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Latency {
    /// First token.
    Ttft,
    /// Each further token.
    Tpot,
    /// Whole answer.
    E2e,
}

/// A percentile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantile {
    P50,
    P90,
    P95,
    P99,
}

/// A number of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Output tokens per second.
    OutputTokens,
    /// Requests per second that were planned.
    OfferedRequests,
    /// Requests per second that ended well.
    CompletedRequests,
    /// Requests per second that kept the limits.
    Goodput,
    /// A latency's percentile, in seconds.
    Latency(Latency, Quantile),
}

impl Quantile {
    const ALL: [Self; 4] = [Self::P99, Self::P95, Self::P90, Self::P50];

    fn of(self, summary: &Summary) -> Option<f64> {
        match self {
            Self::P50 => summary.p50,
            Self::P90 => summary.p90,
            Self::P95 => summary.p95,
            Self::P99 => summary.p99,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P95 => "p95",
            Self::P99 => "p99",
        }
    }
}

impl Latency {
    pub fn of(self, run: &Run) -> &Summary {
        match self {
            Self::Ttft => &run.latency.ttft,
            Self::Tpot => &run.latency.tpot,
            Self::E2e => &run.latency.e2e,
        }
    }

    /// Where it stands in `latency` of a result.
    fn key(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::E2e => "e2e",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ttft => "First token",
            Self::Tpot => "Each further token",
            Self::E2e => "Whole answer",
        }
    }

    /// The highest percentile that every run carries; the median when none does.
    pub fn highest(self, groups: &[Group]) -> Metric {
        let runs = || groups.iter().flat_map(Group::counted);
        let carried = |q: &Quantile| runs().all(|run| q.of(self.of(run)).is_some());
        let quantile = Quantile::ALL.into_iter().find(carried);
        Metric::Latency(self, quantile.unwrap_or(Quantile::P50))
    }
}

impl Metric {
    /// The four that a comparison is decided by, the one that the load was made for first: tokens per
    /// second where slow servers get less load, the time of an answer where arrivals do not wait.
    pub fn headlines(groups: &[Group]) -> [Self; 4] {
        let rate = Self::OutputTokens;
        let answer = Self::Latency(Latency::E2e, Quantile::P50);
        let [ttft, tpot] = [Latency::Ttft, Latency::Tpot].map(|latency| latency.highest(groups));
        if groups[0].runs[0].load.arrival.is_closed() {
            [rate, ttft, tpot, answer]
        } else {
            [answer, ttft, tpot, rate]
        }
    }

    pub fn of(self, run: &Run) -> Option<f64> {
        match self {
            Self::OutputTokens => Some(run.rates.output_tokens),
            Self::OfferedRequests => run.rates.offered_requests,
            Self::CompletedRequests => Some(run.rates.completed_requests),
            Self::Goodput => run.goodput.as_ref().map(|g| g.requests_per_second),
            Self::Latency(latency, quantile) => quantile.of(latency.of(run)),
        }
    }

    pub fn name(self) -> String {
        match self {
            Self::OutputTokens => "Output".to_owned(),
            Self::OfferedRequests => "Asked for".to_owned(),
            Self::CompletedRequests => "Answers".to_owned(),
            Self::Goodput => "Answers within the limits".to_owned(),
            Self::Latency(latency, quantile) => format!("{}, {}", latency.name(), quantile.name()),
        }
    }

    /// Where it stands in a result.
    pub fn key(self) -> String {
        match self {
            Self::OutputTokens => "rates.output_tokens".to_owned(),
            Self::OfferedRequests => "rates.offered_requests".to_owned(),
            Self::CompletedRequests => "rates.completed_requests".to_owned(),
            Self::Goodput => "goodput.requests_per_second".to_owned(),
            Self::Latency(latency, quantile) => {
                format!("latency.{}.{}", latency.key(), quantile.name())
            }
        }
    }

    /// A value with its unit, and where it is from.
    pub fn tagged(self, of: Of, value: f64) -> Markup {
        tagged(of, &self.key(), value, &self.words(value))
    }

    /// A mean with half of its interval, and where it is from.
    pub fn tagged_plus_minus(self, of: Of, value: f64, half: f64) -> Markup {
        tagged(of, &self.key(), value, &self.plus_minus(value, half))
    }

    /// The ends of the interval of the mean over the runs of a group, and where they are from.
    pub fn tagged_ends(self, group: usize, interval: Interval) -> Markup {
        let low = interval.low.max(0.0);
        let key = self.key();
        html! {
            (tagged(Of::Low(group), &key, low, &self.words(low))) " to "
            (tagged(Of::High(group), &key, interval.high, &self.words(interval.high)))
        }
    }

    /// Whether more of it is faster.
    pub fn is_rate(self) -> bool {
        !matches!(self, Self::Latency(..))
    }

    /// A value and half of its interval, in the unit and with the digits of the value.
    pub fn plus_minus(self, value: f64, half: f64) -> String {
        let words = self.words(value);
        let (number, unit) = words.split_once(' ').unwrap_or((&words, ""));
        let half = half
            * match unit {
                "ms" => 1e3,
                "µs" => 1e6,
                _ => 1.0,
            };
        let own = number.split_once('.').map_or(0, |(_, digits)| digits.len());
        // Half of an interval is never told as nothing.
        let is_seen = |digits: &usize| half * 10f64.powi(*digits as i32) >= 0.5;
        let digits = (own..=own + 3).find(is_seen).unwrap_or(own);
        format!("{number} ± {half:.digits$} {unit}")
    }

    /// A value with its unit.
    pub fn words(self, value: f64) -> String {
        match self {
            Self::OutputTokens => format!("{} tokens/s", number(value)),
            Self::OfferedRequests | Self::CompletedRequests | Self::Goodput => {
                format!("{} /s", number(value))
            }
            Self::Latency(..) => milliseconds(Some(value)),
        }
    }
}
