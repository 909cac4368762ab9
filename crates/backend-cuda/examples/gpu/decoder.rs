//! Models whose weights are random and made on the device. The layers are those of `model::Decoder`, with its
//! operations in its order.

use std::sync::Arc;

use backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, BatchSequence, HostTensor, Ids,
    KvCacheSpec, KvDtype, KvTypes, Norm, NormKind, Result, RowTask, SampleBatch, SampleOutput,
    SampleRow, SamplingParams, WeightData,
};
use backend_cuda::device::Device;
use backend_cuda::{CudaBackend, CudaKvCache, CudaLinear, CudaStep, CudaTensor, Precision};

use super::inputs::numbers;

/// What the layers of a model are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layers {
    /// RMS norms and a gated network after attention.
    Llama,
    /// The same, with biases on queries, keys and values.
    Qwen2,
    /// Layer norms, a plain network beside attention, biases everywhere, a quarter of each head rotated.
    GptNeox,
}

/// Sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// What its layers are made of.
    pub kind: Layers,
    /// Features of a token.
    pub hidden: usize,
    /// Query heads, key/value heads, features of a head.
    pub heads: [usize; 3],
    /// Features between the projections of the network.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Tokens it knows.
    pub vocab: usize,
}

/// The three models of the goals.
pub const MODELS: [Model; 3] = [
    Model {
        name: "Llama 3 8B",
        kind: Layers::Llama,
        hidden: 4096,
        heads: [32, 8, 128],
        width: 14_336,
        layers: 32,
        vocab: 128_256,
    },
    Model {
        name: "Qwen 2.5 7B",
        kind: Layers::Qwen2,
        hidden: 3584,
        heads: [28, 4, 128],
        width: 18_944,
        layers: 28,
        vocab: 152_064,
    },
    Model {
        name: "Pythia 12B",
        kind: Layers::GptNeox,
        hidden: 5120,
        heads: [40, 40, 128],
        width: 20_480,
        layers: 36,
        vocab: 50_688,
    },
];

impl Model {
    /// Outputs and inputs of a layer's products and of the head.
    pub fn products(&self) -> [[usize; 2]; 5] {
        let [heads, kv_heads, dim] = self.heads;
        let up = self.width * if self.is_neox() { 1 } else { 2 };
        [
            [(heads + 2 * kv_heads) * dim, self.hidden],
            [self.hidden, heads * dim],
            [up, self.hidden],
            [self.hidden, self.width],
            [self.vocab, self.hidden],
        ]
    }

    fn is_neox(&self) -> bool {
        self.kind == Layers::GptNeox
    }

    fn rotary_dim(&self) -> usize {
        self.heads[2] / if self.is_neox() { 4 } else { 1 }
    }
}

struct Layer<D: Device> {
    norms: [Norm<CudaTensor<D>>; 2],
    qkv: CudaLinear<D>,
    out: CudaLinear<D>,
    up: CudaLinear<D>,
    down: CudaLinear<D>,
}

/// A model on a device.
pub struct Decoder<D: Device> {
    target: CudaBackend<D>,
    model: Model,
    embed: CudaTensor<D>,
    layers: Vec<Layer<D>>,
    norm: Norm<CudaTensor<D>>,
    head: CudaLinear<D>,
    cache: CudaKvCache<D>,
    rope: backend::Rope<CudaTensor<D>>,
    spec: AttentionSpec,
    /// Bytes that every step reads.
    pub weight_bytes: usize,
}

/// Makes matrices that differ, and counts their bytes.
struct Maker {
    precision: Precision,
    seed: u32,
    bytes: usize,
}

impl Maker {
    fn linear<D: Device>(
        &mut self,
        target: &CudaBackend<D>,
        shape: [usize; 2],
        has_bias: bool,
    ) -> Result<CudaLinear<D>> {
        self.seed += 1;
        let linear = CudaLinear::random(target.device(), self.precision, shape, self.seed)?;
        self.bytes += linear.bytes();
        match has_bias {
            true => linear.with_bias(target.device(), &numbers(self.seed, shape[0])),
            false => Ok(linear),
        }
    }
}

impl<D: Device> Decoder<D> {
    /// A model for so many tokens a sequence, with a cache of so many blocks.
    pub fn new(
        mut target: CudaBackend<D>,
        (model, precision): (Model, Precision),
        tokens: usize,
        num_blocks: usize,
    ) -> Result<Self> {
        let [heads, kv_heads, dim] = model.heads;
        let [qkv, out, up, down, head] = model.products();
        let mut maker = Maker {
            precision,
            seed: 0,
            bytes: 0,
        };
        let (is_neox, is_llama) = (model.is_neox(), model.kind == Layers::Llama);
        let mut layers = Vec::with_capacity(model.layers);
        for _ in 0..model.layers {
            layers.push(Layer {
                norms: [norm(&mut target, &model)?, norm(&mut target, &model)?],
                qkv: maker.linear(&target, qkv, !is_llama)?,
                out: maker.linear(&target, out, is_neox)?,
                up: maker.linear(&target, up, is_neox)?,
                down: maker.linear(&target, down, is_neox)?,
            });
        }
        let head = maker.linear(&target, head, false)?;
        let table = WeightData::F32(numbers(9, 64 * model.hidden));
        let embed = target.load_tensor(HostTensor::new(64, model.hidden, table)?)?;
        let norm = norm(&mut target, &model)?;
        let rotary_dim = model.rotary_dim();
        let rope = WeightData::F32(numbers(10, tokens * rotary_dim));
        let rope = backend::Rope {
            head_dim: dim,
            rotary_dim,
            table: target.load_tensor(HostTensor::new(tokens, rotary_dim, rope)?)?,
        };
        let cache = target.alloc_kv_cache(&KvCacheSpec {
            num_kv_heads: kv_heads,
            head_dim: dim,
            num_blocks,
            num_host_blocks: 0,
            layers: vec![KvTypes::both(KvDtype::Bf16); model.layers],
        })?;
        let spec = AttentionSpec {
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: dim,
            scale: 1.0 / (dim as f32).sqrt(),
            window: None,
            soft_cap: None,
        };
        Ok(Self {
            target,
            model,
            embed,
            layers,
            norm,
            head,
            cache,
            rope,
            spec,
            weight_bytes: maker.bytes,
        })
    }

