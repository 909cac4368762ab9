//! The time of each kernel: products as a share of what reading their weights takes and of what the tensor
//! cores can do at the clock that was seen, norms, and attention.

use std::time::Instant;

use backend::{Backend, HostTensor, KvCacheSpec, KvDtype, KvTypes, Norm, NormKind, Result};
use backend_cuda::device::Device;
use backend_cuda::{CudaBackend, CudaLinear, CudaTensor, Precision};

use super::check::SPEC;
use super::clock::{Clock, share};
use super::decoder::MODELS;
use super::inputs::{numbers, tensor, tokens};

/// How much is measured.
pub struct Sizes {
    /// Tokens of a step.
    pub tokens: &'static [usize],
    /// Matrices, outputs and inputs; those of the three models if none.
    pub matrices: Option<&'static [[usize; 2]]>,
    /// Bytes of weights that are used in turn: more than any second cache.
    pub rotated: usize,
    /// Seconds that each figure is measured for, after as long again to warm up.
    pub seconds: f64,
    /// Keys and queries of attention.
    pub attention: &'static [[usize; 2]],
    /// Rows and columns of the sums that the memory is measured by.
    pub memory: [usize; 2],
}

impl Sizes {
    /// On a device.
    pub const REAL: Self = Self {
        tokens: &[1, 8, 16, 32, 128, 512, 2048],
        matrices: None,
        rotated: 400 << 20,
        seconds: 0.06,
        attention: &[[1024, 1], [8192, 1], [2048, 512]],
        memory: [4096, 16_384],
    };
}

/// Calls of one graph.
const CALLS: usize = 32;

