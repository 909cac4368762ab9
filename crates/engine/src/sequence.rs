//! One generation and its state. Policy stands in the scheduler.

use std::collections::BTreeMap;
use std::sync::Arc;

use backend::{BlockId, RowTask, SampleRow, SamplingParams, TokenCount, TokenId};

use crate::block_manager::Prefix;
use crate::request::GenerateRequest;

/// Identifies a request for as long as the process lives.
pub type RequestId = u64;

/// One choice of one request. Before its prompt is computed, the first choice stands for all.
#[derive(Debug)]
pub struct Sequence {
    /// The request it belongs to.
    pub request: RequestId,
    /// Which choice of the request.
    pub choice: usize,
    /// Choices that will split off when the prompt is computed.
    pub pending_choices: usize,
    /// Prompt and generated tokens.
    pub tokens: Vec<TokenId>,
    /// How many of them are the prompt.
    pub num_prompt_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    pub num_computed_tokens: usize,
    /// Blocks that hold them, in order of position.
    pub blocks: Vec<BlockId>,
    /// Host blocks that hold them instead while the sequence waits after a preemption.
    pub swapped: Vec<BlockId>,
    /// Identity of the prefix that ends with the last full, computed block.
    pub prefix: Prefix,
    /// Prompt positions whose log-probability was reported.
    pub num_scored_tokens: usize,
    /// The client does not take more for now.
    pub paused: bool,
    /// What all choices of the request share.
    pub rules: Arc<Rules>,
}

/// The immutable part of a request.
#[derive(Debug)]
pub struct Rules {
    /// How tokens are chosen.
    pub sampling: Arc<SamplingParams>,
    /// Tokens each choice may generate.
    pub max_tokens: usize,
    /// No end tokens before this many.
    pub min_tokens: usize,
    /// Tokens that end a choice.
    pub stop_token_ids: Arc<[TokenId]>,
    /// Tokens that are banned before `min_tokens`.
    pub end_token_ids: Arc<[TokenId]>,
    /// Alternatives per prompt position, where positions are scored.
    pub prompt_logprobs: Option<u32>,
    /// Parameters of the scoring rows.
    pub scoring: Arc<SamplingParams>,
    /// Seed of the request.
    pub seed: u64,
    /// Isolation of cached prefixes.
    pub cache_salt: u64,
}

impl Sequence {
    /// The first choice of a request, with the others pending.
    pub fn new(id: RequestId, request: GenerateRequest) -> Self {
        let scoring = SamplingParams {
            num_logprobs: request.prompt_logprobs,
            ..SamplingParams::default()
        };
        Self {
            request: id,
            choice: 0,
            pending_choices: request.num_choices - 1,
            num_prompt_tokens: request.prompt.len(),
            tokens: request.prompt,
            num_computed_tokens: 0,
            blocks: Vec::new(),
            swapped: Vec::new(),
            prefix: Prefix::Empty {
                salt: request.cache_salt,
            },
            num_scored_tokens: 0,
            paused: false,
            rules: Arc::new(Rules {
                sampling: Arc::new(request.sampling),
                max_tokens: request.max_tokens,
                min_tokens: request.min_tokens,
                stop_token_ids: request.stop_token_ids.into(),
                end_token_ids: request.end_token_ids.into(),
                prompt_logprobs: request.prompt_logprobs,
                scoring: Arc::new(scoring),
                seed: request.seed,
                cache_salt: request.cache_salt,
            }),
        }
    }

    /// Another choice that shares everything computed so far; its blocks are held by the caller.
    pub fn fork(&self, choice: usize) -> Self {
        Self {
            request: self.request,
            choice,
            pending_choices: 0,
            tokens: self.tokens.clone(),
            num_prompt_tokens: self.num_prompt_tokens,
            num_computed_tokens: self.num_computed_tokens,
            blocks: self.blocks.clone(),
            swapped: Vec::new(),
            prefix: self.prefix,
            num_scored_tokens: self.num_scored_tokens,
            paused: false,
            rules: Arc::clone(&self.rules),
        }
    }

    /// Forgets what was computed.
    pub fn restart(&mut self) {
        self.blocks.clear();
        self.swapped.clear();
        self.num_computed_tokens = 0;
        self.prefix = Prefix::Empty {
            salt: self.rules.cache_salt,
        };
    }

    /// Tokens that are known and not computed yet; at least one while the sequence runs.
    pub fn num_owed_tokens(&self) -> usize {
        self.tokens.len() - self.num_computed_tokens
    }

    /// Whether prompt positions are to be reported that are not computed or not reported yet; a cached
    /// prefix has no logits to score them by.
    pub fn owes_scores(&self) -> bool {
        self.rules.prompt_logprobs.is_some() && self.num_scored_tokens + 1 < self.num_prompt_tokens
    }

    /// Tokens generated so far.
    pub fn num_generated_tokens(&self) -> usize {
        self.tokens.len() - self.num_prompt_tokens
    }

    /// Choices this sequence stands for.
    pub fn num_choices(&self) -> usize {
        1 + self.pending_choices
    }

    /// The row that draws the next token for one choice.
    pub fn draw_row(&self, choice: usize) -> SampleRow {
        let rules = &self.rules;
        let early = self.num_generated_tokens() < rules.min_tokens;
        SampleRow {
            params: Arc::clone(&rules.sampling),
            task: RowTask::Draw,
            seed: choice_seed(rules.seed, choice),
            position: u32::try_from(self.tokens.len()).unwrap_or(u32::MAX),
            counts: if rules.sampling.has_penalties() {
                self.counts()
            } else {
                Vec::new()
            },
            banned: if early {
                Arc::clone(&rules.end_token_ids)
            } else {
                Arc::from([])
            },
        }
    }

    /// The row that scores the prompt token after `position`.
    pub fn score_row(&self, position: usize) -> SampleRow {
        SampleRow {
            params: Arc::clone(&self.rules.scoring),
            task: RowTask::Score(self.tokens[position + 1]),
            seed: 0,
            position: 0,
            counts: Vec::new(),
            banned: Arc::from([]),
        }
    }

    fn counts(&self) -> Vec<TokenCount> {
        let mut counts = BTreeMap::new();
        for (index, token) in self.tokens.iter().enumerate() {
            *counts.entry(*token).or_insert(0) += u32::from(index >= self.num_prompt_tokens);
        }
        counts
            .into_iter()
            .map(|(token_id, num_generated)| TokenCount {
                token_id,
                num_generated,
            })
            .collect()
    }
}

/// Choice 0 draws with the request's own seed, so that it equals a request with one choice.
fn choice_seed(seed: u64, choice: usize) -> u64 {
    seed.wrapping_add((choice as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