    /// What it runs on.
    pub fn device(&self) -> &D {
        self.target.device()
    }

    /// One step, and the likeliest token of each row whose logits are wanted, with its log-probability.
    pub fn step(&mut self, batch: &Batch) -> Result<SampleOutput> {
        let step = self.target.begin_step(batch)?;
        let logits = match self.target.replay(&step)? {
            Some(logits) => logits,
            None => self.logits(&step)?,
        };
        let params = Arc::new(SamplingParams::greedy());
        let row = |position| SampleRow {
            params: Arc::clone(&params),
            task: RowTask::Draw,
            seed: 0,
            position,
            counts: Vec::new(),
            banned: Arc::from([]),
        };
        let samples = SampleBatch {
            rows: (0..batch.logit_rows.len() as u32).map(row).collect(),
            vocab_size: self.model.vocab,
        };
        self.target.sample(logits, &samples, step)
    }

    fn logits(&mut self, step: &CudaStep<D>) -> Result<CudaTensor<D>> {
        let [heads, kv_heads, dim] = self.model.heads;
        let (model, target) = (&self.model, &mut self.target);
        let mut x = target.embed(&self.embed, Ids::Tokens, step)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let n = target.norm_quant(&x, &layer.norms[0], step)?;
            let qkv = target.linear(&n, &layer.qkv, step)?;
            let parts = target.split(qkv, &[heads * dim, kv_heads * dim, kv_heads * dim])?;
            let Ok([mut q, mut k, v]) = <[CudaTensor<D>; 3]>::try_from(parts) else {
                return Err(BackendError::Shape("three parts".into()));
            };
            let rope = Some(&self.rope);
            target.rope_store_kv(&mut self.cache, index, &mut q, &mut k, &v, rope, step)?;
            let attended = target.attention(&q, &self.cache, index, &self.spec, step)?;
            // The network reads the layer's input where it stands beside attention.
            let beside = match model.is_neox() {
                true => Some(target.norm_quant(&x, &layer.norms[1], step)?),
                false => None,
            };
            target.linear_add(&mut x, &attended, &layer.out, step)?;
            let n = match beside {
                Some(n) => n,
                None => target.norm_quant(&x, &layer.norms[1], step)?,
            };
            let mut hidden = target.linear(&n, &layer.up, step)?;
            match model.is_neox() {
                true => target.activate(&mut hidden, Activation::Gelu)?,
                false => hidden = target.gated(hidden, model.width, Activation::Silu)?,
            }
            target.linear_add(&mut x, &hidden, &layer.down, step)?;
        }
        let x = target.select(&x, step)?;
        let x = target.norm_quant(&x, &self.norm, step)?;
        target.linear(&x, &self.head, step)
    }
}

fn norm<D: Device>(target: &mut CudaBackend<D>, model: &Model) -> Result<Norm<CudaTensor<D>>> {
    let width = model.hidden;
    let bias = match model.is_neox() {
        true => Some(target.load_tensor(HostTensor::vector(numbers(11, width)))?),
        false => None,
    };
    Ok(Norm {
        kind: match bias {
            Some(_) => NormKind::Layer,
            None => NormKind::Rms,
        },
        width,
        weight: target.load_tensor(HostTensor::vector(vec![1.0; width]))?,
        bias,
        eps: 1e-5,
    })
}

/// A sequence's part of a batch.
#[derive(Debug, Clone)]
pub struct Part {
    /// Tokens it has.
    pub computed: usize,
    /// Tokens it gets.
    pub count: usize,
    /// Where they lie.
    pub blocks: Vec<u32>,
}

/// Sequences side by side; the last token of each wants its logits.
pub fn batch(parts: Vec<Part>) -> Batch {
    let mut batch = Batch::default();
    for (index, part) in parts.into_iter().enumerate() {
        let ids = (0..part.count).map(|i| ((part.computed + i + index) % 64) as u32);
        batch.token_ids.extend(ids);
        batch.logit_rows.push(batch.token_ids.len() - 1);
        batch.sequences.push(BatchSequence {
            num_tokens: part.count,
            num_computed_tokens: part.computed,
            block_table: part.blocks,
        });
    }
    batch
}