/// Seconds of one call, the median of repetitions of a graph: launches cost nothing then.
pub fn seconds<D: Device>(
    target: &mut CudaBackend<D>,
    limit: f64,
    mut call: impl FnMut(&mut CudaBackend<D>, usize) -> Result<()>,
) -> Result<f64> {
    // Kernels are loaded and memory is there before anything is captured.
    call(target, 0)?;
    target.device().synchronize()?;
    target.device().begin_capture()?;
    let calls = (0..CALLS).try_for_each(|turn| call(target, turn));
    let graph = target.device().end_capture()?;
    calls?;
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed().as_secs_f64() < 2.0 * limit || times.len() < 3 {
        let began = Instant::now();
        target.device().replay(&graph)?;
        target.device().synchronize()?;
        if start.elapsed().as_secs_f64() > limit || limit == 0.0 {
            times.push(began.elapsed().as_secs_f64() / CALLS as f64);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Bytes per second of sums of two matrices: two reads and a write.
pub fn bandwidth<D: Device>(target: &mut CudaBackend<D>, sizes: &Sizes) -> Result<f64> {
    let [rows, columns] = sizes.memory;
    let mut x = tensor(target, rows, columns, 1)?;
    let y = tensor(target, rows, columns, 2)?;
    let time = seconds(target, sizes.seconds, |target, _| target.add(&mut x, &y))?;
    Ok(3.0 * 4.0 * (rows * columns) as f64 / time)
}

/// Tokens, outputs and inputs of a product, and its seconds.
pub type Timed = ([usize; 3], f64);

/// Every figure; those of 8-bit products are returned too.
pub fn time<D: Device>(
    device: D,
    clock: &Clock,
    sizes: &Sizes,
    say: &mut dyn FnMut(String),
) -> Result<Vec<Timed>> {
    let mut target = CudaBackend::new(device, Precision::Int8);
    say(format!("{:?}", target.device().properties()));
    let read = bandwidth(&mut target, sizes)?;
    say(format!(
        "memory: {:.0} GB/s by sums of two matrices",
        read * 1e-9
    ));
    let mut matrices: Vec<[usize; 2]> = match sizes.matrices {
        Some(matrices) => matrices.to_vec(),
        None => MODELS.iter().flat_map(|model| model.products()).collect(),
    };
    matrices.sort_unstable();
    matrices.dedup();
    let mut int8 = Vec::new();
    for precision in [Precision::Int8, Precision::Int8Blocks, Precision::F16] {
        target = target.with_precision(precision);
        for &matrix in &matrices {
            let times = time_products(&mut target, precision, matrix, (read, clock, sizes), say)?;
            if precision == Precision::Int8 {
                int8.extend(times);
            }
        }
    }
    target = target.with_precision(Precision::Int8);
    if target.device().properties().warpgroups {
        // What the other tiles take of the same products.
        say("without products of warpgroups:".to_owned());
        target = target.with_warpgroups(false);
        for &matrix in &matrices {
            let sizes = (read, clock, sizes);
            time_products(&mut target, Precision::Int8, matrix, sizes, say)?;
        }
        target = target.with_warpgroups(true);
    }
    time_rows(&mut target, sizes, read, say)?;
    Ok(int8)
}

fn time_products<D: Device>(
    target: &mut CudaBackend<D>,
    precision: Precision,
    [n, k]: [usize; 2],
    (read, clock, sizes): (f64, &Clock, &Sizes),
    say: &mut dyn FnMut(String),
) -> Result<Vec<Timed>> {
    let mut times = Vec::new();
    let copies = sizes.rotated.div_ceil(n * k).min(32);
    let linears = (0..copies as u32)
        .map(|seed| CudaLinear::random(target.device(), precision, [n, k], seed))
        .collect::<Result<Vec<_>>>()?;
    let bytes = linears[0].bytes() as f64;
    for &m in sizes.tokens {
        let step = target.begin_step(&tokens(0, m))?;
        let x = tensor(target, m, k, 1)?;
        let time = seconds(target, sizes.seconds, |target, turn| {
            target.linear(&x, &linears[turn % copies], &step).map(drop)
        })?;
        times.push(([m, n, k], time));
        let rate = 2.0 * (m * n * k) as f64 / time;
        let peak = share(target.device().properties(), clock, precision, rate);
        say(format!(
            "{} product [{m}, {n}, {k}]: {:.1} us, {:.0} GB/s ({:.0} % of the memory's), {:.1} TOPS, {peak}",
            precision.name(),
            time * 1e6,
            bytes / time * 1e-9,
            100.0 * bytes / time / read,
            rate * 1e-12
        ));
    }
    Ok(times)
}

/// Norms and attention.
fn time_rows<D: Device>(
    target: &mut CudaBackend<D>,
    sizes: &Sizes,
    read: f64,
    say: &mut dyn FnMut(String),
) -> Result<()> {
    for &m in sizes.tokens {
        let x = tensor(target, m, 4096, 1)?;
        let norm = Norm {
            kind: NormKind::Rms,
            width: 4096,
            weight: target.load_tensor(HostTensor::vector(numbers(2, 4096)))?,
            bias: None,
            eps: 1e-5,
        };
        let step = target.begin_step(&tokens(0, m))?;
        let time = seconds(target, sizes.seconds, |target, _| {
            target.norm_quant(&x, &norm, &step).map(drop)
        })?;
        say(format!(
            "norm and 8-bit form of [{m}, 4096]: {:.1} us",
            time * 1e6
        ));
    }
    for dtype in [KvDtype::Bf16, KvDtype::Int8] {
        for &lengths in sizes.attention {
            time_attention(target, dtype, lengths, (sizes, read), say)?;
        }
    }
    Ok(())
}

fn time_attention<D: Device>(
    target: &mut CudaBackend<D>,
    dtype: KvDtype,
    [total, queries]: [usize; 2],
    (sizes, read): (&Sizes, f64),
    say: &mut dyn FnMut(String),
) -> Result<()> {
    let cache = target.alloc_kv_cache(&KvCacheSpec {
        num_kv_heads: SPEC.num_kv_heads,
        head_dim: SPEC.head_dim,
        num_blocks: total.div_ceil(32),
        num_host_blocks: 0,
        layers: vec![KvTypes::both(dtype)],
    })?;
    let step = target.begin_step(&tokens(total - queries, queries))?;
    let q: CudaTensor<D> = tensor(target, queries, SPEC.num_heads * SPEC.head_dim, 7)?;
    let time = seconds(target, sizes.seconds, |target, _| {
        target.attention(&q, &cache, 0, &SPEC, &step).map(drop)
    })?;
    let bytes = 2 * SPEC.num_kv_heads * dtype.head_bytes(SPEC.head_dim) * total;
    say(format!(
        "attention over {dtype}, {queries} of {total}: {:.1} us, {:.0} % of the memory's speed",
        time * 1e6,
        100.0 * bytes as f64 / time / read
    ));
    Ok(())
}
