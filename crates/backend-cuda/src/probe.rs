//! What a device says when it is asked: known answers of every kernel that products and attention rest
//! on, and the time of the largest product in both forms.

use std::time::Instant;

use backend::{
    AttentionSpec, Backend, BackendError, Batch, BatchSequence, HostTensor, Int8Data, KvCacheSpec,
    KvDtype, KvTypes, LinearWeight, Norm, NormKind, ReferenceBackend, Result, WeightData,
};
use quant::{BLOCK, GROUP, Granularity, Quantised};

use crate::choice::{Findings, Timing};
use crate::device::Device;
use crate::tuning::{Way, fastest};
use crate::{CudaBackend, Precision};

/// Channels and features of the known products. 48 tokens by 128 channels by 256 features would do for one kernel:
/// every channel of the widest tile, and two groups of features. Here are a panel and half a group more, so that tails
/// of both are met too, and as many tokens as reach every kernel.
const SHAPE: [usize; 2] = [144, 320];
/// Tokens, and the kernel that each number of them reaches first, with wide groups and with blocks.
const INT8_KERNELS: [(usize, [&str; 2]); 5] = [
    (8, ["gemm_i8_stream_8"; 2]),
    (16, ["gemm_i8_stream_16"; 2]),
    (32, ["gemm_i8_tile_32x64", "gemm_i8_blocks_32x64"]),
    (48, ["gemm_i8_tile_64x64", "gemm_i8_blocks_64x64"]),
    (128, ["gemm_i8_tile_128x128", "gemm_i8_blocks_128x128"]),
];
/// The same of the kernels for warpgroups, which wide groups reach.
const WARPGROUP_KERNELS: [(usize, [&str; 2]); 2] = [
    (48, ["gemm_i8_wgmma_64x128"; 2]),
    (130, ["gemm_i8_wgmma_128x128"; 2]),
];
const F16_KERNELS: [(usize, &str); 2] = [(16, "gemm_16_tile_16x64"), (48, "gemm_16_tile_64x64")];
const W8A16_KERNELS: [(usize, &str); 2] =
    [(16, "gemm_w8a16_tile_16x64"), (48, "gemm_w8a16_tile_64x64")];
/// What shares a scale in activations and in weights, and the precision that gives such products.
const INT8_FORMS: [(Precision, Granularity, Granularity); 4] = {
    use Granularity::{Groups, Row};
    [
        (Precision::Int8, Groups(GROUP), Row),
        (Precision::Int8Fast, Row, Row),
        (Precision::Int8Guarded, Groups(GROUP), Groups(GROUP)),
        (Precision::Int8Blocks, Groups(BLOCK), Groups(BLOCK)),
    ]
};
/// Rounding of both operands to eleven bits, over sums of 320 products below one.
const F16_TOLERANCE: f32 = 0.05;
/// Rounding of weights to eight bits; a wrong lane makes sums that differ by several.
const W8A16_TOLERANCE: f32 = 0.15;
/// Orders of summation differ from the reference's.
const NORM_TOLERANCE: f32 = 1e-3;
/// Over 16-bit keys and values, queries and weights are in 16 bits too.
const ATTENTION_TOLERANCE: f32 = 2e-2;
/// Tokens of the two regimes.
const TIMED: [usize; 2] = [16, 512];

/// Asks a device everything but its memory's use. `largest` is the model's largest matrix, outputs and
/// inputs; without one nothing is timed. The device is handed back.
///
/// # Errors
/// When the device fails; wrong answers are findings.
pub fn ask<D: Device>(device: D, largest: Option<[usize; 2]>) -> Result<(Findings, D)> {
    let properties = device.properties().clone();
    let memory = device.memory()?;
    let start = Instant::now();
    let mut backend = CudaBackend::new(device, Precision::Int8).with_warpgroups(false);
    let mut int8_answers = Ok(());
    for (precision, x_by, w_by) in INT8_FORMS {
        backend.precision = precision;
        int8_answers = int8_answers.and(int8_products(&mut backend, (x_by, w_by), &INT8_KERNELS)?);
    }
    backend = backend.with_warpgroups(true);
    let warpgroups = match backend.products.warpgroups {
        true => Some(warpgroup_products(&mut backend)?),
        false => None,
    };
    backend.products.warpgroups = warpgroups == Some(Ok(()));
    let rows = rows(&mut backend)?;
    backend.precision = Precision::W8A16;
    let w8a16_answers =
        wide_products(&mut backend, W8A16_KERNELS, W8A16_TOLERANCE)?.and(rows.clone());
    backend.precision = Precision::F16;
    let f16_answers = wide_products(&mut backend, F16_KERNELS, F16_TOLERANCE)?.and(rows.clone());
    let answered_in = start.elapsed();
    let timings = match (largest, &int8_answers) {
        (Some(shape), Ok(())) => time(&mut backend, shape)?,
        _ => Vec::new(),
    };
    let findings = Findings {
        capability: properties.capability,
        // Attention and norms are the same kernels in all forms.
        int8_answers: int8_answers.and(rows),
        warpgroups,
        f16_answers,
        w8a16_answers,
        answered_in,
        timings,
        memory,
        needs: None,
    };
    Ok((findings, backend.device))
}

