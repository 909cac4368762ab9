//! The messages between a client of the engine and its thread.

use std::time::Duration;

use backend::{Sampled, SamplingParams, TokenId};

/// Limits and switches of the engine, resolved once at start.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Sequences that run at the same time.
    pub max_num_seqs: usize,
    /// Tokens computed in one step, prefill and decode together; measured after loading when none.
    pub max_num_batched_tokens: Option<usize>,
    /// Requests that may wait; each choice counts.
    pub max_num_queued_reqs: usize,
    /// Prompt tokens that may wait.
    pub max_num_queued_tokens: usize,
    /// Reuse of cached prompt blocks.
    pub enable_prefix_caching: bool,
    /// The longest wait before a request is refused.
    pub queue_timeout: Duration,
    /// The longest life of a request.
    pub request_timeout: Duration,
    /// How long a client may leave its stream full before the request is cancelled.
    pub stream_write_timeout: Duration,
}

/// One prompt to be continued, by one or more choices that share its cache.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// The prompt, at least one token, every id below the logit width.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Choices drawn from the prompt.
    pub num_choices: usize,
    /// Tokens each choice may generate; 0 only scores the prompt.
    pub max_tokens: usize,
    /// End tokens are banned before this many were generated.
    pub min_tokens: usize,
    /// Tokens that end a choice: end-of-sequence ids (unless ignored) and the request's own.
    pub stop_token_ids: Vec<TokenId>,
    /// Tokens that stand for an end, whether they end a choice here or not; banned before `min_tokens`.
    pub end_token_ids: Vec<TokenId>,
    /// Report log-probabilities of the prompt, with this many alternatives per position.
    pub prompt_logprobs: Option<u32>,
    /// Seed of the request; choices and positions are mixed in.
    pub seed: u64,
    /// Isolates prefix-cache entries: requests share blocks only when their salts are equal.
    pub cache_salt: u64,
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// One of the stop tokens; it is the last token of the stream.
    Stop,
    /// The token limit, or the model's context is full.
    Length,
}

/// Log-probability of one prompt token; the first position has none.
pub type PromptLogprob = Option<Sampled>;

/// What a request's stream carries, in this order: `Started`, then `Prompt` if asked for, then
/// tokens of the choices interleaved, one `Finished` per choice; or `Failed`, after which nothing
/// follows.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// The request left the waiting queue.
    Started {
        /// Prompt tokens found in the prefix cache.
        num_cached_tokens: usize,
    },
    /// Log-probabilities of prompt positions, possibly in several consecutive pieces.
    Prompt(Vec<PromptLogprob>),
    /// One generated token.
    Token {
        /// Which choice.
        choice: usize,
        /// The token and its log-probabilities.
        token: Sampled,
    },
    /// One choice is complete.
    Finished {
        /// Which choice.
        choice: usize,
        /// Why.
        reason: FinishReason,
    },
    /// The request ends without completing.
    Failed(EngineError),
}

/// Why a running request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A step ended in a panic or a device error.
    #[error("the engine stopped while generating")]
    StepFailed,
    /// The model produced NaN or infinite logits for this request.
    #[error("the model produced non-finite logits")]
    NonFiniteLogits,
    /// The request waited too long.
    #[error("the request waited too long in the queue")]
    QueueTimeout,
    /// The request lived too long.
    #[error("the request exceeded its time limit")]
    RequestTimeout,
    /// The client left its stream full for too long.
    #[error("the client reads too slowly")]
    SlowReader,
    /// The server is shutting down.
    #[error("the server is shutting down")]
    Draining,
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many requests wait as may wait.
    #[error("the queue is full: {max} requests may wait")]
    QueueFull {
        /// The limit.
        max: usize,
    },
    /// As many prompt tokens wait as may wait.
    #[error("the queue is full: {max} prompt tokens may wait")]
    QueueTokensFull {
        /// The limit.
        max: usize,
    },
    /// Prompt and output do not fit the context.
    #[error(
        "{prompt} prompt tokens plus {max_tokens} requested exceed the context of {max_model_len}"
    )]
    ContextTooLong {
        /// Prompt tokens.
        prompt: usize,
        /// Requested output tokens.
        max_tokens: usize,
        /// The context length.
        max_model_len: usize,
    },
    /// The request cannot be run whatever the load.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// No new work is taken.
    #[error("the server is shutting down")]
    Draining,
    /// The engine thread is gone or restarting.
    #[error("the engine is not running")]
    Dead,
}
