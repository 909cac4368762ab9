//! The one decoder. A family is a value of these types; nothing here knows its name.

use backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, Experts, Ids, KvCacheSpec, Norm, Rope,
    Routing, SampleBatch, SampleOutput,
};

use crate::{ActiveWeights, CausalLm, ModelInfo};

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
    /// How a token learns where it stands.
    pub position: Position<B::Tensor>,
    /// In order of depth.
    pub layers: Vec<Layer<B>>,
    /// Euclidean norm of each layer's key biases, zero without: what the cache's types depend on.
    pub key_bias_norms: Vec<f32>,
    /// What a token is multiplied with.
    pub active_weights: ActiveWeights,
    /// Before the head.
    pub final_norm: Norm<B::Tensor>,
    /// `[vocab, hidden]`; made of the embedding where the checkpoint ties them, and one table with it where
    /// the target can (`Backend::load_tied`).
    pub head: B::Linear,
    /// `l ← cap · tanh(l / cap)` for every logit.
    pub logit_cap: Option<f32>,
}

/// Where positions enter.
pub(crate) enum Position<T> {
    /// A table `[positions, hidden]`; its row is added to the embedding.
    Learned(T),
    /// Rotation tables; a layer names its own by index.
    Rotary(Vec<Rope<T>>),
}

/// One transformer layer around the residual stream `x`, with
/// `a = post_attn(out(attend(qkv(pre_attn(x)))))` and `m(n) = post_mlp(mlp(n))`. A norm that is absent
/// is the identity.
pub(crate) struct Layer<B: Backend> {
    pub pre_attn: Option<Norm<B::Tensor>>,
    /// Queries, keys and values as rows of one matrix.
    pub qkv: B::Linear,
    /// Norms of queries and keys, before rotation.
    pub qk_norm: Option<QkNorm<B::Tensor>>,
    /// Index of the rotation table.
    pub rope: Option<usize>,
    pub attention: AttentionSpec,
    pub out: B::Linear,
    pub post_attn: Option<Norm<B::Tensor>>,
    pub residual: Residual<B::Tensor>,
    pub mlp: Mlp<B>,
    pub post_mlp: Option<Norm<B::Tensor>>,
}

/// What the feed-forward half reads, with the norm in front of it.
pub(crate) enum Residual<T> {
    /// `x ← x + a`, then `x ← x + m(norm(x))`.
    Sequential(Option<Norm<T>>),
    /// `x ← x + a + m(n)`, both halves reading the layer's input: `n` is its own norm of it, or the
    /// one that attention reads.
    Parallel(Option<Norm<T>>),
}

/// Norms over each head, or over the row, with weights as long as the row.
pub(crate) struct QkNorm<T> {
    pub q: Norm<T>,
    pub k: Norm<T>,
}

/// The feed-forward half of a layer.
pub(crate) enum Mlp<B: Backend> {
    /// `down(activation(gate(n)) ⊙ up(n))`.
    Gated {
        /// Gate, then up, as rows of one matrix `[2·width, hidden]`.
        gate_up: B::Linear,
        /// `[hidden, width]`.
        down: B::Linear,
        /// Features between.
        width: usize,
        activation: Activation,
    },
    /// A few of many gated networks, chosen per token.
    Routed {
        /// `[experts, hidden]`.
        router: B::Linear,
        routing: Routing,
        experts: Experts<B::Linear>,
    },
    /// `down(activation(up(n)))`.
    Plain {
        /// `[width, hidden]`.
        up: B::Linear,
        /// `[hidden, width]`.
        down: B::Linear,
        activation: Activation,
    },
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

