//! Whole steps of three models whose weights are random and made on the device: the time of decoding and of
//! reading a prompt, as shares of what no device could undercut. The layers are those of `model::Decoder`, with
//! its operations in its order.

use std::sync::Arc;
use std::time::Instant;

use backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, BatchSequence, HostTensor, Ids,
    KvCacheSpec, KvDtype, KvTypes, Norm, NormKind, Result, RowTask, SampleBatch, SampleRow,
    SamplingParams, WeightData,
};
use backend_cuda::device::Device;
use backend_cuda::{CudaBackend, CudaKvCache, CudaLinear, CudaTensor, Precision};

use super::clock::{Clock, share};
use super::inputs::numbers;
use super::time;

/// Sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Its name.
    pub name: &'static str,
    /// Features of a token.
    pub hidden: usize,
    /// Query heads, key/value heads, features of a head.
    pub heads: [usize; 3],
    /// Features between the projections.
    pub width: usize,
    /// Whether they are gated.
    pub gated: bool,
    /// Layers.
    pub layers: usize,
    /// Tokens it knows.
    pub vocab: usize,
}

/// The three models of the goals.
pub const MODELS: [Model; 3] = [
    Model {
        name: "Llama 3 8B",
        hidden: 4096,
        heads: [32, 8, 128],
        width: 14_336,
        gated: true,
        layers: 32,
        vocab: 128_256,
    },
    Model {
        name: "Qwen 2.5 7B",
        hidden: 3584,
        heads: [28, 4, 128],
        width: 18_944,
        gated: true,
        layers: 28,
        vocab: 152_064,
    },
    Model {
        name: "Pythia 12B",
        hidden: 5120,
        heads: [40, 40, 128],
        width: 20_480,
        gated: false,
        layers: 36,
        vocab: 50_688,
    },
];

impl Model {
    /// Outputs and inputs of a layer's products and of the head.
    pub fn products(&self) -> [[usize; 2]; 5] {
        let [heads, kv_heads, dim] = self.heads;
        let up = self.width * if self.gated { 2 } else { 1 };
        [
            [(heads + 2 * kv_heads) * dim, self.hidden],
            [self.hidden, heads * dim],
            [up, self.hidden],
            [self.hidden, self.width],
            [self.vocab, self.hidden],
        ]
    }
}

/// How much is measured.
pub struct Sizes {
    /// Sequences that decode together.
    pub batches: &'static [usize],
    /// Tokens before the first that is decoded.
    pub context: usize,
    /// Steps of each figure, after three that warm up, are captured and replayed.
    pub steps: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// How the memory is measured.
    pub memory: &'static time::Sizes,
}

impl Sizes {
    /// On a device.
    pub const REAL: Self = Self {
        batches: &[1, 8, 32, 64],
        context: 512,
        steps: 24,
        prompt: 2048,
        memory: &time::Sizes::REAL,
    };
}

struct Layer<D: Device> {
    norms: [Norm<CudaTensor<D>>; 2],
    qkv: CudaLinear<D>,
    out: CudaLinear<D>,
    up: CudaLinear<D>,
    down: CudaLinear<D>,
}

struct Loaded<D: Device> {
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
    weight_bytes: usize,
}

