//! What a step asks of the sampler and what comes back. The arithmetic is that of the reference sampler.

use std::sync::Arc;

use crate::TokenId;

/// How tokens are chosen. Ranges are checked where requests are validated.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy: the lowest id among the largest logits.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 is off.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; 1 is off.
    pub top_p: f32,
    /// Drop tokens less probable than this share of the best; 0 is off.
    pub min_p: f32,
    /// Subtracted once from every generated token's logit.
    pub presence_penalty: f32,
    /// Subtracted per occurrence from every generated token's logit.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of prompt and generated tokens; 1 is off.
    pub repetition_penalty: f32,
    /// Added to logits; ids are below the logit width.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// How many alternatives to report beside the token's own log-probability.
    pub num_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            num_logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Greedy decoding without penalties.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Whether rows need [`SampleRow::counts`].
    pub fn has_penalties(&self) -> bool {
        self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
            || self.repetition_penalty != 1.0
    }
}

/// How often a token occurred, for penalties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// The token.
    pub token_id: TokenId,
    /// Occurrences among generated tokens; 0 for one that only the prompt holds.
    pub num_generated: u32,
}

/// What one logits row is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowTask {
    /// Choose the next token.
    Draw,
    /// Report the log-probability of a token that is already known (echo scoring).
    Score(TokenId),
    /// Report the log-probability of every token, to compare whole distributions.
    Distribution,
}

/// One row of the sample batch; belongs to the logits row of the same index.
#[derive(Debug, Clone)]
pub struct SampleRow {
    /// How to choose.
    pub params: Arc<SamplingParams>,
    /// What the row is for.
    pub task: RowTask,
    /// Key of the row's generator, from the request's seed and choice index.
    pub seed: u64,
    /// Position of the token being chosen; with the seed it fixes the draw, whatever the batch.
    pub position: u32,
    /// Occurrences, when [`SamplingParams::has_penalties`].
    pub counts: Vec<TokenCount>,
    /// Tokens that must not be drawn here: end tokens before `min_tokens`.
    pub banned: Arc<[TokenId]>,
}

/// All rows of a step.
#[derive(Debug, Clone, Default)]
pub struct SampleBatch {
    /// One per [`crate::Batch::logit_rows`].
    pub rows: Vec<SampleRow>,
    /// Ids from here on are padding that no tokenizer knows; their logits count as −∞.
    pub vocab_size: usize,
}

/// A chosen or scored token.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token drawn, or the one scored; the most probable one of a distribution.
    pub token_id: TokenId,
    /// Log-softmax of the raw logits at the token, before bias, penalties and temperature.
    pub logprob: f32,
    /// The most probable tokens by raw logits, best first, ties by lowest id. Of a distribution: every
    /// token, in order of id.
    pub top: Vec<(TokenId, f32)>,
}

/// The fate of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum RowOutput {
    /// The usual case.
    Token(Sampled),
    /// The logits hold NaN or +∞, or no token is left to draw; only this request fails.
    NonFinite,
}

/// The result of a step, one entry per row of the sample batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleOutput {
    /// In the order of the sample batch.
    pub rows: Vec<RowOutput>,
}
