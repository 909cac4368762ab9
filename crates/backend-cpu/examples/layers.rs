//! Times the matrices of decoder layers on the worker team, norms and gates between them included and
//! attention left out, beside what the machine can do at that moment.
//!
//! `cargo run --release -p backend-cpu --example layers [f32|bf16|int8|int8-fast] [HIDDEN QKV WIDTH]`

use std::time::Instant;

use backend::{
    Activation, Backend, Batch, HostTensor, LinearRole, LinearWeight, Norm, NormKind, Result,
    WeightData,
};
use backend_cpu::{CpuBackend, CpuConfig, CpuDescription, CpuLinear, CpuTensor, Precision};
use half::bf16;
use kernels_cpu::peak;

/// Enough that no cache holds the weights.
const LAYERS: usize = 8;
/// Runs of which the best counts.
const PASSES: usize = 5;
const EPS: f32 = 1e-5;

struct Layer {
    norm: Norm<CpuTensor>,
    qkv: CpuLinear,
    out: CpuLinear,
    gate_up: CpuLinear,
    down: CpuLinear,
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]
fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let precision = match args.next().as_deref() {
        Some("f32") => Precision::F32,
        Some("bf16") => Precision::Bf16,
        Some("int8-fast") => Precision::Int8Fast,
        _ => Precision::Int8,
    };
    let sizes: Vec<usize> = args.filter_map(|size| size.parse().ok()).collect();
    let [hidden, qkv, width] = sizes.try_into().unwrap_or([2048, 2560, 5632]);
    let config = CpuConfig {
        precision,
        ..CpuConfig::default()
    };
    let found = CpuDescription::of(&config)?;
    let mut backend = CpuBackend::new(config)?;
    let layers = (0..LAYERS)
        .map(|index| Layer::load(&mut backend, index, [hidden, qkv, width]))
        .collect::<Result<Vec<_>>>()?;
    let weights = LAYERS * hidden * (qkv + hidden + 3 * width);
    let bytes: usize = layers.iter().map(Layer::bytes).sum();
    let before = peak::measure(found.isa, found.threads);
    for rows in [1, 2, 4, 8, 16, 32, 64, 128, 512] {
        let seconds = time(&mut backend, &layers, [rows, hidden, width])?;
        println!(
            "{precision} {rows:>4} rows: {:6.2} GB/s {:7.1} Gop/s",
            bytes as f64 / seconds * 1e-9,
            2.0 * (rows * weights) as f64 / seconds * 1e-9,
        );
    }
    let after = peak::measure(found.isa, found.threads);
    println!("{found}\nbefore {before:?}\nafter  {after:?}");
    Ok(())
}

/// The best seconds of one pass through all layers.
fn time(
    backend: &mut CpuBackend,
    layers: &[Layer],
    [rows, hidden, width]: [usize; 3],
) -> Result<f64> {
    let batch = Batch::default();
    let values: Vec<f32> = (0..rows * hidden)
        .map(|i| (i * 2_654_435_761 % 1000) as f32 * 1e-3 - 0.5)
        .collect();
    let mut best = f64::INFINITY;
    for _ in 0..PASSES {
        let mut x = backend.load_tensor(HostTensor::new(
            rows,
            hidden,
            WeightData::F32(values.clone()),
        )?)?;
        let step = backend.begin_step(&batch)?;
        let start = Instant::now();
        for layer in layers {
            let n = backend.norm_quant(&x, &layer.norm, &step)?;
            let qkv = backend.linear(&n, &layer.qkv, &step)?;
            let others = layer.qkv.outputs() - hidden;
            let heads = backend.split(qkv, &[hidden, others])?;
            backend.linear_add(&mut x, &heads[0], &layer.out, &step)?;
            let n = backend.norm_quant(&x, &layer.norm, &step)?;
            let gate_up = backend.linear(&n, &layer.gate_up, &step)?;
            let gated = backend.gated(gate_up, width, Activation::Silu)?;
            backend.linear_add(&mut x, &gated, &layer.down, &step)?;
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

impl Layer {
    fn load(
        backend: &mut CpuBackend,
        index: usize,
        [hidden, qkv, width]: [usize; 3],
    ) -> Result<Self> {
        let mut linear = |rows: usize, columns: usize| {
            let values = (0..rows * columns)
                .map(|i| (i * 2_654_435_761 + index) % 1000)
                .map(|value| bf16::from_f32((value as f32 * 1e-3 - 0.5) / (columns as f32).sqrt()));
            backend.load_linear(LinearWeight {
                weight: HostTensor::new(rows, columns, WeightData::Bf16(values.collect()))?,
                bias: None,
                role: LinearRole::Projection,
            })
        };
        Ok(Self {
            qkv: linear(qkv, hidden)?,
            out: linear(hidden, hidden)?,
            gate_up: linear(2 * width, hidden)?,
            down: linear(hidden, width)?,
            norm: Norm {
                kind: NormKind::Rms,
                width: hidden,
                weight: backend.load_tensor(HostTensor::new(
                    1,
                    hidden,
                    WeightData::F32(vec![1.0; hidden]),
                )?)?,
                bias: None,
                eps: EPS,
            },
        })
    }

    fn bytes(&self) -> usize {
        [&self.qkv, &self.out, &self.gate_up, &self.down]
            .into_iter()
            .map(CpuLinear::bytes)
            .sum()
    }
}
