//! The outside of the engine: admission, streams, state. Nothing here waits for the engine thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use model::ModelInfo;
use tokio::sync::mpsc;

use crate::engine::Message;
use crate::request::{EngineConfig, GenerateRequest, StreamEvent, SubmitError};
use crate::sequence::RequestId;
use crate::shared::{EngineStatus, Shared};

/// Events a stream holds before its sequences pause.
pub(crate) const STREAM_CAPACITY: usize = 64;

/// A cheap handle on the engine.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) messages: Sender<Message>,
    pub(crate) limits: Limits,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub max_num_seqs: usize,
    pub max_num_queued_reqs: usize,
    pub max_num_queued_tokens: usize,
}

/// The events of one request. Dropping it cancels what still runs.
#[derive(Debug)]
pub struct TokenStream {
    id: RequestId,
    events: mpsc::Receiver<StreamEvent>,
    messages: Sender<Message>,
}

impl TokenStream {
    /// The next event; none after the last.
    pub async fn recv(&mut self) -> Option<StreamEvent> {
        self.events.recv().await
    }

    /// The same for callers without an async runtime.
    pub fn blocking_recv(&mut self) -> Option<StreamEvent> {
        self.events.blocking_recv()
    }

    /// Ends one choice early: its text is complete although the model would go on.
    pub fn finish_choice(&self, choice: usize) {
        // A thread that is gone has nothing left to end.
        self.messages
            .send(Message::Remove {
                id: self.id,
                choice: Some(choice),
            })
            .ok();
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        self.messages
            .send(Message::Remove {
                id: self.id,
                choice: None,
            })
            .ok();
    }
}

impl EngineHandle {
    /// A handle on an engine to come, and the messages for it.
    pub(crate) fn new(config: &EngineConfig) -> (Self, Receiver<Message>) {
        let (sender, messages) = channel();
        let handle = Self {
            shared: Arc::new(Shared::new()),
            messages: sender,
            limits: Limits {
                max_num_seqs: config.max_num_seqs,
                max_num_queued_reqs: config.max_num_queued_reqs,
                max_num_queued_tokens: config.max_num_queued_tokens,
            },
        };
        (handle, messages)
    }

    /// Admits a request or refuses it at once.
    ///
    /// # Errors
    /// [`SubmitError`] names the limit that was reached.
    pub fn submit(&self, request: GenerateRequest) -> Result<TokenStream, SubmitError> {
        let mut streams = self.submit_all(vec![request])?;
        Ok(streams.pop().expect("a stream for each request"))
    }

    /// Admits requests together, or refuses them together at once: nothing of them runs then.
    ///
    /// # Errors
    /// [`SubmitError`] names the limit that was reached.
    pub fn submit_all(
        &self,
        requests: Vec<GenerateRequest>,
    ) -> Result<Vec<TokenStream>, SubmitError> {
        match self.status() {
            EngineStatus::Ready => {}
            EngineStatus::Draining => return Err(SubmitError::Draining),
            EngineStatus::Loading | EngineStatus::Dead => return Err(SubmitError::Dead),
        }
        let info = self.info().ok_or(SubmitError::Dead)?;
        requests
            .iter()
            .try_for_each(|request| self.check(request, info))?;
        let num_choices = requests.iter().map(|request| request.num_choices).sum();
        let num_tokens = requests.iter().map(|request| request.prompt.len()).sum();
        reserve(
            &self.shared.waiting_requests,
            num_choices,
            self.limits.max_num_queued_reqs,
        )
        .map_err(|max| SubmitError::QueueFull { max })?;
        reserve(
            &self.shared.waiting_tokens,
            num_tokens,
            self.limits.max_num_queued_tokens,
        )
        .map_err(|max| {
            self.shared
                .waiting_requests
                .fetch_sub(num_choices, Ordering::AcqRel);
            SubmitError::QueueTokensFull { max }
        })?;
        requests
            .into_iter()
            .map(|request| self.send(request))
            .collect()
    }

    fn send(&self, request: GenerateRequest) -> Result<TokenStream, SubmitError> {
        let id = self.shared.next_id();
        let (sender, events) = mpsc::channel(STREAM_CAPACITY + 2 * request.num_choices + 2);
        let message = Message::Submit {
            id,
            request: Box::new(request),
            events: sender,
        };
        // The queue of a thread that is gone is not counted any more.
        self.messages.send(message).map_err(|_| SubmitError::Dead)?;
        Ok(TokenStream {
            id,
            events,
            messages: self.messages.clone(),
        })
    }

