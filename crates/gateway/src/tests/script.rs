//! A model that says what a test wants it to say.

use std::collections::HashMap;

use backend::{
    BackendError, Batch, RowOutput, RowTask, SampleBatch, SampleOutput, SampleRow, Sampled, TokenId,
};
use model::{ActiveWeights, CausalLm, ModelInfo};

use super::support::{END, MAX_MODEL_LEN, VOCAB};

/// Log-probability of every drawn token; the alternatives are each one lower.
pub(super) const LOGPROB: f32 = -0.5;

/// Says a fixed list of tokens, then ends. A bias of 100 forces its token, a banned token or one with
/// a bias of −100 gives way to the next one.
pub(super) struct Script {
    info: ModelInfo,
    answer: Vec<TokenId>,
    /// Position of the first token of every generator, which stands for a choice.
    starts: HashMap<u64, u32>,
    /// What follows this token is not finite.
    poison: Option<TokenId>,
}

impl Script {
    /// A model that says `answer`, byte by byte.
    pub(super) fn saying(answer: impl AsRef<[u8]>) -> Self {
        Self::of(answer.as_ref().iter().copied().map(TokenId::from).collect())
    }

    /// A model that says these tokens.
    pub(super) fn of(answer: Vec<TokenId>) -> Self {
        Self {
            info: ModelInfo {
                logit_width: VOCAB,
                vocab_size: VOCAB,
                max_model_len: MAX_MODEL_LEN,
                num_blocks: 64,
                num_host_blocks: 0,
                active_weights: ActiveWeights::default(),
            },
            answer,
            starts: HashMap::new(),
            poison: None,
        }
    }

    /// The same, failing with non-finite logits once it has said `token`.
    pub(super) fn poisoned_after(mut self, token: TokenId) -> Self {
        self.poison = Some(token);
        self
    }

    fn said(&self, said: u32) -> TokenId {
        self.answer.get(said as usize).copied().unwrap_or(END)
    }

    fn draw(&mut self, row: &SampleRow) -> RowOutput {
        let start = *self.starts.entry(row.seed).or_insert(row.position);
        let said = row.position - start;
        if self.poison.is_some() && said > 0 && self.poison == Some(self.said(said - 1)) {
            return RowOutput::NonFinite;
        }
        let bias = &row.params.logit_bias;
        let forced = bias.iter().find(|(_, bias)| *bias == 100.0);
        let mut token = forced.map_or_else(|| self.said(said), |(id, _)| *id);
        while row.banned.contains(&token) || bias.contains(&(token, -100.0)) {
            token = (token + 1) % VOCAB as TokenId;
        }
        RowOutput::Token(sampled(row, token))
    }
}

fn sampled(row: &SampleRow, token_id: TokenId) -> Sampled {
    let top = (0..row.params.num_logprobs.unwrap_or(0))
        .map(|i| ((token_id + i) % VOCAB as TokenId, LOGPROB - i as f32));
    Sampled {
        token_id,
        logprob: LOGPROB,
        top: top.collect(),
    }
}

impl CausalLm for Script {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn forward(
        &mut self,
        batch: &Batch,
        samples: &SampleBatch,
    ) -> Result<SampleOutput, BackendError> {
        batch.validate(self.info.logit_width, self.info.num_blocks, 0)?;
        let rows = samples.rows.iter().map(|row| match row.task {
            RowTask::Draw | RowTask::Distribution => self.draw(row),
            RowTask::Score(token) => RowOutput::Token(sampled(row, token)),
        });
        Ok(SampleOutput {
            rows: rows.collect(),
        })
    }

    fn reset(&mut self) -> Result<(), BackendError> {
        self.starts.clear();
        Ok(())
    }
}
