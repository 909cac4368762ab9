//! The one decoder. A family is a value of these types; nothing here knows its name.

use backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, Ids, KvCacheSpec, Norm, Rope,
    SampleBatch, SampleOutput,
};

use crate::{CausalLm, ModelInfo};

/// A transformer decoder on one target, with its cache.
pub struct Decoder<B: Backend> {
    backend: B,
    info: ModelInfo,
    weights: Weights<B>,
    cache: Option<B::KvCache>,
    cache_spec: KvCacheSpec,
}

/// Everything that is loaded once.
pub(crate) struct Weights<B: Backend> {
    /// Token embedding `[vocab, hidden]`.
    pub embed: B::Tensor,
    /// Rotation tables; a layer names its own by index.
    pub ropes: Vec<Rope<B::Tensor>>,
    /// In order of depth.
    pub layers: Vec<Layer<B>>,
    /// Before the head.
    pub final_norm: Norm<B::Tensor>,
    /// `[vocab, hidden]`; a copy of the embedding where the checkpoint ties them.
    pub head: B::Linear,
}

/// One transformer layer: `x ← x + out(attend(qkv(pre_attn(x))))`, then
/// `x ← x + down(act(gate(n)) ⊙ up(n))` with `n = pre_mlp(x)`.
pub(crate) struct Layer<B: Backend> {
    pub pre_attn: Norm<B::Tensor>,
    /// Queries, keys and values as rows of one matrix.
    pub qkv: B::Linear,
    /// Norms of queries and keys, before rotation.
    pub qk_norm: Option<QkNorm<B::Tensor>>,
    /// Index of the rotation table.
    pub rope: Option<usize>,
    pub attention: AttentionSpec,
    pub out: B::Linear,
    pub pre_mlp: Norm<B::Tensor>,
    pub mlp: Mlp<B>,
}

/// Norms over each head, with weights as long as the row.
pub(crate) struct QkNorm<T> {
    pub q: Norm<T>,
    pub k: Norm<T>,
}

/// The feed-forward half of a layer.
pub(crate) struct Mlp<B: Backend> {
    /// Gate, then up, as rows of one matrix `[2·width, hidden]`.
    pub gate_up: B::Linear,
    /// `[hidden, width]`.
    pub down: B::Linear,
    /// Features between.
    pub width: usize,
    pub activation: Activation,
}

impl<B: Backend> Decoder<B> {
    /// Puts loaded parts together and allocates the cache.
    pub(crate) fn new(
        mut backend: B,
        info: ModelInfo,
        weights: Weights<B>,
        cache_spec: KvCacheSpec,
    ) -> Result<Self, BackendError> {
        let cache = Some(backend.alloc_kv_cache(&cache_spec)?);
        Ok(Self {
            backend,
            info,
            weights,
            cache,
            cache_spec,
        })
    }

    /// The cache as the target was asked for it.
    pub fn cache_spec(&self) -> &KvCacheSpec {
        &self.cache_spec
    }

    /// The logits of [`Batch::logit_rows`], `[rows, vocab]`, and the step they belong to. A step that
    /// asks for no logits, a prompt's inner chunk, does without the head and returns no rows.
    ///
    /// # Errors
    /// An invalid batch, or whatever the target reports.
    pub fn logits(&mut self, batch: &Batch) -> Result<(B::Tensor, B::Step), BackendError> {
        batch.validate(self.info.logit_width, self.cache_spec.num_blocks)?;
        let Self {
            backend,
            weights,
            cache,
            ..
        } = self;
        let cache = cache
            .as_mut()
            .ok_or_else(|| BackendError::Device("the cache is gone".into()))?;
        let step = backend.begin_step(batch)?;
        backend.copy_blocks(cache, &batch.copies)?;
        if let Some(logits) = backend.replay(&step)? {
            return Ok((logits, step));
        }
        let mut x = backend.embed(&weights.embed, Ids::Tokens, &step)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            let rope = layer.rope.map(|rope| &weights.ropes[rope]);
            layer.forward(index, &mut x, rope, cache, backend, &step)?;
        }
        let x = backend.select(&x, &step)?;
        if batch.logit_rows.is_empty() {
            return Ok((x, step));
        }
        let x = backend.norm_quant(&x, &weights.final_norm, &step)?;
        Ok((backend.linear(&x, &weights.head, &step)?, step))
    }
}

impl<B: Backend> Layer<B> {
    fn forward(
        &self,
        index: usize,
        x: &mut B::Tensor,
        rope: Option<&Rope<B::Tensor>>,
        cache: &mut B::KvCache,
        backend: &mut B,
        step: &B::Step,
    ) -> Result<(), BackendError> {
        let spec = &self.attention;
        let (q_width, kv_width) = (
            spec.num_heads * spec.head_dim,
            spec.num_kv_heads * spec.head_dim,
        );
        let n = backend.norm_quant(x, &self.pre_attn, step)?;
        let qkv = backend.linear(&n, &self.qkv, step)?;
        let parts = backend.split(qkv, &[q_width, kv_width, kv_width])?;
        let [mut q, mut k, v] = <[B::Tensor; 3]>::try_from(parts).map_err(|parts| {
            BackendError::Shape(format!("split gave {} parts of 3", parts.len()))
        })?;
        if let Some(norms) = &self.qk_norm {
            q = backend.norm(&q, &norms.q, step)?;
            k = backend.norm(&k, &norms.k, step)?;
        }
        backend.rope_store_kv(cache, index, &mut q, &mut k, &v, rope, step)?;
        let attended = backend.attention(&q, cache, index, spec, step)?;
        backend.linear_add(x, &attended, &self.out, step)?;

        let n = backend.norm_quant(x, &self.pre_mlp, step)?;
        let gate_up = backend.linear(&n, &self.mlp.gate_up, step)?;
        let hidden = backend.gated(gate_up, self.mlp.width, self.mlp.activation)?;
        backend.linear_add(x, &hidden, &self.mlp.down, step)
    }
}

impl<B: Backend> CausalLm for Decoder<B> {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn forward(
        &mut self,
        batch: &Batch,
        samples: &SampleBatch,
    ) -> Result<SampleOutput, BackendError> {
        let (logits, step) = self.logits(batch)?;
        self.backend.sample(logits, samples, step)
    }

    fn reset(&mut self) -> Result<(), BackendError> {
        self.cache = None;
        self.cache = Some(self.backend.alloc_kv_cache(&self.cache_spec)?);
        Ok(())
    }
}
