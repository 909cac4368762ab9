//! The line below which targets differ: the [`Backend`] trait and the plain data that crosses it.
//!
//! Above this crate a model is written once and never learns a device or a dtype; below it a target
//! owns its memory and its kernels. This crate holds no policy, no files and no text. It also holds
//! the reference target, which every other target is compared with, and the suite that compares.

mod batch;
pub mod conformance;
mod error;
mod kv_cache;
mod layers;
pub mod reference;
mod sampling;
mod weights;

pub use batch::{BLOCK_SIZE, Batch, BatchSequence, BlockCopy, BlockId, Ids, TokenId};
pub use error::BackendError;
pub use kv_cache::{KvCacheSpec, KvDtype, KvTypes};
pub use layers::{Activation, AttentionSpec, Expert, Experts, Norm, NormKind, Rope, Routing};
pub use reference::{
    ReferenceBackend, ReferenceOps, SamplerOps, log_probability, route_row, sample_row,
    sample_row_with, uniform,
};
pub use sampling::{
    RowOutput, RowTask, SampleBatch, SampleOutput, SampleRow, Sampled, SamplingParams, TokenCount,
};
pub use weights::{HostTensor, Int8Data, LinearRole, LinearWeight, WeightData};

/// What every method of a target returns.
pub type Result<T> = std::result::Result<T, BackendError>;

