//! What passed: numbers of requests, their lengths, and rates over the window.

use serde::Serialize;

use crate::clock::{Nanos, seconds};
use crate::record::{Phase, RequestRecord};
use crate::tokenizer::Retokenised;

/// Numbers of requests.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Requests {
    /// Planned inside the window.
    pub measured: u64,
    /// Successes among them.
    pub succeeded: u64,
    /// Failures among them.
    pub failed: u64,
    /// Planned before the window.
    pub warmup: u64,
    /// Planned after it.
    pub background: u64,
    /// Failures before and after the window.
    pub failed_outside: u64,
    /// Attempts that another one followed, by `--retries`.
    #[serde(skip_serializing_if = "is_zero")]
    pub retried: u64,
    /// Requests sent again because a reused connection had been closed under them.
    pub reconnects: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Requests {
    pub(super) fn new(records: &[RequestRecord]) -> Self {
        let count = |predicate: &dyn Fn(&RequestRecord) -> bool| {
            records.iter().filter(|r| predicate(r)).count() as u64
        };
        let is_measured = |r: &RequestRecord| r.phase == Phase::Measured;
        Self {
            measured: count(&is_measured),
            succeeded: count(&|r| is_measured(r) && r.outcome.is_success()),
            failed: count(&|r| is_measured(r) && !r.outcome.is_success()),
            warmup: count(&|r| r.phase == Phase::Warmup),
            background: count(&|r| r.phase == Phase::Background),
            failed_outside: count(&|r| {
                let is_outside = matches!(r.phase, Phase::Warmup | Phase::Background);
                is_outside && !r.outcome.is_success()
            }),
            retried: count(&|r| r.phase == Phase::Retried),
            reconnects: records.iter().map(|r| u64::from(r.reconnects)).sum(),
        }
    }
}

/// Mean lengths in tokens, asked for and got.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LengthInfo {
    /// Prompt tokens aimed at.
    pub prompt_asked_mean: Option<f64>,
    /// Prompts with exactly as many tokens as were aimed at.
    pub prompts_as_asked: u64,
    /// How far the others are off at most, in tokens.
    pub prompt_off_max: u64,
    /// Prompt tokens by usage.
    pub prompt_mean: Option<f64>,
    /// Prompt tokens from the prefix cache by usage.
    pub prompt_cached_mean: Option<f64>,
    /// Output tokens asked for.
    pub output_asked_mean: Option<f64>,
    /// Output tokens by usage.
    pub output_mean: Option<f64>,
    /// What became of some answers when they were made tokens again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retokenised: Option<Retokenised>,
}

impl LengthInfo {
    pub(super) fn new(good: &[&RequestRecord]) -> Self {
        let mean = |value: &dyn Fn(&RequestRecord) -> u64| {
            let total: u64 = good.iter().map(|r| value(r)).sum();
            (!good.is_empty()).then(|| total as f64 / good.len() as f64)
        };
        let off = |r: &&RequestRecord| r.prompt_tokens().abs_diff(r.asked_prompt_tokens.into());
        let off: Vec<u64> = good.iter().map(off).collect();
        Self {
            prompts_as_asked: off.iter().filter(|tokens| **tokens == 0).count() as u64,
            prompt_off_max: off.into_iter().max().unwrap_or(0),
            prompt_asked_mean: mean(&|r| u64::from(r.asked_prompt_tokens)),
            prompt_mean: mean(&RequestRecord::prompt_tokens),
            prompt_cached_mean: mean(&RequestRecord::cached_tokens),
            output_asked_mean: mean(&|r| u64::from(r.asked_output_tokens)),
            output_mean: mean(&RequestRecord::output_tokens),
            retokenised: None,
        }
    }
}

/// What passed through the window, per second; failures carry no tokens.
#[derive(Debug, Clone, Default, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rates {
    /// Requests planned.
    pub offered_requests: f64,
    /// Requests whose first byte left.
    pub sent_requests: f64,
    /// Successes that ended.
    pub completed_requests: f64,
    /// Output tokens received.
    pub output_tokens: f64,
    /// Prompt tokens, credited at the first token of the answer.
    pub prompt_tokens: f64,
    /// Prompt tokens among them that came from the prefix cache.
    pub cached_prompt_tokens: f64,
    /// Output and prompt tokens.
    pub total_tokens: f64,
    /// Requests in flight, mean over time.
    pub in_flight_mean: f64,
    /// Most requests in flight at once.
    pub in_flight_max: u64,
    /// Of a closed loop, answers per second times the mean time of one: by Little's law the users, if none pauses and
    /// the window is long against an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users_by_little: Option<f64>,
}

impl Rates {
    pub(super) fn new(records: &[RequestRecord], window: (Nanos, Nanos)) -> Self {
        let (start, end) = window;
        let inside = |t: Nanos| t >= start && t < end;
        let length = seconds(end - start);
        let per_second = |amount: f64| if length > 0.0 { amount / length } else { 0.0 };
        let count = |predicate: &dyn Fn(&RequestRecord) -> bool| {
            per_second(records.iter().filter(|r| predicate(r)).count() as f64)
        };
        let is_last = |r: &RequestRecord| r.phase != Phase::Retried;
        let good = || records.iter().filter(|r| r.outcome.is_success());
        let started = || good().filter(|r| r.stream.first_in_window);
        let output_tokens = per_second(good().map(RequestRecord::output_tokens_in_window).sum());
        let prompt_tokens =
            per_second(started().map(RequestRecord::prompt_tokens).sum::<u64>() as f64);
        let (in_flight_mean, in_flight_max) = in_flight(records, window);
        Self {
            offered_requests: count(&|r| is_last(r) && inside(r.t_plan)),
            sent_requests: count(&|r| is_last(r) && r.t_send.is_some_and(inside)),
            completed_requests: count(&|r| r.outcome.is_success() && inside(r.t_end)),
            output_tokens,
            prompt_tokens,
            cached_prompt_tokens: per_second(
                started().map(RequestRecord::cached_tokens).sum::<u64>() as f64,
            ),
            total_tokens: output_tokens + prompt_tokens,
            in_flight_mean,
            in_flight_max,
            users_by_little: None,
        }
    }
}

/// Requests between first byte sent and end, within the window: mean over time and maximum.
pub(crate) fn in_flight(records: &[RequestRecord], (start, end): (Nanos, Nanos)) -> (f64, u64) {
    let mut changes: Vec<(Nanos, i64)> = Vec::new();
    let mut busy: u128 = 0;
    for record in records {
        let (from, to) = (
            record.t_send.unwrap_or(Nanos::MAX).max(start),
            record.t_end.min(end),
        );
        if from < to {
            busy += u128::from(to - from);
            changes.extend([(from, 1), (to, -1)]);
        }
    }
    // At the same moment an end comes before a start.
    changes.sort_unstable();
    let mut now = 0;
    let max = changes.iter().fold(0, |max, (_, change)| {
        now += change;
        max.max(now)
    });
    let length = (end - start).max(1);
    (busy as f64 / length as f64, u64::try_from(max).unwrap_or(0))
}
