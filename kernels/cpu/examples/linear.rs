//! Times `linear` on one core for one row (bound by reading weights) and for many rows (bound by
//! multiply-adds), on every level of this machine, after checking the result against the scalar level.
//!
//! `cargo run --release -p kernels-cpu --example linear`

use std::time::Instant;

use half::bf16;
use kernels_cpu::{Epilogue, Isa, LinearWeight, Serial, linear};

const INPUTS: usize = 2048;
/// A few matrices are used in turn, so that weights come from memory as they do in a model.
const MATRICES: usize = 8;
const OUTPUTS: usize = 4096;

#[expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]
fn main() {
    let values: Vec<f32> = (0..INPUTS * OUTPUTS)
        .map(|i| ((i * 2_654_435_761) % 1000) as f32 * 1e-3 - 0.5)
        .collect();
    let halves: Vec<bf16> = values.iter().map(|w| bf16::from_f32(*w)).collect();
    let pack = |narrow: bool| -> Vec<LinearWeight> {
        (0..MATRICES)
            .map(|_| {
                if narrow {
                    LinearWeight::pack_bf16(&Serial, &halves, OUTPUTS, INPUTS)
                } else {
                    LinearWeight::pack_f32(&Serial, &values, OUTPUTS, INPUTS)
                }
                .expect("memory for the weights")
            })
            .collect()
    };
    for (name, weights) in [("f32", pack(false)), ("bf16", pack(true))] {
        let expected = multiply(Isa::Scalar, &weights[0], &values[..INPUTS]);
        for isa in Isa::supported().filter(|isa| *isa != Isa::Scalar) {
            let found = multiply(isa, &weights[0], &values[..INPUTS]);
            assert!(
                found
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| a.to_bits() == b.to_bits()),
                "{isa} differs from scalar"
            );
            for rows in [1, 2, 4, 8, 16, 32, 128, 512] {
                let seconds = time(isa, &weights, &values[..rows * INPUTS]);
                println!(
                    "{name:>4} {isa:>6} {rows:>4} rows: {:7.2} GB/s {:8.1} GFLOP/s",
                    weights[0].bytes() as f64 / seconds * 1e-9,
                    2.0 * (rows * INPUTS * OUTPUTS) as f64 / seconds * 1e-9,
                );
            }
        }
    }
}

fn multiply(isa: Isa, weight: &LinearWeight, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; x.len() / INPUTS * OUTPUTS];
    linear(isa, &Serial, x, weight, None, &mut out, Epilogue::Store);
    out
}

/// Best seconds of one multiplication over a few passes.
fn time(isa: Isa, weights: &[LinearWeight], x: &[f32]) -> f64 {
    let mut out = vec![0.0; x.len() / INPUTS * OUTPUTS];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        for weight in weights {
            linear(isa, &Serial, x, weight, None, &mut out, Epilogue::Store);
        }
        best = best.min(start.elapsed().as_secs_f64() / weights.len() as f64);
    }
    best
}
