//! Latencies of the measured successes, as distributions and one by one.

use serde::Serialize;

use crate::clock::{Nanos, seconds};
use crate::record::RequestRecord;
use crate::stats::{Gaps, Sample, Summary};

/// Below this many events per token a gap between events is not a gap between tokens.
const MIN_EVENTS_PER_TOKEN: f64 = 0.98;

/// Latencies of the measured successes.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Latency {
    /// First token, from the planned start.
    pub ttft: Summary,
    /// First token, from the first byte sent.
    pub ttft_from_send: Summary,
    /// First output that is no reasoning, from the planned start; only where it came later than the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttfo: Option<Summary>,
    /// First token, with failures as infinitely slow.
    pub ttft_with_failures: Summary,
    /// Time per output token after the first, per request.
    pub tpot: Summary,
    /// Gap between token-bearing events.
    pub chunk_gap: Summary,
    /// The same as microseconds and counts, to be merged with those of other runs.
    pub chunk_gap_counts: Vec<(u64, u64)>,
    /// Token-bearing events per output token.
    pub events_per_token: Option<f64>,
    /// Whether a chunk gap may be called inter-token latency.
    pub chunk_gap_is_itl: bool,
    /// The longest gap of each request.
    pub longest_stall: Summary,
    /// End of the text, from the planned start.
    pub e2e: Summary,
    /// End of the text, with failures as infinitely slow.
    pub e2e_with_failures: Summary,
    /// End-to-end latency over output tokens, per request.
    pub normalised: Summary,
    /// From the end of the text to the end of the stream.
    pub tail: Summary,
}

impl Latency {
    pub(super) fn new(good: &[&RequestRecord], failures: u64) -> Self {
        let sample = |value: fn(&RequestRecord) -> Option<Nanos>| -> Sample {
            good.iter().filter_map(|r| value(r)).collect()
        };
        let mut gaps = Gaps::default();
        good.iter()
            .flat_map(|r| &r.stream.gaps)
            .for_each(|gap| gaps.record(*gap));
        let events: u64 = good.iter().map(|r| r.stream.events).sum();
        let tokens: u64 = good.iter().map(|r| r.output_tokens()).sum();
        let events_per_token = (tokens > 0).then(|| events as f64 / tokens as f64);
        let (ttft, e2e) = (sample(RequestRecord::ttft), sample(RequestRecord::e2e));
        Self {
            ttft: ttft.summary_with_histogram(),
            ttft_from_send: sample(RequestRecord::ttft_from_send).summary_with_histogram(),
            ttfo: good
                .iter()
                .any(|r| r.ttfo() != r.ttft())
                .then(|| sample(RequestRecord::ttfo).summary_with_histogram()),
            ttft_with_failures: ttft.summary_with_failures(failures),
            tpot: sample(RequestRecord::tpot).summary_with_histogram(),
            chunk_gap: gaps.summary_with_histogram(),
            chunk_gap_counts: gaps.counts(),
            events_per_token,
            chunk_gap_is_itl: events_per_token.is_some_and(|ratio| ratio >= MIN_EVENTS_PER_TOKEN),
            longest_stall: sample(RequestRecord::longest_stall).summary_with_histogram(),
            e2e: e2e.summary_with_histogram(),
            e2e_with_failures: e2e.summary_with_failures(failures),
            normalised: sample(RequestRecord::normalised_latency).summary_with_histogram(),
            tail: sample(RequestRecord::tail).summary_with_histogram(),
        }
    }
}

/// One measured success; times in seconds.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RequestSample {
    /// Planned start, from the beginning of the window.
    pub t: f64,
    /// First token, from the planned start.
    pub ttft: Option<f64>,
    /// Time per output token after the first.
    pub tpot: Option<f64>,
    /// End of the text, from the planned start.
    pub e2e: Option<f64>,
    /// Prompt tokens by usage.
    pub prompt_tokens: u64,
    /// Generated tokens by usage.
    pub output_tokens: u64,
    /// Prompt tokens from the prefix cache by usage.
    pub cached_tokens: u64,
    /// Conversation it belongs to.
    pub conversation: u64,
    /// Its place there, from zero.
    pub turn: u32,
}

/// One measured request that failed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FailureSample {
    /// Planned start in seconds, from the beginning of the window.
    pub t: f64,
    /// Its class.
    pub outcome: String,
}

/// The failures among some requests.
pub(super) fn failures(records: &[&RequestRecord], begin: Nanos) -> Vec<FailureSample> {
    let failed = records.iter().filter(|r| !r.outcome.is_success());
    let mut ordered: Vec<&&RequestRecord> = failed.collect();
    ordered.sort_by_key(|record| (record.t_plan, record.index));
    let sample = |record: &&RequestRecord| FailureSample {
        t: seconds(record.t_plan.saturating_sub(begin)),
        outcome: record.outcome.name().into_owned(),
    };
    ordered.into_iter().map(sample).collect()
}

pub(super) fn samples(records: &[&RequestRecord], begin: Nanos) -> Vec<RequestSample> {
    let mut ordered: Vec<&RequestRecord> = records.to_vec();
    ordered.sort_by_key(|record| (record.t_plan, record.index));
    let sample = |record: &&RequestRecord| RequestSample {
        t: seconds(record.t_plan.saturating_sub(begin)),
        ttft: record.ttft().map(seconds),
        tpot: record.tpot().map(seconds),
        e2e: record.e2e().map(seconds),
        prompt_tokens: record.prompt_tokens(),
        output_tokens: record.output_tokens(),
        cached_tokens: record.cached_tokens(),
        conversation: record.conversation,
        turn: record.turn,
    };
    ordered.iter().map(sample).collect()
}