/// A compute target at the height of transformer operations.
///
/// Activations are `[num_tokens, features]`, all scheduled tokens of all sequences flattened in
/// batch order; there is no batch dimension. Every operation that reads the tokens of one sequence
/// finds the sequence through the step. A target that promises bit-identical results promises that a
/// row of any result depends on the row's own inputs only, whatever else is in the batch.
///
/// Nineteen methods are required. The provided ones are fusions: their defaults call the
/// primitives, and a target overrides one when a measurement says so.
pub trait Backend: 'static {
    /// Activations, always `[num_tokens, features]`, and loaded tables and vectors.
    type Tensor;
    /// A packed weight matrix with its optional bias.
    type Linear;
    /// Keys and values of all layers, paged in blocks of [`BLOCK_SIZE`] tokens.
    type KvCache;
    /// One batch's ids, positions, slots and block tables on the device.
    type Step;

    /// Loads a table or a vector: `[rows, columns]`, a vector being one row.
    fn load_tensor(&mut self, tensor: HostTensor) -> Result<Self::Tensor>;
    /// Packs a weight matrix in the layout and precision this target computes with.
    fn load_linear(&mut self, weight: LinearWeight) -> Result<Self::Linear>;
    /// Allocates the paged cache, zeroed.
    fn alloc_kv_cache(&mut self, spec: &KvCacheSpec) -> Result<Self::KvCache>;

    /// Brings one batch to the device. The batch has passed [`Batch::validate`].
    fn begin_step(&mut self, batch: &Batch) -> Result<Self::Step>;
    /// Copies whole blocks inside the cache, in order, before anything of this step is stored. Ids from
    /// [`KvCacheSpec::num_blocks`] on are host blocks.
    fn copy_blocks(&mut self, cache: &mut Self::KvCache, copies: &[BlockCopy]) -> Result<()>;
    /// Gathers one row of `table` per scheduled token: `[num_tokens, columns of table]`.
    fn embed(&mut self, table: &Self::Tensor, ids: Ids, step: &Self::Step) -> Result<Self::Tensor>;
    /// Keeps the rows of [`Batch::logit_rows`], in that order, repeats included.
    fn select(&mut self, x: &Self::Tensor, step: &Self::Step) -> Result<Self::Tensor>;
    /// Normalises each run of `norm.width` features; the result is f32-accurate.
    fn norm(
        &mut self,
        x: &Self::Tensor,
        norm: &Norm<Self::Tensor>,
        step: &Self::Step,
    ) -> Result<Self::Tensor>;
    /// `x · Wᵀ + bias`: `[num_tokens, in] → [num_tokens, out]`.
    fn linear(
        &mut self,
        x: &Self::Tensor,
        linear: &Self::Linear,
        step: &Self::Step,
    ) -> Result<Self::Tensor>;
    /// Splits the features into consecutive parts of the given widths.
    fn split(&mut self, x: Self::Tensor, widths: &[usize]) -> Result<Vec<Self::Tensor>>;
    /// Rotates the first `rotary_dim` features of every head by the token's position, in place.
    fn rope(
        &mut self,
        x: &mut Self::Tensor,
        rope: &Rope<Self::Tensor>,
        step: &Self::Step,
    ) -> Result<()>;
    /// Writes the step's keys and values, `[num_tokens, num_kv_heads · head_dim]`, to their slots.
    fn store_kv(
        &mut self,
        cache: &mut Self::KvCache,
        layer: usize,
        k: &Self::Tensor,
        v: &Self::Tensor,
        step: &Self::Step,
    ) -> Result<()>;
    /// Causal attention of each token over its own sequence's cache, the token itself included:
    /// `[num_tokens, num_heads · head_dim]`. The step's own keys and values are already stored.
    fn attention(
        &mut self,
        q: &Self::Tensor,
        cache: &Self::KvCache,
        layer: usize,
        spec: &AttentionSpec,
        step: &Self::Step,
    ) -> Result<Self::Tensor>;
    /// Applies an activation to every element, in place.
    fn activate(&mut self, x: &mut Self::Tensor, activation: Activation) -> Result<()>;
    /// `x ← x ⊙ y`, shapes equal.
    fn mul(&mut self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;
    /// `x ← x + y`, shapes equal.
    fn add(&mut self, x: &mut Self::Tensor, y: &Self::Tensor) -> Result<()>;
    /// Turns router logits, `[num_tokens, num_experts]`, into the weights of experts: the softmax over
    /// all of them, kept for the `top_k` largest (of equal ones the first), 0 for the others.
    fn route(&mut self, logits: Self::Tensor, routing: &Routing) -> Result<Self::Tensor>;
    /// `Σ weights[e] · expert_e(x)` over the experts whose weight is not 0, added in their order
    /// whatever else is in the batch: `[num_tokens, hidden]`.
    fn mix_experts(
        &mut self,
        x: &Self::Tensor,
        weights: &Self::Tensor,
        experts: &Experts<Self::Linear>,
        step: &Self::Step,
    ) -> Result<Self::Tensor>;
    /// Turns logits, one row per entry of the sample batch, into tokens and log-probabilities, and
    /// ends the step.
    fn sample(
        &mut self,
        logits: Self::Tensor,
        batch: &SampleBatch,
        step: Self::Step,
    ) -> Result<SampleOutput>;

    /// Loads an embedding that is the head as well: the table and the matrix. A quantising target may
    /// gather from the quantised matrix, so that the weights are there once.
    fn load_tied(&mut self, table: HostTensor) -> Result<(Self::Tensor, Self::Linear)> {
        let head = LinearWeight::new(table.clone(), None)?.into_head();
        let table = self.load_tensor(table)?;
        Ok((table, self.load_linear(head)?))
    }

    /// Replays a captured graph for this batch shape and returns its logits, where a target has one.
    fn replay(&mut self, _step: &Self::Step) -> Result<Option<Self::Tensor>> {
        Ok(None)
    }

    /// A norm whose result feeds a linear: a quantising target also makes the int8 form here.
    fn norm_quant(
        &mut self,
        x: &Self::Tensor,
        norm: &Norm<Self::Tensor>,
        step: &Self::Step,
    ) -> Result<Self::Tensor> {
        self.norm(x, norm, step)
    }

    /// `residual ← residual + (x · Wᵀ + bias)`.
    fn linear_add(
        &mut self,
        residual: &mut Self::Tensor,
        x: &Self::Tensor,
        linear: &Self::Linear,
        step: &Self::Step,
    ) -> Result<()> {
        let y = self.linear(x, linear, step)?;
        self.add(residual, &y)
    }

    /// Rotates queries and keys where the layer has a rope, then stores keys and values.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is one named operand of the fused operation"
    )]
    fn rope_store_kv(
        &mut self,
        cache: &mut Self::KvCache,
        layer: usize,
        q: &mut Self::Tensor,
        k: &mut Self::Tensor,
        v: &Self::Tensor,
        rope: Option<&Rope<Self::Tensor>>,
        step: &Self::Step,
    ) -> Result<()> {
        if let Some(rope) = rope {
            self.rope(q, rope, step)?;
            self.rope(k, rope, step)?;
        }
        self.store_kv(cache, layer, k, v, step)
    }

    /// `activation(gate) ⊙ up` for `[gate | up]` of equal widths: `[num_tokens, 2·width] → width`.
    fn gated(
        &mut self,
        gate_up: Self::Tensor,
        width: usize,
        activation: Activation,
    ) -> Result<Self::Tensor> {
        let mut parts = self.split(gate_up, &[width, width])?.into_iter();
        let (Some(mut gate), Some(up)) = (parts.next(), parts.next()) else {
            return Err(BackendError::Shape(
                "split returned fewer parts than widths".into(),
            ));
        };
        self.activate(&mut gate, activation)?;
        self.mul(&mut gate, &up)?;
        Ok(gate)
    }
}
