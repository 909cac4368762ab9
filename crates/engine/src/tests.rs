//! Random programs against the scheduler, driven step by step without threads, and the thread itself.

mod random_programs;
mod thread;

use std::time::Duration;

use crate::request::{EngineConfig, GenerateRequest};
use crate::{SamplingParams, TokenId};

/// Limits that never bind unless a test lowers them.
fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: Some(64),
        max_num_queued_reqs: 64,
        max_num_queued_tokens: 1 << 20,
        enable_prefix_caching: true,
        queue_timeout: Duration::from_secs(3600),
        request_timeout: Duration::from_secs(3600),
        stream_write_timeout: Duration::from_secs(3600),
    }
}

fn greedy(prompt: Vec<TokenId>, max_tokens: usize) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingParams::greedy(),
        num_choices: 1,
        max_tokens,
        min_tokens: 0,
        stop_token_ids: Vec::new(),
        end_token_ids: Vec::new(),
        prompt_logprobs: None,
        seed: 0,
        cache_salt: 0,
    }
}
