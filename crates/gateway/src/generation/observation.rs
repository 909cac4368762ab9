//! The one place where a request is measured, streamed or not, completed or not. What has not been
//! reported when it is dropped was cancelled.

use std::time::Instant;

use engine::EngineError;
use metrics::{FinishReason, Metrics, RejectReason};

use super::{FinishKind, Plan};
use crate::gateway::Gateway;

/// Token counts of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Tokens of all prompts.
    pub(crate) prompt_tokens: usize,
    /// Tokens sampled and kept, over all choices.
    pub(crate) completion_tokens: usize,
    /// Prompt tokens found in the prefix cache.
    pub(crate) cached_tokens: usize,
}

/// Measures one HTTP request.
pub(crate) struct Observation {
    metrics: Metrics,
    gateway: Gateway,
    arrived: Instant,
    usage: Usage,
    max_tokens: usize,
    /// When the first prompt left the queue.
    started: Option<Instant>,
    first_token: Option<Instant>,
    choices: Vec<ChoiceTimes>,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Not reached: the client left.
    None,
    Completed,
    Failed,
    /// Refused before anything ran; counted by its status.
    Refused,
}

#[derive(Debug, Clone, Copy, Default)]
struct ChoiceTimes {
    last_token: Option<Instant>,
    num_tokens: usize,
    is_finished: bool,
}

impl Observation {
    /// Starts measuring a request whose prompts were accepted.
    pub(super) fn new(gateway: &Gateway, plan: &Plan) -> Self {
        let prompts = &plan.prompts;
        let num_choices = prompts.len() * plan.generate.n;
        Self {
            metrics: gateway.metrics.clone(),
            gateway: gateway.clone(),
            arrived: plan.arrived,
            usage: Usage {
                prompt_tokens: prompts.iter().map(|prompt| prompt.ids.len()).sum(),
                ..Usage::default()
            },
            max_tokens: prompts.iter().map(|p| p.max_tokens).max().unwrap_or(0),
            first_token: None,
            choices: vec![ChoiceTimes::default(); num_choices],
            started: None,
            end: End::None,
        }
    }

    /// A prompt left the queue.
    pub(crate) fn started(&mut self, cached_tokens: usize) {
        self.started.get_or_insert_with(Instant::now);
        self.usage.cached_tokens += cached_tokens;
    }

    /// A token of a choice arrived and is kept.
    pub(crate) fn token(&mut self, index: usize) {
        let now = Instant::now();
        self.usage.completion_tokens += 1;
        self.metrics.generation_tokens_total.inc();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            let waited = now.saturating_duration_since(self.arrived);
            self.metrics
                .time_to_first_token_seconds
                .observe(waited.as_secs_f64());
            let prefill = self.started.map(|at| now.saturating_duration_since(at));
            self.metrics
                .request_prefill_time_seconds
                .observe(prefill.unwrap_or_default().as_secs_f64());
        }
        let choice = &mut self.choices[index];
        choice.num_tokens += 1;
        if let Some(last) = choice.last_token.replace(now) {
            let gap = now.saturating_duration_since(last);
            self.metrics
                .inter_token_latency_seconds
                .observe(gap.as_secs_f64());
        }
    }

    /// A choice is complete.
    pub(crate) fn choice_finished(&mut self, index: usize, kind: FinishKind) {
        if std::mem::replace(&mut self.choices[index].is_finished, true) {
            return;
        }
        self.count_finished(match kind {
            FinishKind::Stop => FinishReason::Stop,
            FinishKind::Length => FinishReason::Length,
        });
    }

    /// Every choice is complete.
    pub(crate) fn completed(&mut self) {
        if self.end != End::None {
            return;
        }
        self.end = End::Completed;
        let now = Instant::now();
        self.gateway.completions.completed(now);
        let lasted = now.saturating_duration_since(self.arrived);
        self.metrics
            .e2e_request_latency_seconds
            .observe(lasted.as_secs_f64());
        let last = self.choices.iter().filter_map(|c| c.last_token).max();
        let (Some(first), Some(last)) = (self.first_token, last) else {
            return;
        };
        let decode = last.saturating_duration_since(first).as_secs_f64();
        self.metrics.request_decode_time_seconds.observe(decode);
        let longest = self.choices.iter().map(|c| c.num_tokens).max().unwrap_or(0);
        if longest > 1 {
            self.metrics
                .request_time_per_output_token_seconds
                .observe(decode / (longest - 1) as f64);
        }
    }

    /// The engine gave up on the request.
    pub(crate) fn failed(&mut self, error: EngineError) {
        self.end = End::Failed;
        let reject = match error {
            EngineError::QueueTimeout => Some(RejectReason::QueueTimeout),
            EngineError::Draining if self.started.is_none() => Some(RejectReason::Draining),
            _ => None,
        };
        match reject {
            Some(reason) => {
                self.end = End::Refused;
                let counter = &self.metrics.requests_rejected_total;
                counter.with_label_values(&[reason.as_str()]).inc();
            }
            None => self.end_rest(FinishReason::Error),
        }
    }

    /// Token counts so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    fn end_rest(&mut self, reason: FinishReason) {
        for index in 0..self.choices.len() {
            if !std::mem::replace(&mut self.choices[index].is_finished, true) {
                self.count_finished(reason);
            }
        }
    }

    fn count_finished(&self, reason: FinishReason) {
        let counter = &self.metrics.requests_finished_total;
        counter.with_label_values(&[reason.as_str()]).inc();
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        if self.end == End::None {
            self.end_rest(FinishReason::Cancelled);
        }
        if self.started.is_none() {
            return;
        }
        let metrics = &self.metrics;
        let usage = self.usage;
        let since = |at: Instant| at.saturating_duration_since(self.arrived).as_secs_f64();
        tracing::info!(
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            ttft_seconds = self.first_token.map(since),
            seconds = self.arrived.elapsed().as_secs_f64(),
            end = ?self.end,
            "generation"
        );
        metrics
            .prompt_tokens_total
            .inc_by(usage.prompt_tokens as u64);
        metrics
            .prompt_tokens_cached_total
            .inc_by(usage.cached_tokens as u64);
        metrics
            .request_prompt_tokens
            .observe(usage.prompt_tokens as f64);
        metrics
            .request_generation_tokens
            .observe(usage.completion_tokens as f64);
        metrics.request_max_tokens.observe(self.max_tokens as f64);
    }
}
