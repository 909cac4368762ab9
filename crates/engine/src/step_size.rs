//! How many tokens a step may compute: measured once after loading, so that decoding sequences never
//! wait long for a neighbour's prompt.

use std::time::{Duration, Instant};

use backend::{
    BLOCK_SIZE, BackendError, Batch, BatchSequence, RowTask, SampleBatch, SampleRow, SamplingParams,
};
use model::CausalLm;

/// A step takes no longer than this, as long as [`MIN_TOKENS`] allow.
const MAX_STEP_TIME: Duration = Duration::from_millis(250);
/// Smaller steps would waste most of a matrix product.
const MIN_TOKENS: usize = 64;
/// Larger steps gain nothing.
const MAX_TOKENS: usize = 8192;
/// Tokens of one prompt in a measured step; longer contexts cost more, but not much more.
const PROMPT: usize = 512;

/// A step as large as steps may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// Tokens that it computes.
    pub tokens: usize,
    /// What it took, where it was measured.
    pub time: Option<Duration>,
}

/// The largest power of two whose step of prompts stays within [`MAX_STEP_TIME`]. Leaves meaningless
/// keys and values in free blocks, which no sequence reads before it has written them.
pub fn measure(model: &mut dyn CausalLm) -> StepSize {
    let mut tokens = MIN_TOKENS;
    let mut last = None;
    loop {
        let next = 2 * tokens;
        let time = step_time(model, tokens);
        // A step twice as large takes about twice as long, so most sizes that fail are never run.
        match time {
            Some(taken) if next <= MAX_TOKENS && 2 * taken <= MAX_STEP_TIME => tokens = next,
            Some(_) => return StepSize { tokens, time },
            None => {
                let tokens = (tokens / 2).max(MIN_TOKENS);
                return StepSize { tokens, time: last };
            }
        }
        last = time;
    }
}

/// Time of one step over prompts of `num_tokens` tokens in all; none where the cache is too small for it
/// or the step fails.
fn step_time(model: &mut dyn CausalLm, num_tokens: usize) -> Option<Duration> {
    let info = model.info().clone();
    let (batch, samples) = prompts(num_tokens, PROMPT.min(info.max_model_len), info.vocab_size);
    let num_blocks: usize = batch.sequences.iter().map(|s| s.block_table.len()).sum();
    if num_blocks > info.num_blocks {
        return None;
    }
    let mut run = || -> Result<Duration, BackendError> {
        let start = Instant::now();
        model.forward(&batch, &samples)?;
        Ok(start.elapsed())
    };
    // The first run touches memory for the first time.
    let times = run().and_then(|first| Ok(first.min(run()?)));
    times
        .inspect_err(|error| tracing::warn!(num_tokens, %error, "measuring a step failed"))
        .ok()
}

fn prompts(num_tokens: usize, prompt: usize, vocab_size: usize) -> (Batch, SampleBatch) {
    let mut batch = Batch::default();
    let mut rows = Vec::new();
    let params = std::sync::Arc::new(SamplingParams::greedy());
    let mut next_block = 0;
    while batch.num_tokens() < num_tokens {
        let len = prompt.min(num_tokens - batch.num_tokens());
        let blocks = len.div_ceil(BLOCK_SIZE) as u32;
        batch
            .token_ids
            .extend((0..len).map(|i| (i % vocab_size) as u32));
        batch.logit_rows.push(batch.num_tokens() - 1);
        batch.sequences.push(BatchSequence {
            num_tokens: len,
            num_computed_tokens: 0,
            block_table: (next_block..next_block + blocks).collect(),
        });
        next_block += blocks;
        rows.push(SampleRow {
            params: std::sync::Arc::clone(&params),
            task: RowTask::Draw,
            seed: 0,
            position: len as u32,
            counts: Vec::new(),
            banned: std::sync::Arc::from([]),
        });
    }
    (batch, SampleBatch { rows, vocab_size })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{FakeModel, Fault};

    #[test]
    fn sizes_are_powers_of_two_within_the_cache() {
        for (num_blocks, max_model_len, largest) in [(2, 64, 64), (16, 64, 512), (16, 512, 512)] {
            let mut model = FakeModel::new(1, 32, max_model_len, num_blocks);
            let StepSize { tokens, time } = measure(&mut model);
            assert!(tokens.is_power_of_two() && tokens <= largest, "{tokens}");
            assert!(time.is_some());
        }
    }

    #[test]
    fn a_model_that_fails_gets_the_smallest_step() {
        let mut model = FakeModel::new(1, 32, 64, 4).with_fault(0, Fault::Error);
        let (tokens, time) = (MIN_TOKENS, None);
        assert_eq!(measure(&mut model), StepSize { tokens, time });
    }

    #[test]
    fn measured_batches_are_valid() {
        for (num_tokens, prompt) in [(64, 512), (64, 10), (1024, 512), (100, 33)] {
            let (batch, samples) = prompts(num_tokens, prompt, 7);
            let blocks = batch.sequences.iter().map(|s| s.block_table.len()).sum();
            batch.validate(7, blocks, 0).expect("valid");
            assert_eq!(batch.num_tokens(), num_tokens);
            assert_eq!(samples.rows.len(), batch.logit_rows.len());
        }
    }
}
