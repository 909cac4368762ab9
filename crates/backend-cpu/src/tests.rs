//! The conformance suite on every level, and what holds across levels, threads and steps.

use std::num::NonZeroUsize;
use std::sync::Arc;

use ::backend::conformance::{TestBackend, Tolerances};
use ::backend::{
    Activation, AttentionSpec, Backend, Batch, BatchSequence, HostTensor, Ids, KvCacheSpec,
    KvDtype, KvTypes, LinearWeight, Norm, NormKind, Rope, SampleBatch, SampleOutput, SampleRow,
    SamplingParams, WeightData,
};
use half::bf16;

use super::*;

mod int8;
mod sampler;

impl TestBackend for CpuBackend {
    fn read(&mut self, x: &CpuTensor) -> Vec<f32> {
        x.elements().expect("activations are 32-bit").to_vec()
    }

    fn upload(&mut self, rows: usize, columns: usize, data: &[f32]) -> CpuTensor {
        let mut x = self.pool.tensor(rows, columns).expect("memory");
        x.elements_mut().expect("32 bits").copy_from_slice(data);
        x
    }
}

/// The target on the highest level up to `isa` that this machine has.
fn target(isa: Isa, precision: Precision, threads: usize) -> CpuBackend {
    let isa = Isa::supported().filter(|level| *level <= isa).last();
    CpuBackend::new(CpuConfig {
        threads: NonZeroUsize::new(threads),
        precision,
        isa,
    })
    .expect("the level is supported")
}

/// Over 16-bit keys and values, queries and weights are in 16 bits too.
const EXACT: Tolerances = Tolerances {
    attention_bf16: 1e-2,
    ..Tolerances::F32
};

/// Rounding to bfloat16 moves a number by at most 2⁻⁸ of itself, and both factors are rounded.
const ROUNDED: Tolerances = Tolerances {
    linear_f32: 8e-3,
    linear_bf16: 4e-3,
    linear_f16: 8e-3,
    ..EXACT
};

mod scalar {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Scalar, Precision::F32, 1), EXACT);
}

mod avx2 {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx2, Precision::F32, 2), EXACT);
}

mod avx512 {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx512, Precision::F32, 3), EXACT);
}

mod scalar_bf16 {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Scalar, Precision::Bf16, 3), ROUNDED);
}

mod avx2_bf16 {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx2, Precision::Bf16, 1), ROUNDED);
}

mod avx512_bf16 {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx512, Precision::Bf16, 2), ROUNDED);
}

mod avx512_bf16_instructions {
    use super::*;
    ::backend::conformance_suite!(target(Isa::Avx512Bf16, Precision::Bf16, 3), ROUNDED);
}

/// A decoder layer with an embedding and a head, wide enough that every operation is divided.
struct Layer {
    embedding: CpuTensor,
    norm: Norm<CpuTensor>,
    qkv: CpuLinear,
    out: CpuLinear,
    gate_up: CpuLinear,
    down: CpuLinear,
    head: CpuLinear,
    rope: Rope<CpuTensor>,
    cache: CpuKvCache,
}

const VOCAB: usize = 120;
const HIDDEN: usize = 320;
const INNER: usize = 520;
const SPEC: AttentionSpec = AttentionSpec {
    num_heads: 5,
    num_kv_heads: 1,
    head_dim: 64,
    scale: 0.125,
    window: None,
    soft_cap: None,
};

/// Numbers in `[-1, 1)` without a visible pattern.
fn numbers(seed: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| {
            let x = (i + 1)
                .wrapping_mul(2_654_435_761)
                .wrapping_add(seed * 40_503) as u32;
            (x ^ x >> 15).wrapping_mul(0x2c1b_3c6d) as f32 / 2f32.powi(31) - 1.0
        })
        .collect()
}