/// The kernel whose answer is wrong.
type Answer = std::result::Result<(), String>;

/// Numbers in [-1, 1) that every machine makes alike.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tokens(count: usize) -> Batch {
    Batch {
        token_ids: vec![0; count],
        sequences: vec![BatchSequence {
            num_tokens: count,
            num_computed_tokens: 0,
            block_table: (0..count.div_ceil(32) as u32).rev().collect(),
        }],
        logit_rows: Vec::new(),
        copies: Vec::new(),
    }
}

fn quantised(values: &[f32], rows: usize, columns: usize, by: Granularity) -> Result<Quantised> {
    Quantised::new(values, rows, columns, by)
        .map_err(|error| BackendError::Shape(error.to_string()))
}

/// Sums of products of 8-bit numbers are whole numbers: every bit must be the definition's.
fn int8_products<D: Device>(
    backend: &mut CudaBackend<D>,
    (x_by, w_by): (Granularity, Granularity),
    kernels: &[(usize, [&str; 2])],
) -> Result<Answer> {
    let [n, k] = SHAPE;
    let known = quantised(&numbers(2, n * k), n, k, w_by)?;
    // As a checkpoint stores them: the integers are taken as they are.
    let stored = WeightData::Int8(Int8Data {
        values: known.values().to_vec(),
        scales: known.scales().to_vec(),
        columns: k,
        group_len: w_by.group_len(k),
    });
    let linear = load(backend, stored, SHAPE)?;
    for &(m, kernels) in kernels {
        let x = numbers(1, m * k);
        let expected = quant::linear(&quantised(&x, m, k, x_by)?, &known, None)
            .map_err(|error| BackendError::Shape(error.to_string()))?;
        let found = product(backend, x, m, &linear)?;
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        if !found.iter().zip(&expected).all(same) {
            let of_blocks = usize::from(backend.precision == Precision::Int8Blocks);
            return Ok(Err(kernels[of_blocks].to_owned()));
        }
    }
    Ok(Ok(()))
}

/// The same of warpgroups, in the forms that they serve: all but blocks.
fn warpgroup_products<D: Device>(backend: &mut CudaBackend<D>) -> Result<Answer> {
    let mut answers = Ok(());
    for (precision, x_by, w_by) in INT8_FORMS.into_iter().take(3) {
        backend.precision = precision;
        answers = answers.and(int8_products(backend, (x_by, w_by), &WARPGROUP_KERNELS)?);
    }
    Ok(answers)
}

/// Products with 16-bit activations, within what rounding may do.
fn wide_products<D: Device>(
    backend: &mut CudaBackend<D>,
    kernels: [(usize, &str); 2],
    tolerance: f32,
) -> Result<Answer> {
    let [n, k] = SHAPE;
    let w = numbers(2, n * k);
    let linear = load(backend, WeightData::F32(w.clone()), SHAPE)?;
    for (m, kernel) in kernels {
        let x = numbers(1, m * k);
        let found = product(backend, x.clone(), m, &linear)?;
        let close = (0..m * n).all(|at| {
            let (x, w) = (&x[at / n * k..][..k], &w[at % n * k..][..k]);
            let expected: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            (found[at] - expected).abs() <= tolerance
        });
        if !close {
            return Ok(Err(kernel.to_owned()));
        }
    }
    Ok(Ok(()))
}

fn load<D: Device>(
    backend: &mut CudaBackend<D>,
    weights: WeightData,
    [n, k]: [usize; 2],
) -> Result<crate::CudaLinear<D>> {
    let weight = HostTensor::new(n, k, weights)?;
    backend.load_linear(LinearWeight::new(weight, None)?)
}

