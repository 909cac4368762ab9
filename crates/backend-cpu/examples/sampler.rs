//! Times the sampler for 32 rows of a vocabulary of 151,936 tokens, by the worker team, for several
//! ways to choose and for peaked, bell-shaped and flat logits.
//!
//! `cargo run --release -p backend-cpu --example sampler`

use std::sync::Arc;
use std::time::Instant;

use backend::{
    Backend, Batch, HostTensor, RowTask, SampleBatch, SampleRow, SamplingParams, WeightData,
};
use backend_cpu::{CpuBackend, CpuConfig};

const ROWS: usize = 32;
const VOCAB_SIZE: usize = 151_936;
const PASSES: usize = 15;

#[expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]
fn main() -> backend::Result<()> {
    let mut backend = CpuBackend::new(CpuConfig::default())?;
    for (shape, logit) in [
        // Some tokens far above a bulk, as a trained model has them.
        (
            "peaked",
            (|x, y| if y > 0.999 { 10.0 + 10.0 * x } else { 2.0 * x }) as fn(f32, f32) -> f32,
        ),
        // What random weights give.
        ("bell", |x, y| {
            (-2.0 * y.ln()).sqrt() * (std::f32::consts::TAU * x).cos()
        }),
        ("flat", |x, _| 1e-3 * x),
        ("equal", |_, _| 0.0),
    ] {
        let logits = logits(logit);
        for (name, params) in ways() {
            let mut times: Vec<f64> = (0..PASSES)
                .map(|_| time(&mut backend, &logits, &params))
                .collect::<backend::Result<_>>()?;
            times.sort_by(f64::total_cmp);
            println!(
                "{shape:>6} {name:<22} {:7.2} ms for {ROWS} rows, fastest {:.2}",
                times[PASSES / 2] * 1e3,
                times[0] * 1e3
            );
        }
    }
    Ok(())
}

fn ways() -> Vec<(&'static str, Arc<SamplingParams>)> {
    let base = SamplingParams::default;
    #[rustfmt::skip]
    let ways = [
        ("greedy", SamplingParams::greedy()),
        ("greedy, 20 logprobs", SamplingParams { num_logprobs: Some(20), ..SamplingParams::greedy() }),
        ("temperature 0.8", SamplingParams { temperature: 0.8, ..base() }),
        ("top-k 50", SamplingParams { top_k: 50, ..base() }),
        ("top-p 0.95", SamplingParams { top_p: 0.95, ..base() }),
        ("min-p 0.05", SamplingParams { min_p: 0.05, ..base() }),
        ("top-k, top-p, penalties", SamplingParams { temperature: 0.8, top_k: 50, top_p: 0.95, presence_penalty: 0.1, ..base() }),
    ];
    ways.map(|(name, params)| (name, Arc::new(params))).into()
}

/// Rows of a function of two numbers in `(0, 1]`.
fn logits(logit: fn(f32, f32) -> f32) -> Vec<f32> {
    let unit = |i: usize| {
        let x = (i as u32 + 1).wrapping_mul(2_654_435_761);
        let x = (x ^ x >> 15).wrapping_mul(0x2c1b_3c6d);
        ((x ^ x >> 13) >> 8) as f32 / (1 << 24) as f32 + 1e-7
    };
    (0..ROWS * VOCAB_SIZE)
        .map(|i| logit(unit(2 * i), unit(2 * i + 1)))
        .collect()
}

/// Seconds of one step's sampling.
fn time(
    backend: &mut CpuBackend,
    logits: &[f32],
    params: &Arc<SamplingParams>,
) -> backend::Result<f64> {
    let logits = backend.load_tensor(HostTensor {
        rows: ROWS,
        columns: VOCAB_SIZE,
        data: WeightData::F32(logits.to_vec()),
    })?;
    let rows = |row: usize| SampleRow {
        params: Arc::clone(params),
        task: RowTask::Draw,
        seed: row as u64,
        position: 7,
        counts: Vec::new(),
        banned: Arc::from([]),
    };
    let batch = SampleBatch {
        rows: (0..ROWS).map(rows).collect(),
        vocab_size: VOCAB_SIZE,
    };
    let step = backend.begin_step(&Batch::default())?;
    let start = Instant::now();
    backend.sample(logits, &batch, step)?;
    Ok(start.elapsed().as_secs_f64())
}