impl Layer {
    fn load(backend: &mut CpuBackend, dtype: KvDtype) -> Self {
        let mut linear = |seed, inputs: usize, outputs: usize| {
            let scale = (inputs as f32).powf(-0.5);
            let weight = numbers(seed, inputs * outputs);
            let weight = weight.into_iter().map(|w| w * scale).collect();
            let weight = HostTensor::new(outputs, inputs, WeightData::F32(weight));
            let bias = numbers(seed + 50, outputs);
            let weight = LinearWeight::new(weight.expect("a matrix"), Some(bias));
            backend
                .load_linear(weight.expect("a bias"))
                .expect("memory")
        };
        let qkv = linear(1, HIDDEN, 7 * 64);
        let out = linear(2, 5 * 64, HIDDEN);
        let gate_up = linear(3, HIDDEN, 2 * INNER);
        let down = linear(4, INNER, HIDDEN);
        let head = linear(5, HIDDEN, VOCAB);
        let embedding = numbers(6, VOCAB * HIDDEN);
        let embedding = embedding.into_iter().map(bf16::from_f32).collect();
        let mut table = |rows, columns, data| {
            let tensor = HostTensor::new(rows, columns, data).expect("a table");
            backend.load_tensor(tensor).expect("memory")
        };
        Self {
            embedding: table(VOCAB, HIDDEN, WeightData::Bf16(embedding)),
            norm: Norm {
                kind: NormKind::Rms,
                width: HIDDEN,
                weight: table(1, HIDDEN, WeightData::F32(numbers(7, HIDDEN))),
                bias: None,
                eps: 1e-6,
            },
            rope: Rope {
                head_dim: 64,
                rotary_dim: 64,
                table: table(200, 64, WeightData::F32(numbers(8, 200 * 64))),
            },
            cache: backend
                .alloc_kv_cache(&KvCacheSpec {
                    num_kv_heads: 1,
                    head_dim: 64,
                    num_blocks: 16,
                    num_host_blocks: 0,
                    layers: vec![KvTypes::both(dtype)],
                })
                .expect("memory"),
            qkv,
            out,
            gate_up,
            down,
            head,
        }
    }

    /// One step, ended by reading the logits or by sampling from them.
    fn logits(&mut self, b: &mut CpuBackend, batch: &Batch) -> (CpuTensor, CpuStep) {
        batch.validate(VOCAB, 16, 0).expect("a valid batch");
        let step = &b.begin_step(batch).expect("a step");
        let mut x = b.embed(&self.embedding, Ids::Tokens, step).expect("fits");
        let n = b.norm_quant(&x, &self.norm, step).expect("fits");
        let qkv = b.linear(&n, &self.qkv, step).expect("fits");
        let mut parts = b.split(qkv, &[5 * 64, 64, 64]).expect("fits").into_iter();
        let mut part = || parts.next().expect("three parts");
        let (mut q, mut k, v) = (part(), part(), part());
        let rope = Some(&self.rope);
        b.rope_store_kv(&mut self.cache, 0, &mut q, &mut k, &v, rope, step)
            .expect("fits");
        let a = b.attention(&q, &self.cache, 0, &SPEC, step).expect("fits");
        b.linear_add(&mut x, &a, &self.out, step).expect("fits");
        let n = b.norm_quant(&x, &self.norm, step).expect("fits");
        let gate_up = b.linear(&n, &self.gate_up, step).expect("fits");
        let inner = b.gated(gate_up, INNER, Activation::Silu).expect("fits");
        b.linear_add(&mut x, &inner, &self.down, step)
            .expect("fits");
        let x = b.select(&x, step).expect("fits");
        let step = b.begin_step(batch).expect("a step");
        (b.linear(&x, &self.head, &step).expect("fits"), step)
    }

    fn sample(&mut self, b: &mut CpuBackend, batch: &Batch) -> SampleOutput {
        let (logits, step) = self.logits(b, batch);
        let row = SampleRow {
            params: Arc::new(SamplingParams::default()),
            task: ::backend::RowTask::Draw,
            seed: 7,
            position: 3,
            counts: Vec::new(),
            banned: Arc::from([]),
        };
        let samples = SampleBatch {
            rows: vec![row; batch.logit_rows.len()],
            vocab_size: VOCAB,
        };
        b.sample(logits, &samples, step).expect("fits")
    }
}

/// Sequences as (computed, new, blocks).
fn batch(sequences: &[(usize, usize, &[u32])]) -> Batch {
    let num_tokens: usize = sequences.iter().map(|s| s.1).sum();
    let ends = sequences.iter().scan(0, |end, s| {
        *end += s.1;
        Some(*end - 1)
    });
    Batch {
        token_ids: (0..num_tokens).map(|i| (i * 37 % VOCAB) as u32).collect(),
        logit_rows: ends.collect(),
        copies: Vec::new(),
        sequences: sequences
            .iter()
            .map(|(computed, new, blocks)| BatchSequence {
                num_tokens: *new,
                num_computed_tokens: *computed,
                block_table: blocks.to_vec(),
            })
            .collect(),
    }
}

/// A prompt of 100 tokens beside another, then a decode step of both.
fn steps() -> [Batch; 2] {
    let (first, second): (&[u32], &[u32]) = (&[3, 1, 4, 11], &[9, 2]);
    [
        batch(&[(0, 100, first), (0, 33, second)]),
        batch(&[(100, 1, first), (33, 1, second)]),
    ]
}

fn bits(isa: Isa, precision: Precision, dtype: KvDtype, threads: usize) -> Vec<u32> {
    let mut backend = target(isa, precision, threads);
    let mut layer = Layer::load(&mut backend, dtype);
    let mut all = Vec::new();
    for batch in steps() {
        let (logits, _) = layer.logits(&mut backend, &batch);
        all.extend(backend.read(&logits).iter().map(|x| x.to_bits()));
    }
    assert!(all.iter().all(|x| f32::from_bits(*x).is_finite()));
    all
}

