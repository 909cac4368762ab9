//! Whether a device answers rightly: the conformance suite, products to the bits of their definition,
//! attention to the bits of the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use backend::conformance::{Tolerances, bodies};
use backend::{
    AttentionSpec, Backend, HostTensor, Int8Data, KvCacheSpec, KvDtype, KvTypes, LinearWeight,
    Result, WeightData,
};
use backend_cpu::{CpuBackend, CpuConfig};
use backend_cuda::device::Device;
use backend_cuda::{CudaBackend, Precision};
use quant::{BLOCK, GROUP, Granularity, Quantised};

use super::inputs::{numbers, same, tensor, tokens};
use super::wrappers;

/// Over 16-bit keys and values, queries and weights are in 16 bits too.
const EXACT: Tolerances = Tolerances {
    attention_bf16: 1e-2,
    ..Tolerances::F32
};
/// The bounds of the CPU's 8-bit precisions: a narrow matrix under an outlier errs by a tenth.
const INT8: Tolerances = Tolerances {
    linear_f32: 0.2,
    linear_bf16: 0.2,
    linear_f16: 0.2,
    ..EXACT
};
/// Both operands are rounded to eleven bits.
const F16: Tolerances = Tolerances {
    linear_f32: 2e-3,
    linear_bf16: 2e-3,
    linear_f16: 2e-3,
    ..EXACT
};
/// A precision with the bounds that it keeps.
pub type Suite = (Precision, Tolerances);

/// All of them.
pub const SUITES: [Suite; 5] = [
    (Precision::Int8, INT8),
    (Precision::Int8Fast, INT8),
    (Precision::Int8Blocks, INT8),
    (Precision::F16, F16),
    (Precision::W8A16, INT8),
];

/// Tokens, and outputs with inputs, of the products that are compared.
pub struct Products {
    /// Tokens.
    pub tokens: &'static [usize],
    /// Outputs and inputs.
    pub matrices: &'static [[usize; 2]],
}

/// Every tile, with tails in all three sizes.
pub const PRODUCTS: Products = Products {
    tokens: &[1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 257],
    matrices: &[[4096, 4096], [130, 700], [20, 8200]],
};

/// The conformance suite in some precisions; true when all of it passes.
pub fn conform<D: Device>(
    open: &dyn Fn() -> Result<D>,
    suites: &[Suite],
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let mut all = true;
    for &(precision, ref tolerances) in suites {
        for (name, body) in bodies() {
            let mut target = CudaBackend::new(open()?, precision);
            // A body that fails panics with the operation and the case; it is said by the panic.
            let outcome = catch_unwind(AssertUnwindSafe(|| body(&mut target, tolerances)));
            let word = if outcome.is_ok() { "ok   " } else { "WRONG" };
            say(format!("{word} {} {name}", precision.name()));
            all &= outcome.is_ok();
        }
    }
    Ok(all)
}

/// Prints a line for each comparison, of the instructions first; true when all are equal.
pub fn check<D: Device>(
    open: &dyn Fn() -> Result<D>,
    products: &Products,
    say: &mut dyn FnMut(String),
) -> Result<bool> {
    let mut all = wrappers::check(&open()?, say)?;
    let mut say = |what: String, is_right: bool| {
        say(format!(
            "{} {what}",
            if is_right { "ok   " } else { "WRONG" }
        ));
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
        // Where the device has two kinds of tiles, both.
        let kinds: &[bool] = match target.device().properties().warpgroups {
            true => &[true, false],
            false => &[false],
        };
        for &warpgroups in kinds {
            target = target.with_warpgroups(warpgroups);
            let kind = if warpgroups { ", warpgroups" } else { "" };
            for &m in products.tokens {
                for &[n, k] in products.matrices {
                    let is_right = product(&mut target, (x_by, w_by), [m, n, k])?;
                    let name = precision.name();
                    say(
                        format!("product {name} of {w_by:?} [{m}, {n}, {k}]{kind}"),
                        is_right,
                    );
                }
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
fn product<D: Device>(
    target: &mut CudaBackend<D>,
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
pub const SPEC: AttentionSpec = AttentionSpec {
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
        num_host_blocks: 0,
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
