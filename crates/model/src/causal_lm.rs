//! What the engine sees of a model: tokens in, tokens out.

use backend::{BackendError, Batch, SampleBatch, SampleOutput};

/// The facts a scheduler and a gateway need to know about a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Rows of the embedding table and width of the logits; token ids are below it.
    pub logit_width: usize,
    /// Ids the tokenizer knows, at most `logit_width`; the rest is padding and never drawn.
    pub vocab_size: usize,
    /// The longest sequence, prompt and output together, in tokens.
    pub max_model_len: usize,
    /// Blocks of the paged cache.
    pub num_blocks: usize,
    /// Blocks in host memory that preempted sequences are moved to; their ids follow.
    pub num_host_blocks: usize,
    /// Weights that a token is multiplied with.
    pub active_weights: ActiveWeights,
}

/// Elements of the matrices that one token meets: of experts only as many as it is sent to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ActiveWeights {
    /// In all layers together.
    pub layers: u64,
    /// In the head, which only tokens whose logits are wanted meet.
    pub head: u64,
}

/// A decoder with its cache, erased to what the engine needs. Not necessarily `Send`: it is built on
/// the engine thread and stays there.
pub trait CausalLm {
    /// The model's facts.
    fn info(&self) -> &ModelInfo;

    /// Computes every scheduled token of every sequence once and samples the wanted rows.
    ///
    /// # Errors
    /// Any [`BackendError`]; the step's sequences have then made no usable progress.
    fn forward(
        &mut self,
        batch: &Batch,
        samples: &SampleBatch,
    ) -> Result<SampleOutput, BackendError>;

    /// Throws the cache away and allocates it anew, after a step ended in a panic.
    ///
    /// # Errors
    /// When the cache cannot be allocated again.
    fn reset(&mut self) -> Result<(), BackendError>;
}