/// All models in 8 bits and in half precision; what does not fit says so.
pub fn steps<D: Device>(
    open: &dyn Fn() -> Result<D>,
    clock: &Clock,
    models: &[Model],
    sizes: &Sizes,
    say: &mut dyn FnMut(String),
) -> Result<()> {
    let mut target = CudaBackend::new(open()?, Precision::Int8);
    let read = time::bandwidth(&mut target, sizes.memory)?;
    say(format!(
        "memory: {:.0} GB/s by sums of two matrices",
        read * 1e-9
    ));
    drop(target);
    for model in models {
        for precision in [Precision::Int8, Precision::F16] {
            for &batch in sizes.batches {
                let what = format!("{} {}, {batch} sequences", model.name, precision.name());
                match decode(open()?, *model, precision, batch, (sizes, read)) {
                    Ok(line) => say(format!("{what}: {line}")),
                    Err(BackendError::OutOfMemory { .. }) => say(format!("{what}: does not fit")),
                    Err(error) => return Err(error),
                }
            }
            let what = format!(
                "{} {}, prompt of {}",
                model.name,
                precision.name(),
                sizes.prompt
            );
            match prefill(open()?, *model, precision, (sizes, clock)) {
                Ok(line) => say(format!("{what}: {line}")),
                Err(BackendError::OutOfMemory { .. }) => say(format!("{what}: does not fit")),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Seconds of a decode step: the median, and its share of what reading weights, keys and values takes.
fn decode<D: Device>(
    device: D,
    model: Model,
    precision: Precision,
    batch: usize,
    (sizes, read): (&Sizes, f64),
) -> Result<String> {
    let most = sizes.context + sizes.steps + 4;
    let mut loaded = Loaded::new(device, model, precision, batch, most)?;
    let mut times = Vec::new();
    for step in 0..sizes.steps + 3 {
        let began = Instant::now();
        loaded.step(&vec![(sizes.context + step, 1); batch], most)?;
        if step >= 3 {
            times.push(began.elapsed().as_secs_f64());
        }
    }
    times.sort_by(f64::total_cmp);
    let time = times[times.len() / 2];
    let [_, kv_heads, dim] = model.heads;
    let token = 2 * model.layers * kv_heads * KvDtype::Bf16.head_bytes(dim);
    let kv_bytes = batch * sizes.context * token;
    let floor = (loaded.weight_bytes + kv_bytes) as f64 / read;
    Ok(format!(
        "{:.2} ms a step, {:.1} tokens/s, the floor is {:.2} ms: {:.0} %",
        time * 1e3,
        batch as f64 / time,
        floor * 1e3,
        100.0 * floor / time
    ))
}

/// Seconds of a prompt: the best of three, and its share of the multiplications.
fn prefill<D: Device>(
    device: D,
    model: Model,
    precision: Precision,
    (sizes, clock): (&Sizes, &Clock),
) -> Result<String> {
    let mut loaded = Loaded::new(device, model, precision, 1, sizes.prompt)?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let began = Instant::now();
        loaded.step(&[(0, sizes.prompt)], sizes.prompt)?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    let [qkv, out, up, down, _] = model.products().map(|[n, k]| n * k);
    let rate = 2.0 * (sizes.prompt * model.layers * (qkv + out + up + down)) as f64 / best;
    let peak = match precision.is_int8() {
        true => share(loaded.target.device().properties(), clock, rate),
        false => "of half precision".to_owned(),
    };
    Ok(format!(
        "{:.1} ms, {:.0} tokens/s, {:.1} TOPS by its products, {peak}",
        best * 1e3,
        sizes.prompt as f64 / best,
        rate * 1e-12
    ))
}

impl<D: Device> Loaded<D> {
    fn new(
        device: D,
        model: Model,
        precision: Precision,
        sequences: usize,
        tokens: usize,
    ) -> Result<Self> {
        let mut target = CudaBackend::new(device, precision).with_graphs();
        let [heads, kv_heads, dim] = model.heads;
        let [qkv, out, up, down, head] = model.products();
        let (mut seed, mut weight_bytes) = (0, 0);
        let mut linear = |target: &CudaBackend<D>, shape| {
            seed += 1;
            let linear = CudaLinear::random(target.device(), precision, shape, seed)?;
            weight_bytes += linear.bytes();
            Ok::<_, BackendError>(linear)
        };
        let mut layers = Vec::with_capacity(model.layers);
        for _ in 0..model.layers {
            layers.push(Layer {
                norms: [
                    norm(&mut target, model.hidden)?,
                    norm(&mut target, model.hidden)?,
                ],
                qkv: linear(&target, qkv)?,
                out: linear(&target, out)?,
                up: linear(&target, up)?,
                down: linear(&target, down)?,
            });
        }
        let head = linear(&target, head)?;
        let table = WeightData::F32(numbers(9, 64 * model.hidden));
        let embed = target.load_tensor(HostTensor::new(64, model.hidden, table)?)?;
        let norm = norm(&mut target, model.hidden)?;
        let rope = WeightData::F32(numbers(10, tokens * dim));
        let rope = backend::Rope {
            head_dim: dim,
            rotary_dim: dim,
            table: target.load_tensor(HostTensor::new(tokens, dim, rope)?)?,
        };
        let cache = target.alloc_kv_cache(&KvCacheSpec {
            num_kv_heads: kv_heads,
            head_dim: dim,
            num_blocks: sequences * tokens.div_ceil(32),
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
            weight_bytes,
        })
    }

    /// One step of sequences that have so many tokens and get so many more, up to `most`.
    fn step(&mut self, sequences: &[(usize, usize)], most: usize) -> Result<()> {
        let batch = batch(sequences, most.div_ceil(32));
        let step = self.target.begin_step(&batch)?;
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
        self.target.sample(logits, &samples, step).map(drop)
    }

    fn logits(&mut self, step: &backend_cuda::CudaStep<D>) -> Result<CudaTensor<D>> {
        let [heads, kv_heads, dim] = self.model.heads;
        let target = &mut self.target;
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
            target.linear_add(&mut x, &attended, &layer.out, step)?;
            let n = target.norm_quant(&x, &layer.norms[1], step)?;
            let mut hidden = target.linear(&n, &layer.up, step)?;
            match self.model.gated {
                true => hidden = target.gated(hidden, self.model.width, Activation::Silu)?,
                false => target.activate(&mut hidden, Activation::Gelu)?,
            }
            target.linear_add(&mut x, &hidden, &layer.down, step)?;
        }
        let x = target.select(&x, step)?;
        let x = target.norm_quant(&x, &self.norm, step)?;
        target.linear(&x, &self.head, step)
    }
}

fn norm<D: Device>(target: &mut CudaBackend<D>, width: usize) -> Result<Norm<CudaTensor<D>>> {
    Ok(Norm {
        kind: NormKind::Rms,
        width,
        weight: target.load_tensor(HostTensor::vector(vec![1.0; width]))?,
        bias: None,
        eps: 1e-5,
    })
}

/// Sequences side by side, `blocks` each; the last token of each wants its logits.
fn batch(sequences: &[(usize, usize)], blocks: usize) -> Batch {
    let mut batch = Batch::default();
    for (index, &(computed, count)) in sequences.iter().enumerate() {
        batch
            .token_ids
            .extend((0..count).map(|i| ((computed + i + index) % 64) as u32));
        batch.logit_rows.push(batch.token_ids.len() - 1);
        batch.sequences.push(BatchSequence {
            num_tokens: count,
            num_computed_tokens: computed,
            block_table: (0..blocks)
                .map(|block| (index * blocks + block) as u32)
                .collect(),
        });
    }
    batch
}