fn product<D: Device>(
    backend: &mut CudaBackend<D>,
    x: Vec<f32>,
    m: usize,
    linear: &crate::CudaLinear<D>,
) -> Result<Vec<f32>> {
    let step = backend.begin_step(&tokens(m))?;
    let x = backend.load_tensor(HostTensor::new(m, linear.inputs, WeightData::F32(x))?)?;
    backend.linear(&x, linear, &step)?.read(&backend.device)
}

/// A norm and attention against the reference target.
fn rows<D: Device>(backend: &mut CudaBackend<D>) -> Result<Answer> {
    let found = norm_and_attention(
        backend,
        &mut |backend: &mut CudaBackend<D>, x: &crate::CudaTensor<D>| x.read(&backend.device),
    )?;
    let expected = norm_and_attention(&mut ReferenceBackend, &mut |_, x| Ok(x.data.clone()))?;
    let tolerances = [NORM_TOLERANCE, ATTENTION_TOLERANCE];
    let pairs = found.into_iter().zip(expected).zip(tolerances);
    for (((kernel, found), (_, expected)), tolerance) in pairs {
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= tolerance;
        if !found.iter().zip(&expected).all(close) {
            return Ok(Err(kernel.to_owned()));
        }
    }
    Ok(Ok(()))
}

/// How a target's numbers come to the host.
type Read<'a, B> = &'a mut dyn FnMut(&mut B, &<B as Backend>::Tensor) -> Result<Vec<f32>>;

fn norm_and_attention<B: Backend>(
    backend: &mut B,
    read: Read<B>,
) -> Result<Vec<(&'static str, Vec<f32>)>> {
    let (total, heads, head_dim) = (70, 4, 32);
    let (q_width, kv_width) = (heads * head_dim, head_dim);
    let step = backend.begin_step(&tokens(total))?;
    let mut tensor = |seed, columns| {
        let data = WeightData::F32(numbers(seed, total * columns));
        backend.load_tensor(HostTensor::new(total, columns, data)?)
    };
    let (q, k, v) = (
        tensor(3, q_width)?,
        tensor(4, kv_width)?,
        tensor(5, kv_width)?,
    );
    let norm = Norm {
        kind: NormKind::Rms,
        width: q_width,
        weight: backend.load_tensor(HostTensor::vector(numbers(6, q_width)))?,
        bias: None,
        eps: 1e-5,
    };
    let normed = backend.norm(&q, &norm, &step)?;
    let mut cache = backend.alloc_kv_cache(&KvCacheSpec {
        num_kv_heads: 1,
        head_dim,
        num_blocks: 3,
        num_host_blocks: 0,
        layers: vec![KvTypes::both(KvDtype::Bf16)],
    })?;
    backend.store_kv(&mut cache, 0, &k, &v, &step)?;
    let spec = AttentionSpec {
        num_heads: heads,
        num_kv_heads: 1,
        head_dim,
        scale: 0.2,
        window: None,
        soft_cap: None,
    };
    let attended = backend.attention(&q, &cache, 0, &spec, &step)?;
    Ok(vec![
        ("norm_rows", read(backend, &normed)?),
        ("attention", read(backend, &attended)?),
    ])
}

/// The largest product in both forms, the 8-bit one in its fastest way; weights are zeros, which take as long as
/// any.
fn time<D: Device>(backend: &mut CudaBackend<D>, shape: [usize; 2]) -> Result<Vec<Timing>> {
    let zeros = || WeightData::F32(vec![0.0; shape[0] * shape[1]]);
    let mut times = |precision| {
        backend.precision = precision;
        let linear = load(backend, zeros(), shape)?;
        let (device, products) = (&backend.device, &mut backend.products);
        TIMED
            .iter()
            .map(|tokens| fastest(device, products, &linear, *tokens))
            .collect::<Result<Vec<_>>>()
    };
    let int8 = times(Precision::Int8)?;
    let f16 = times(Precision::F16)?;
    let pairs = TIMED.into_iter().zip(int8).zip(f16);
    let timing = |((tokens, (way, int8)), (_, f16)): ((_, (Option<Way>, _)), _)| Timing {
        tokens,
        kernel: way.map_or("", |way| way.kernel()),
        int8,
        f16,
    };
    Ok(pairs.map(timing).collect())
}
