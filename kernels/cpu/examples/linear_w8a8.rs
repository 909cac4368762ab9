//! Times `linear_w8a8` on one core for one row (bound by reading weights) and for many rows (bound by
//! multiply-adds), on every level of this machine and for both granularities, after checking the result
//! against the scalar level.
//!
//! `cargo run --release -p kernels-cpu --example linear_w8a8`

use std::time::Instant;

use kernels_cpu::{
    Epilogue, Int8Level, Isa, QuantisedRows, QuantisedWeight, RowLayout, Serial, linear_w8a8,
    quantise,
};
use quant::{GROUP, Granularity};

const INPUTS: usize = 2048;
/// A few matrices are used in turn, so that weights come from memory as they do in a model.
const MATRICES: usize = 16;
const OUTPUTS: usize = 4096;

#[expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]
fn main() {
    let values: Vec<f32> = (0..INPUTS * OUTPUTS)
        .map(|i| ((i * 2_654_435_761) % 1000) as f32 * 1e-3 - 0.5)
        .collect();
    let read = |row: usize, out: &mut [f32]| {
        out.copy_from_slice(&values[row * INPUTS..(row + 1) * INPUTS]);
    };
    let isa = Isa::detect();
    let weights: Vec<QuantisedWeight> = (0..MATRICES)
        .map(|_| {
            QuantisedWeight::quantise(isa, &Serial, [OUTPUTS, INPUTS], Granularity::Row, read)
                .expect("memory for the weights")
        })
        .collect();
    for granularity in [Granularity::Groups(GROUP), Granularity::Row] {
        let few = quantised(granularity, &values[..13 * INPUTS]);
        let expected = multiply(Int8Level::Scalar, &weights[0], &few);
        for level in Int8Level::supported() {
            let found = multiply(level, &weights[0], &few);
            let same = found.iter().zip(&expected);
            assert!(
                same.clone().all(|(a, b)| a.to_bits() == b.to_bits()),
                "{level} differs from scalar"
            );
            if level == Int8Level::Scalar {
                continue;
            }
            for rows in [1, 3, 4, 8, 11, 16, 32, 128, 512] {
                let x = quantised(granularity, &values[..rows * INPUTS]);
                let seconds = time(level, &weights, &x);
                println!(
                    "{granularity:>5?} {level:>13} {rows:>4} rows: {:7.2} GB/s {:8.1} GOP/s",
                    weights[0].bytes() as f64 / seconds * 1e-9,
                    2.0 * (rows * INPUTS * OUTPUTS) as f64 / seconds * 1e-9,
                );
            }
        }
    }
}

fn quantised(granularity: Granularity, x: &[f32]) -> QuantisedRows {
    let layout = RowLayout::new(INPUTS, granularity);
    let mut rows = QuantisedRows::new(x.len() / INPUTS, layout).expect("memory for the rows");
    quantise(Isa::detect(), layout, x, rows.words_mut());
    rows
}

fn multiply(level: Int8Level, weight: &QuantisedWeight, x: &QuantisedRows) -> Vec<f32> {
    let mut out = vec![0.0; x.rows() * OUTPUTS];
    linear_w8a8(level, &Serial, x, weight, None, &mut out, Epilogue::Store);
    out
}

/// Best seconds of one multiplication over a few passes.
fn time(level: Int8Level, weights: &[QuantisedWeight], x: &QuantisedRows) -> f64 {
    let mut out = vec![0.0; x.rows() * OUTPUTS];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        for weight in weights {
            linear_w8a8(level, &Serial, x, weight, None, &mut out, Epilogue::Store);
        }
        best = best.min(start.elapsed().as_secs_f64() / weights.len() as f64);
    }
    best
}
