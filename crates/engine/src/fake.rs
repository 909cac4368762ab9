//! A scripted model for tests: its next token is a hash of the whole history as the cache holds it, so
//! any mix-up of blocks, copies or requests changes the answer.

use std::f32::consts::LN_2;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

use backend::{
    BLOCK_SIZE, BackendError, Batch, RowOutput, RowTask, SampleBatch, SampleOutput, Sampled,
    TokenId,
};
use model::{ActiveWeights, CausalLm, ModelInfo};

/// What a fake model does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Panic.
    Panic,
    /// Return an error that leaves the device usable.
    Error,
    /// Return an error that does not.
    Device,
    /// Return one row too few.
    MissingRow,
}

/// What a test can see of a fake model that moved to the engine thread.
#[derive(Debug, Default)]
pub struct Observed {
    /// Calls of `forward`.
    pub forwards: usize,
    /// Tokens computed.
    pub computed_tokens: usize,
    /// Calls of `reset`.
    pub resets: usize,
}

/// A model without weights.
#[derive(Debug)]
pub struct FakeModel {
    info: ModelInfo,
    seed: u64,
    /// One token per slot, as a cache would hold its key.
    slots: Vec<Option<TokenId>>,
    /// Faults by number of the forward call, from 0.
    faults: Vec<(usize, Fault)>,
    /// Rows that draw after this token are not finite.
    poison: Option<TokenId>,
    /// Each step waits for one message.
    gate: Option<Receiver<()>>,
    observed: Arc<Mutex<Observed>>,
}

impl FakeModel {
    /// A model of `vocab_size` tokens over `num_blocks` blocks.
    pub fn new(seed: u64, vocab_size: usize, max_model_len: usize, num_blocks: usize) -> Self {
        Self {
            info: ModelInfo {
                logit_width: vocab_size,
                vocab_size,
                max_model_len,
                num_blocks,
                num_host_blocks: 0,
                active_weights: ActiveWeights::default(),
            },
            seed,
            slots: vec![None; num_blocks * BLOCK_SIZE],
            faults: Vec::new(),
            poison: None,
            gate: None,
            observed: Arc::default(),
        }
    }

    /// Gives it host blocks.
    pub fn with_host_blocks(mut self, num_host_blocks: usize) -> Self {
        self.info.num_host_blocks = num_host_blocks;
        let num_blocks = self.info.num_blocks + num_host_blocks;
        self.slots.resize(num_blocks * BLOCK_SIZE, None);
        self
    }

    /// Adds a fault to the forward call of this number.
    pub fn with_fault(mut self, forward: usize, fault: Fault) -> Self {
        self.faults.push((forward, fault));
        self
    }

    /// Makes the logits after this token not finite.
    pub fn with_poison(mut self, token: TokenId) -> Self {
        self.poison = Some(token);
        self
    }

    /// Makes every step wait for a message; when the sender is gone, steps run freely.
    pub fn with_gate(mut self, gate: Receiver<()>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// A view that stays valid when the model moves away.
    pub fn observed(&self) -> Arc<Mutex<Observed>> {
        Arc::clone(&self.observed)
    }

    /// What this model answers greedily to a history.
    pub fn next_token(&self, history: &[TokenId]) -> TokenId {
        next_token(self.seed, history, self.info.vocab_size)
    }

    fn history(&self, table: &[u32], len: usize) -> Result<Vec<TokenId>, BackendError> {
        (0..len)
            .map(|position| {
                let slot =
                    table[position / BLOCK_SIZE] as usize * BLOCK_SIZE + position % BLOCK_SIZE;
                self.slots[slot].ok_or_else(|| {
                    BackendError::InvalidBatch(format!("slot {slot} was never written"))
                })
            })
            .collect()
    }

    /// The chosen token and those after it, each half as probable as the one before.
    fn top(&self, chosen: TokenId, num_logprobs: u32) -> Vec<(TokenId, f32)> {
        let vocab_size = self.info.vocab_size as TokenId;
        (0..num_logprobs.min(vocab_size))
            .map(|i| ((chosen + i) % vocab_size, -1.0 - i as f32 * LN_2))
            .collect()
    }

    fn store(&mut self, batch: &Batch) {
        for copy in &batch.copies {
            let from = copy.from as usize * BLOCK_SIZE;
            self.slots
                .copy_within(from..from + BLOCK_SIZE, copy.to as usize * BLOCK_SIZE);
        }
        for (slot, token) in batch.slots().zip(&batch.token_ids) {
            self.slots[slot] = Some(*token);
        }
    }
}

/// FNV-1a over the history, reduced to the vocabulary.
fn next_token(seed: u64, history: &[TokenId], vocab_size: usize) -> TokenId {
    let hash = history
        .iter()
        .fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, token| {
            (hash ^ u64::from(*token)).wrapping_mul(0x0100_0000_01b3)
        });
    TokenId::try_from((hash >> 20) % vocab_size as u64).expect("token ids are 32 bits wide")
}

impl CausalLm for FakeModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn forward(
        &mut self,
        batch: &Batch,
        samples: &SampleBatch,
    ) -> Result<SampleOutput, BackendError> {
        let info = &self.info;
        batch.validate(info.logit_width, info.num_blocks, info.num_host_blocks)?;
        if let Some(gate) = &self.gate {
            gate.recv().ok();
        }
        let call = {
            let mut observed = self
                .observed
                .lock()
                .unwrap_or_else(|poisoned| poisoned.into_inner());
            observed.forwards += 1;
            observed.computed_tokens += batch.num_tokens();
            observed.forwards - 1
        };
        let fault = self
            .faults
            .iter()
            .find(|(at, _)| *at == call)
            .map(|(_, fault)| *fault);
        match fault {
            Some(Fault::Panic) => panic!("scripted"),
            Some(Fault::Error) => return Err(BackendError::Shape("scripted".into())),
            Some(Fault::Device) => return Err(BackendError::Device("scripted".into())),
            Some(Fault::MissingRow) | None => {}
        }
        self.store(batch);
        let owners: Vec<(usize, usize)> = batch
            .sequences
            .iter()
            .enumerate()
            .flat_map(|(s, sequence)| (0..sequence.num_tokens).map(move |i| (s, i)))
            .collect();
        let mut rows = Vec::new();
        for (row, sample) in batch.logit_rows.iter().zip(&samples.rows) {
            let (s, i) = owners[*row];
            let sequence = &batch.sequences[s];
            let history =
                self.history(&sequence.block_table, sequence.num_computed_tokens + i + 1)?;
            if self.poison.is_some() && history.last().copied() == self.poison {
                rows.push(RowOutput::NonFinite);
                continue;
            }
            let seed = if sample.params.temperature == 0.0 {
                self.seed
            } else {
                self.seed ^ sample.seed
            };
            let mut token_id = match sample.task {
                RowTask::Draw | RowTask::Distribution => {
                    next_token(seed, &history, self.info.vocab_size)
                }
                RowTask::Score(token_id) => token_id,
            };
            while sample.task == RowTask::Draw && sample.banned.contains(&token_id) {
                token_id = (token_id + 1) % self.info.vocab_size as TokenId;
            }
            rows.push(RowOutput::Token(Sampled {
                token_id,
                logprob: -1.0,
                top: self.top(token_id, sample.params.num_logprobs.unwrap_or(0)),
            }));
        }
        if fault == Some(Fault::MissingRow) {
            rows.pop();
        }
        Ok(SampleOutput { rows })
    }

    fn reset(&mut self) -> Result<(), BackendError> {
        self.slots.fill(None);
        self.observed
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .resets += 1;
        Ok(())
    }
}
