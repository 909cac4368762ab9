//! The host input of one step: which tokens of which sequences are computed, and where they live.

use crate::{BackendError, Result};

/// An index into the vocabulary.
pub type TokenId = u32;
/// An index of a block in the paged cache.
pub type BlockId = u32;
/// Tokens per cache block, on every target.
pub const BLOCK_SIZE: usize = 32;

/// A whole-block copy inside the cache, host blocks included, made before the step stores anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block read.
    pub from: BlockId,
    /// The block overwritten.
    pub to: BlockId,
}

/// Which per-token index an embedding gathers by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Token ids, for the token embedding.
    Tokens,
    /// Positions, for learned position tables.
    Positions,
}

/// One sequence's share of a step: the next `num_tokens` tokens after `num_computed_tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchSequence {
    /// Tokens of this sequence computed in this step, at least one.
    pub num_tokens: usize,
    /// Tokens whose keys and values are already in the cache; the first new token's position.
    pub num_computed_tokens: usize,
    /// Blocks covering `num_computed_tokens + num_tokens` tokens, in order of position.
    pub block_table: Vec<BlockId>,
}

/// All scheduled tokens of all sequences of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Token ids, sequences one after the other.
    pub token_ids: Vec<TokenId>,
    /// The sequences, in the order of their tokens.
    pub sequences: Vec<BatchSequence>,
    /// Token rows whose logits are wanted, one per row of the sample batch. A row may repeat: the
    /// choices of one prompt draw their first tokens from the same row.
    pub logit_rows: Vec<usize>,
    /// Block copies to carry out before this step stores anything.
    pub copies: Vec<BlockCopy>,
}

impl Batch {
    /// The number of scheduled tokens.
    pub fn num_tokens(&self) -> usize {
        self.token_ids.len()
    }

    /// Positions of the scheduled tokens, in token order.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.sequences
            .iter()
            .flat_map(|s| s.num_computed_tokens..s.num_computed_tokens + s.num_tokens)
    }

    /// Cache slots of the scheduled tokens: `block · BLOCK_SIZE + position mod BLOCK_SIZE`.
    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.sequences.iter().flat_map(|s| {
            (s.num_computed_tokens..s.num_computed_tokens + s.num_tokens)
                .map(|p| s.block_table[p / BLOCK_SIZE] as usize * BLOCK_SIZE + p % BLOCK_SIZE)
        })
    }

    /// Checks the promises a target relies on, so that no kernel needs to.
    ///
    /// # Errors
    /// [`BackendError::InvalidBatch`] names the first broken promise: token counts that do not add
    /// up, an id outside `vocab_size`, a block outside `num_blocks`, a short block table, a logit row
    /// out of range, or a copy outside these blocks and the `num_host_blocks` that follow them.
    pub fn validate(
        &self,
        vocab_size: usize,
        num_blocks: usize,
        num_host_blocks: usize,
    ) -> Result<()> {
        let invalid = |message: String| Err(BackendError::InvalidBatch(message));
        let total: usize = self.sequences.iter().map(|s| s.num_tokens).sum();
        if total != self.token_ids.len() || total == 0 {
            return invalid(format!(
                "{} token ids for {total} tokens",
                self.token_ids.len()
            ));
        }
        if let Some(id) = self.token_ids.iter().find(|id| **id as usize >= vocab_size) {
            return invalid(format!("token id {id}, vocabulary size {vocab_size}"));
        }
        if let Some(row) = self.logit_rows.iter().find(|row| **row >= total) {
            return invalid(format!("logit row {row} of {total} tokens"));
        }
        let num_copied = num_blocks.saturating_add(num_host_blocks);
        for copy in &self.copies {
            if copy.from.max(copy.to) as usize >= num_copied {
                return invalid(format!("copy {copy:?}, {num_copied} blocks"));
            }
        }
        for (i, s) in self.sequences.iter().enumerate() {
            let end = s.num_computed_tokens + s.num_tokens;
            if s.num_tokens == 0 || s.block_table.len() * BLOCK_SIZE < end {
                return invalid(format!(
                    "sequence {i}: {end} tokens, {} blocks",
                    s.block_table.len()
                ));
            }
            if let Some(b) = s.block_table.iter().find(|b| **b as usize >= num_blocks) {
                return invalid(format!("sequence {i}: block {b} of {num_blocks}"));
            }
        }
        Ok(())
    }
}