    fn check(&self, request: &GenerateRequest, info: &ModelInfo) -> Result<(), SubmitError> {
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens);
        if prompt == 0 {
            return Err(SubmitError::Invalid("the prompt is empty".into()));
        }
        if prompt > info.max_model_len || max_tokens > info.max_model_len - prompt {
            return Err(SubmitError::ContextTooLong {
                prompt,
                max_tokens,
                max_model_len: info.max_model_len,
            });
        }
        if let Some(id) = request
            .prompt
            .iter()
            .find(|id| **id as usize >= info.logit_width)
        {
            return Err(SubmitError::Invalid(format!(
                "token id {id} is not below {}",
                info.logit_width
            )));
        }
        if let Some((id, _)) = request
            .sampling
            .logit_bias
            .iter()
            .find(|(id, _)| *id as usize >= info.logit_width)
        {
            return Err(SubmitError::Invalid(format!(
                "logit bias id {id} is not below {}",
                info.logit_width
            )));
        }
        if request.num_choices == 0 || request.num_choices > self.limits.max_num_seqs {
            return Err(SubmitError::Invalid(format!(
                "{} choices, of which 1 to {} can run at once",
                request.num_choices, self.limits.max_num_seqs
            )));
        }
        if request.min_tokens > max_tokens {
            return Err(SubmitError::Invalid(format!(
                "min_tokens {} exceeds max_tokens {max_tokens}",
                request.min_tokens
            )));
        }
        Ok(())
    }

    /// The model's facts, once it is loaded.
    pub fn info(&self) -> Option<&ModelInfo> {
        self.shared.info.get()
    }

    /// Tokens that one step computes at most, once that is settled.
    pub fn max_num_batched_tokens(&self) -> Option<usize> {
        self.shared.step.get().map(|step| step.tokens)
    }

    /// Where the engine is in its life.
    pub fn status(&self) -> EngineStatus {
        self.shared.status()
    }

    /// Time since the engine thread last turned its loop.
    pub fn heartbeat_age(&self) -> Duration {
        self.shared.heartbeat_age()
    }

    /// Whether an engine that serves has not moved for `limit`, or for longer than a step of its tokens can
    /// take. Loading may take any time.
    pub fn is_stuck(&self, limit: Duration) -> bool {
        if !matches!(self.status(), EngineStatus::Ready | EngineStatus::Draining) {
            return false;
        }
        let tokens = self.shared.tokens_in_step.load(Ordering::Relaxed);
        let measured = self.shared.step.get().and_then(|step| step.time);
        self.heartbeat_age() > patience(limit, tokens, measured)
    }

    /// Takes no new work from now on; what waits fails, and what runs at the deadline fails then. The
    /// thread ends when nothing is left.
    pub fn drain(&self, deadline: Instant) {
        self.shared.draining.store(true, Ordering::Release);
        self.messages.send(Message::Drain { deadline }).ok();
    }
}

/// For how long a step of so many tokens may take. Where the largest step was measured, many times as long:
/// a long context, other work on the machine and a pause of it have room in that. Elsewhere as long as on a
/// machine that would be of no use.
fn patience(limit: Duration, tokens: usize, measured: Option<Duration>) -> Duration {
    const TIMES: u32 = 20;
    const SLOWEST_TOKEN: Duration = Duration::from_millis(100);
    limit.max(match measured {
        Some(time) => time.saturating_mul(TIMES),
        None => SLOWEST_TOKEN.saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX)),
    })
}

/// Adds to a counter unless it would exceed its limit, which is then returned. Where nothing is counted
/// yet, any amount may come: who is told to come back must find room at some time.
fn reserve(counter: &AtomicUsize, amount: usize, max: usize) -> Result<(), usize> {
    counter
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(amount)
                .filter(|sum| *sum <= max || (used == 0 && max > 0))
        })
        .map(|_| ())
        .map_err(|_| max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_steps_are_given_time_and_short_ones_the_limit() {
        let limit = Duration::from_secs(30);
        let secs = Duration::from_secs;
        let fast = Some(Duration::from_millis(250));
        for (tokens, measured, expected) in [
            (0, None, limit),
            (300, None, limit),
            (8192, None, Duration::from_millis(819_200)),
            (usize::MAX, None, Duration::from_millis(429_496_729_500)),
            // What was measured says more than the number of tokens.
            (8192, fast, limit),
            (1, Some(secs(2)), secs(40)),
            (1, Some(Duration::MAX), Duration::MAX),
        ] {
            assert_eq!(patience(limit, tokens, measured), expected, "{tokens}");
        }
    }
}