#[test]
fn threads_and_levels_do_not_change_bits() {
    for (precision, dtype) in [
        (Precision::F32, KvDtype::F32),
        (Precision::Bf16, KvDtype::Bf16),
        (Precision::Int8, KvDtype::F32),
        (Precision::Int8Fast, KvDtype::Bf16),
        (Precision::Int8Blocks, KvDtype::Int8),
    ] {
        let expected = bits(Isa::Scalar, precision, dtype, 1);
        for isa in Isa::supported() {
            for threads in [1, 2, 3] {
                let found = bits(isa, precision, dtype, threads);
                assert_eq!(found, expected, "{isa}, {precision}, {threads} threads");
            }
        }
    }
}

/// A bfloat16 checkpoint is not widened in memory, and gives the bits that its widened form gives.
#[test]
fn bfloat16_weights_stay_narrow_and_exact() {
    let weight: Vec<bf16> = numbers(1, 50 * 70)
        .into_iter()
        .map(bf16::from_f32)
        .collect();
    let wide = WeightData::F32(weight.iter().map(|w| w.to_f32()).collect());
    let mut backend = target(Isa::Avx512, Precision::F32, 1);
    let step = backend.begin_step(&batch(&[(0, 3, &[0])])).expect("a step");
    let x = backend.upload(3, 70, &numbers(2, 3 * 70));
    let mut run = |data| {
        let weight = HostTensor::new(50, 70, data).expect("a matrix");
        let weight = LinearWeight::new(weight, None).expect("no bias");
        let linear = backend.load_linear(weight).expect("memory");
        let y = backend.linear(&x, &linear, &step).expect("fits");
        (linear.bytes(), backend.read(&y))
    };
    let (narrow_bytes, narrow) = run(WeightData::Bf16(weight));
    let (wide_bytes, wide) = run(wide);
    assert_eq!(2 * narrow_bytes, wide_bytes);
    assert_eq!(narrow, wide);
}

#[test]
fn steps_of_one_shape_allocate_no_activations() {
    for precision in [Precision::F32, Precision::Int8, Precision::Int8Fast] {
        same_memory_again(target(Isa::Avx512, precision, 2));
    }
}

fn same_memory_again(mut backend: CpuBackend) {
    let mut layer = Layer::load(&mut backend, KvDtype::F32);
    let run = |backend: &mut CpuBackend, layer: &mut Layer| {
        for batch in steps() {
            layer.sample(backend, &batch);
        }
        backend.pool.num_allocations()
    };
    let first = run(&mut backend, &mut layer);
    assert!(first > 0);
    assert_eq!(run(&mut backend, &mut layer), first);
}

#[test]
fn samples_do_not_depend_on_threads() {
    let run = |threads| {
        let mut backend = target(Isa::Avx512, Precision::F32, threads);
        let mut layer = Layer::load(&mut backend, KvDtype::F32);
        steps().map(|batch| layer.sample(&mut backend, &batch))
    };
    let expected = run(1);
    assert_eq!(expected[0].rows.len(), 2);
    assert_eq!(run(3), expected);
}

#[test]
fn what_cannot_run_is_refused() {
    let mut backend = target(Isa::Avx512, Precision::F32, 1);
    let mut spec = KvCacheSpec {
        num_kv_heads: 4,
        head_dim: 512,
        num_blocks: 4,
        num_host_blocks: 0,
        layers: vec![KvTypes::both(KvDtype::F32); 2],
    };
    let refused = backend.alloc_kv_cache(&spec).expect_err("heads too wide");
    assert!(matches!(refused, BackendError::Unsupported(_)), "{refused}");
    spec.head_dim = 64;
    spec.layers[1].keys = KvDtype::Int8;
    let refused = backend.alloc_kv_cache(&spec).expect_err("a pair of types");
    assert!(matches!(refused, BackendError::Unsupported(_)), "{refused}");
    spec.layers[1].keys = KvDtype::F32;
    spec.num_blocks = usize::MAX / 1024;
    let refused = backend.alloc_kv_cache(&spec).expect_err("too many blocks");
    assert!(
        matches!(refused, BackendError::OutOfMemory { .. }),
        "{refused}"
    );
}

#[test]
fn the_description_names_what_runs() {
    let description = CpuDescription::of(&CpuConfig {
        threads: NonZeroUsize::new(2),
        isa: Some(Isa::Scalar),
        ..CpuConfig::default()
    });
    let text = description.expect("every machine has it").to_string();
    assert!(
        text.contains("2 threads, scalar kernels, scalar for 8 bits"),
        "{text}"
    );
    assert_eq!(
        text.contains("forced"),
        Isa::detect() != Isa::Scalar,
        "{text}"
    );
}
