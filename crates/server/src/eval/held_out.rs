//! The bundled model's score: right answers on its held-out prompts through the engine, as a user gets
//! them.

use anyhow::{Context, Result, bail};
use bundled::dataset::{HELD_OUT_PER_SKILL, MAX_ANSWER_TOKENS, held_out};
use bundled::tokenizer::{IM_END_ID, Tokenizer};
use engine::{
    Engine, EngineConfig, EngineStatus, GenerateRequest, SamplingParams, StreamEvent, TokenStream,
};
use metrics::Metrics;
use model::{Checkpoint, LoadOptions};
use serde::Serialize;

use super::windows::Window;
use crate::target::Target;

/// Room for every prompt with its answer.
const MAX_MODEL_LEN: usize = 1024;
const NUM_SEQS: usize = 64;

/// Right answers of all prompts.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Score {
    /// Answers that are right to the letter.
    pub right: usize,
    /// Prompts asked.
    pub prompts: usize,
}

impl Score {
    /// In percent.
    pub fn percent(self) -> f64 {
        100.0 * self.right as f64 / self.prompts.max(1) as f64
    }
}

/// Every conversation with its right answer, which is what is scored: the model learnt to write answers
/// only. Skills take turns, so that a part has them all; it ends when `max_scored` tokens are reached.
///
/// # Errors
/// Never for the files of this program.
pub fn windows(max_scored: usize) -> Result<Vec<Window>> {
    let tokenizer = tokenizer()?;
    let prompts = held_out();
    let mut windows = Vec::new();
    let mut num_scored = 0;
    for turn in 0..HELD_OUT_PER_SKILL {
        for prompt in prompts.iter().skip(turn).step_by(HELD_OUT_PER_SKILL) {
            if num_scored >= max_scored {
                return Ok(windows);
            }
            let mut token_ids = tokenizer.encode(&prompt.prompt());
            let first_scored = token_ids.len();
            token_ids.extend(tokenizer.encode(&prompt.answer));
            token_ids.push(IM_END_ID);
            num_scored += token_ids.len() - first_scored;
            windows.push(Window {
                token_ids,
                first_scored,
            });
        }
    }
    Ok(windows)
}

fn tokenizer() -> Result<Tokenizer> {
    let file = bundled::files()
        .iter()
        .find(|(name, _)| *name == "tokenizer.json");
    let text = std::str::from_utf8(file.context("the model has a tokenizer")?.1)?;
    Tokenizer::from_json(text).context("the tokenizer is the bundled one")
}

/// Asks every prompt under greedy decoding.
///
/// # Errors
/// When the model cannot be loaded or fails.
pub fn score(target: &Target, engine: &EngineConfig) -> Result<Score> {
    let tokenizer = tokenizer()?;
    let prompts = held_out();
    let config = EngineConfig {
        max_num_seqs: NUM_SEQS,
        max_num_batched_tokens: Some(MAX_MODEL_LEN),
        max_num_queued_reqs: prompts.len(),
        ..engine.clone()
    };
    let options = LoadOptions {
        max_model_len: Some(MAX_MODEL_LEN),
        kv_cache_bytes: crate::load::available_memory() / 4,
        swap_bytes: 0,
        max_num_seqs: NUM_SEQS,
        kv_dtype: target.kv_dtype,
    };
    let (handle, thread) = {
        let target = target.clone();
        Engine::spawn(config, Metrics::new(bundled::NAME), move || {
            let checkpoint = Checkpoint::from_memory(bundled::files())?;
            target.load(&checkpoint, &options, &mut |_, _| {})
        })
    };
    while handle.status() == EngineStatus::Loading && !thread.is_finished() {
        std::thread::sleep(crate::load::TURN);
    }
    let streams: Vec<TokenStream> = prompts
        .iter()
        .map(|prompt| handle.submit(greedy(tokenizer.encode(&prompt.prompt()))))
        .collect::<Result<_, _>>()?;
    let mut right = 0;
    for (prompt, stream) in prompts.iter().zip(streams) {
        right += usize::from(prompt.is_answered_by(&answer(stream)?, &tokenizer));
    }
    handle.drain(std::time::Instant::now());
    match thread.join() {
        Ok(ended) => ended?,
        Err(_) => bail!("the engine panicked"),
    }
    Ok(Score {
        right,
        prompts: prompts.len(),
    })
}

fn greedy(prompt: Vec<u32>) -> GenerateRequest {
    GenerateRequest {
        prompt,
        sampling: SamplingParams::greedy(),
        num_choices: 1,
        max_tokens: MAX_ANSWER_TOKENS,
        min_tokens: 0,
        stop_token_ids: vec![IM_END_ID],
        end_token_ids: Vec::new(),
        prompt_logprobs: None,
        seed: 0,
        cache_salt: 0,
    }
}

fn answer(mut stream: TokenStream) -> Result<Vec<u32>> {
    let mut token_ids = Vec::new();
    while let Some(event) = stream.blocking_recv() {
        match event {
            StreamEvent::Token { token, .. } => token_ids.push(token.token_id),
            StreamEvent::Failed(error) => bail!("{error}"),
            _ => {}
        }
    }
    Ok(token_ids)
}