    /// The target.
    pub fn backend(&self) -> &B {
        &self.backend
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
        let spec = &self.cache_spec;
        batch.validate(self.info.logit_width, spec.num_blocks, spec.num_host_blocks)?;
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
        let ropes = match &weights.position {
            Position::Rotary(ropes) => &ropes[..],
            Position::Learned(table) => {
                let places = backend.embed(table, Ids::Positions, &step)?;
                backend.add(&mut x, &places)?;
                &[]
            }
        };
        for (index, layer) in weights.layers.iter().enumerate() {
            let rope = layer.rope.map(|rope| &ropes[rope]);
            layer.forward(index, &mut x, rope, cache, backend, &step)?;
        }
        let x = backend.select(&x, &step)?;
        if batch.logit_rows.is_empty() {
            return Ok((x, step));
        }
        let x = backend.norm_quant(&x, &weights.final_norm, &step)?;
        let mut logits = backend.linear(&x, &weights.head, &step)?;
        if let Some(cap) = weights.logit_cap {
            backend.activate(&mut logits, Activation::SoftCap(cap))?;
        }
        Ok((logits, step))
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
        let n = match &self.pre_attn {
            Some(norm) => Some(backend.norm_quant(x, norm, step)?),
            None => None,
        };
        let qkv = backend.linear(n.as_ref().unwrap_or(x), &self.qkv, step)?;
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
        let n = match &self.residual {
            Residual::Sequential(norm) => {
                join(x, &attended, &self.out, &self.post_attn, backend, step)?;
                match norm {
                    Some(norm) => Some(backend.norm_quant(x, norm, step)?),
                    None => None,
                }
            }
            Residual::Parallel(norm) => {
                let n = match norm {
                    Some(norm) => Some(backend.norm_quant(x, norm, step)?),
                    None => n,
                };
                join(x, &attended, &self.out, &self.post_attn, backend, step)?;
                n
            }
        };
        self.mlp
            .forward(n.as_ref(), x, &self.post_mlp, backend, step)
    }
}

/// `x ← x + norm(branch · Wᵀ + bias)`: how a branch comes back to the residual stream.
fn join<B: Backend>(
    x: &mut B::Tensor,
    branch: &B::Tensor,
    linear: &B::Linear,
    norm: &Option<Norm<B::Tensor>>,
    backend: &mut B,
    step: &B::Step,
) -> Result<(), BackendError> {
    let Some(norm) = norm else {
        return backend.linear_add(x, branch, linear, step);
    };
    let branch = backend.linear(branch, linear, step)?;
    add(x, &branch, Some(norm), backend, step)
}

/// `x ← x + norm(branch)`.
fn add<B: Backend>(
    x: &mut B::Tensor,
    branch: &B::Tensor,
    norm: Option<&Norm<B::Tensor>>,
    backend: &mut B,
    step: &B::Step,
) -> Result<(), BackendError> {
    match norm {
        Some(norm) => {
            let branch = backend.norm(branch, norm, step)?;
            backend.add(x, &branch)
        }
        None => backend.add(x, branch),
    }
}

impl<B: Backend> Mlp<B> {
    /// Adds the feed-forward half to the residual stream, which it reads itself where there is no `n`.
    fn forward(
        &self,
        n: Option<&B::Tensor>,
        x: &mut B::Tensor,
        post: &Option<Norm<B::Tensor>>,
        backend: &mut B,
        step: &B::Step,
    ) -> Result<(), BackendError> {
        let input = n.unwrap_or(x);
        match self {
            Self::Gated {
                gate_up,
                down,
                width,
                activation,
            } => {
                let gate_up = backend.linear(input, gate_up, step)?;
                let hidden = backend.gated(gate_up, *width, *activation)?;
                join(x, &hidden, down, post, backend, step)
            }
            Self::Routed {
                router,
                routing,
                experts,
            } => {
                let logits = backend.linear(input, router, step)?;
                let weights = backend.route(logits, routing)?;
                let mixed = backend.mix_experts(input, &weights, experts, step)?;
                add(x, &mixed, post.as_ref(), backend, step)
            }
            Self::Plain {
                up,
                down,
                activation,
            } => {
                let mut hidden = backend.linear(input, up, step)?;
                backend.activate(&mut hidden, *activation)?;
                join(x, &hidden, down, post, backend, step)
            }
        }
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
