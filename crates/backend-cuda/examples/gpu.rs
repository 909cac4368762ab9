//! On a real GPU: whether it answers as the definition and the CPU do, and how fast each kernel is. Runs from
//! the archive of `cargo xtask gpu pack`; needs the driver and nothing else.
//!
//! `gpu check` compares bits, `gpu time` times kernels. Without a GPU both end with 3 and say why.
//! Weights are rotated over more memory than the second cache has, so that they come from the device's
//! memory, as they do in a model.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the figures are what the program is for"
)]

use std::process::ExitCode;
use std::time::Instant;

use backend::{
    AttentionSpec, Backend, Batch, BatchSequence, HostTensor, Int8Data, KvCacheSpec, KvDtype,
    KvTypes, LinearWeight, Norm, NormKind, Result, WeightData,
};
use backend_cpu::{CpuBackend, CpuConfig};
use backend_cuda::device::Device;
use backend_cuda::driver::{Gpu, find};
use backend_cuda::{CudaBackend, CudaLinear, CudaTensor, Precision};
use quant::{BLOCK, GROUP, Granularity, Quantised};

type Target = CudaBackend<Gpu>;

fn main() -> ExitCode {
    let command = std::env::args().nth(1).unwrap_or_default();
    let gpu = match find().map(|found| found.into_iter().next()) {
        Ok(Some(gpu)) => gpu,
        Ok(None) => return none("the NVIDIA driver lists no GPU"),
        Err(reason) => return none(&reason),
    };
    let open = || Gpu::open(&gpu);
    let result = match command.as_str() {
        "check" => check(&open),
        "time" => time(&open),
        other => {
            eprintln!("gpu check|time, not {other:?}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn none(reason: &str) -> ExitCode {
    eprintln!("no GPU to run on: {reason}");
    ExitCode::from(3)
}

fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tokens(position: usize, count: usize) -> Batch {
    Batch {
        token_ids: vec![0; count],
        sequences: vec![BatchSequence {
            num_tokens: count,
            num_computed_tokens: position,
            block_table: (0..(position + count).div_ceil(32) as u32).rev().collect(),
        }],
        logit_rows: Vec::new(),
        copies: Vec::new(),
    }
}

fn tensor<B: Backend>(target: &mut B, rows: usize, columns: usize, seed: u32) -> Result<B::Tensor> {
    let data = WeightData::F32(numbers(seed, rows * columns));
    target.load_tensor(HostTensor::new(rows, columns, data)?)
}

fn same(found: &[f32], expected: &[f32]) -> bool {
    let pairs = found.iter().zip(expected);
    found.len() == expected.len() && pairs.into_iter().all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Prints a line for each comparison; true when all are equal.
fn check(open: &dyn Fn() -> Result<Gpu>) -> Result<bool> {
    let mut all = true;
    let mut say = |what: String, is_right: bool| {
        println!("{} {what}", if is_right { "ok   " } else { "WRONG" });
        all &= is_right;
    };
    use Granularity::{Groups, Row};
    for (precision, x_by, w_by) in [
        (Precision::Int8, Groups(GROUP), Row),
        (Precision::Int8Fast, Row, Row),
        (Precision::Int8Guarded, Groups(GROUP), Groups(GROUP)),
        (Precision::Int8Blocks, Groups(BLOCK), Groups(BLOCK)),
    ] {
        let mut target = CudaBackend::new(open()?, precision);
        for m in [1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 257] {
            for [n, k] in [[4096, 4096], [130, 700], [20, 8200]] {
                let is_right = product(&mut target, (x_by, w_by), [m, n, k])?;
                say(
                    format!("product {} of {w_by:?} [{m}, {n}, {k}]", precision.name()),
                    is_right,
                );
            }
        }
    }
    for keys in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
        for (total, queries) in [(1, 1), (70, 70), (2000, 1), (600, 300)] {
            let mut target = CudaBackend::new(open()?, Precision::Int8);
            let found = attend(&mut target, keys, total, queries)?.read(target.device())?;
            let mut cpu = CpuBackend::new(CpuConfig::default())?;
            let expected = attend(&mut cpu, keys, total, queries)?;
            let is_right = same(&found, expected.elements()?);
            say(
                format!("attention over {keys}, {queries} of {total}"),
                is_right,
            );
        }
    }
    Ok(all)
}

/// A product against its definition, twice in the same memory.
fn product(
    target: &mut Target,
    (x_by, w_by): (Granularity, Granularity),
    [m, n, k]: [usize; 3],
) -> Result<bool> {
    let x = numbers(1, m * k);
    let fits = "numbers are finite and shapes fit";
    // One group is a whole row.
    let w_by = match w_by.num_groups(k) {
        1 => Granularity::Row,
        _ => w_by,
    };
    let w = Quantised::new(&numbers(2, n * k), n, k, w_by).expect(fits);
    let expected =
        quant::linear(&Quantised::new(&x, m, k, x_by).expect(fits), &w, None).expect(fits);
    let stored = WeightData::Int8(Int8Data {
        values: w.values().to_vec(),
        scales: w.scales().to_vec(),
        columns: k,
        group_len: w_by.group_len(k),
    });
    let linear = target.load_linear(LinearWeight::new(HostTensor::new(n, k, stored)?, None)?)?;
    let step = target.begin_step(&tokens(0, m))?;
    let x = target.load_tensor(HostTensor::new(m, k, WeightData::F32(x))?)?;
    for _ in 0..2 {
        let y = target.linear(&x, &linear, &step)?.read(target.device())?;
        if !same(&y, &expected) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Heads of Llama 3 8B, a quarter of them.
const SPEC: AttentionSpec = AttentionSpec {
    num_heads: 8,
    num_kv_heads: 2,
    head_dim: 128,
    scale: 0.088,
    window: None,
    soft_cap: None,
};

fn attend<B: Backend>(
    target: &mut B,
    dtype: KvDtype,
    total: usize,
    queries: usize,
) -> Result<B::Tensor> {
    let mut cache = target.alloc_kv_cache(&KvCacheSpec {
        num_kv_heads: SPEC.num_kv_heads,
        head_dim: SPEC.head_dim,
        num_blocks: total.div_ceil(32),
        layers: vec![KvTypes::both(dtype)],
    })?;
    let width = SPEC.num_kv_heads * SPEC.head_dim;
    let step = target.begin_step(&tokens(0, total))?;
    let (k, v) = (
        tensor(target, total, width, 5)?,
        tensor(target, total, width, 6)?,
    );
    target.store_kv(&mut cache, 0, &k, &v, &step)?;
    let step = target.begin_step(&tokens(total - queries, queries))?;
    let q = tensor(target, queries, SPEC.num_heads * SPEC.head_dim, 7)?;
    target.attention(&q, &cache, 0, &SPEC, &step)
}

/// Layers of a model: outputs and inputs of each product, in order, and how often the layer stands there.
struct Shape {
    name: &'static str,
    products: [[usize; 2]; 4],
    layers: usize,
    head: [usize; 2],
}

/// The three shapes of the reference: what a step must at least read is their weights.
const SHAPES: [Shape; 3] = [
    Shape {
        name: "Llama 3 8B",
        products: [[6144, 4096], [4096, 4096], [28_672, 4096], [4096, 14_336]],
        layers: 32,
        head: [128_256, 4096],
    },
    Shape {
        name: "Qwen 2.5 7B",
        products: [[4608, 3584], [3584, 3584], [37_888, 3584], [3584, 18_944]],
        layers: 28,
        head: [152_064, 3584],
    },
    Shape {
        name: "Pythia 12B",
        products: [[15_360, 5120], [5120, 5120], [20_480, 5120], [5120, 20_480]],
        layers: 36,
        head: [50_688, 5120],
    },
];
/// Tokens of a step.
const TOKENS: [usize; 6] = [1, 8, 16, 32, 128, 512];
/// Bytes of weights that are used in turn: more than any second cache.
const ROTATED: usize = 400 << 20;
/// Seconds that each figure is measured for, after as long again to warm up.
const SECONDS: f64 = 0.12;

/// Seconds of one call, the median of repetitions.
fn seconds(
    target: &mut Target,
    mut call: impl FnMut(&mut Target, usize) -> Result<()>,
) -> Result<f64> {
    let start = Instant::now();
    let (mut turn, mut times) = (0, Vec::new());
    while start.elapsed().as_secs_f64() < 2.0 * SECONDS || times.len() < 5 {
        let began = Instant::now();
        for _ in 0..8 {
            call(target, turn)?;
            turn += 1;
        }
        target.device().synchronize()?;
        if start.elapsed().as_secs_f64() > SECONDS {
            times.push(began.elapsed().as_secs_f64() / 8.0);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

fn zeros(target: &mut Target, [n, k]: [usize; 2]) -> Result<CudaLinear<Gpu>> {
    let data = WeightData::Int8(Int8Data {
        values: vec![1; n * k],
        scales: vec![1e-3; n],
        columns: k,
        group_len: k,
    });
    target.load_linear(LinearWeight::new(HostTensor::new(n, k, data)?, None)?)
}

/// Bytes per second of copies in the device's memory: what it reads and writes, both counted.
fn bandwidth(target: &mut Target) -> Result<f64> {
    let (rows, columns) = (4096, 16_384);
    let mut x = tensor(target, rows, columns, 1)?;
    let y = tensor(target, rows, columns, 2)?;
    let time = seconds(target, |target, _| target.add(&mut x, &y))?;
    // Two reads and a write.
    Ok(3.0 * 4.0 * (rows * columns) as f64 / time)
}

fn time(open: &dyn Fn() -> Result<Gpu>) -> Result<bool> {
    let mut target = CudaBackend::new(open()?, Precision::Int8);
    let properties = target.device().properties().clone();
    println!("{properties:?}");
    let read = bandwidth(&mut target)?;
    println!("memory: {:.0} GB/s by sums of two matrices", read * 1e-9);
    for shape in SHAPES {
        for m in TOKENS {
            let mut step_seconds = 0.0;
            let mut bytes = 0.0;
            for (product, count) in shape
                .products
                .iter()
                .map(|product| (product, shape.layers))
                .chain([(&shape.head, 1)])
            {
                let time = time_product(&mut target, *product, m, read)?;
                step_seconds += time * count as f64;
                bytes += (product[0] * product[1] * count) as f64;
            }
            println!(
                "{}, {m} tokens: products {:.2} ms a step, {:.0} % of what reading their weights takes",
                shape.name,
                step_seconds * 1e3,
                100.0 * bytes / read / step_seconds
            );
        }
    }
    time_rows(&mut target, read)?;
    Ok(true)
}

fn time_product(target: &mut Target, [n, k]: [usize; 2], m: usize, read: f64) -> Result<f64> {
    let copies = ROTATED.div_ceil(n * k).min(32);
    let linears = (0..copies).map(|_| zeros(target, [n, k]));
    let linears: Vec<CudaLinear<Gpu>> = linears.collect::<Result<_>>()?;
    let step = target.begin_step(&tokens(0, m))?;
    let x = tensor(target, m, k, 1)?;
    let time = seconds(target, |target, turn| {
        target.linear(&x, &linears[turn % copies], &step).map(drop)
    })?;
    println!(
        "  product [{m}, {n}, {k}]: {:8.1} us, {:6.0} GB/s ({:3.0} % of the memory's), {:6.1} TOPS",
        time * 1e6,
        (n * k) as f64 / time * 1e-9,
        100.0 * (n * k) as f64 / time / read,
        2.0 * (m * n * k) as f64 / time * 1e-12
    );
    Ok(time)
}

/// Norms and attention.
fn time_rows(target: &mut Target, read: f64) -> Result<()> {
    for m in [1, 32, 512] {
        let x = tensor(target, m, 4096, 1)?;
        let norm = Norm {
            kind: NormKind::Rms,
            width: 4096,
            weight: target.load_tensor(HostTensor::vector(numbers(2, 4096)))?,
            bias: None,
            eps: 1e-5,
        };
        let step = target.begin_step(&tokens(0, m))?;
        let time = seconds(target, |target, _| {
            target.norm_quant(&x, &norm, &step).map(drop)
        })?;
        println!("  norm and 8-bit form of [{m}, 4096]: {:.1} us", time * 1e6);
    }
    for dtype in [KvDtype::Bf16, KvDtype::Int8] {
        for (total, queries) in [(1024, 1), (8192, 1), (2048, 512)] {
            time_attention(target, dtype, [total, queries], read)?;
        }
    }
    Ok(())
}

fn time_attention(
    target: &mut Target,
    dtype: KvDtype,
    [total, queries]: [usize; 2],
    read: f64,
) -> Result<()> {
    let cache = target.alloc_kv_cache(&KvCacheSpec {
        num_kv_heads: SPEC.num_kv_heads,
        head_dim: SPEC.head_dim,
        num_blocks: total.div_ceil(32),
        layers: vec![KvTypes::both(dtype)],
    })?;
    let step = target.begin_step(&tokens(total - queries, queries))?;
    let q: CudaTensor<Gpu> = tensor(target, queries, SPEC.num_heads * SPEC.head_dim, 7)?;
    let time = seconds(target, |target, _| {
        target.attention(&q, &cache, 0, &SPEC, &step).map(drop)
    })?;
    let bytes = 2 * SPEC.num_kv_heads * dtype.head_bytes(SPEC.head_dim) * total;
    println!(
        "  attention over {dtype}, {queries} of {total}: {:.1} us, {:.0} % of the memory's speed",
        time * 1e6,
        100.0 * bytes as f64 / time / read
    );
    Ok(())
}
