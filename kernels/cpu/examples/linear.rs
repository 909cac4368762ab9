//! Times `linear` on one core for one row (bound by reading weights) and for many rows (bound by
//! multiply-adds), on every level of this machine, after checking the result against the scalar level.
//! The last line of each precision is what the machine can do, on one thread.
//!
//! `cargo run --release -p kernels-cpu --example linear [LEVEL]…`, every level if none is named.

use std::time::Instant;

use half::bf16;
use kernels_cpu::{Bf16Rows, Bf16Weight, Epilogue, Isa, LinearWeight, Serial, linear, linear_bf16};

const INPUTS: usize = 2048;
/// A few matrices are used in turn, so that weights come from memory as they do in a model.
const MATRICES: usize = 8;
const OUTPUTS: usize = 4096;

fn main() {
    let values: Vec<f32> = (0..INPUTS * OUTPUTS)
        .map(|i| ((i * 2_654_435_761) % 1000) as f32 * 1e-3 - 0.5)
        .collect();
    let halves: Vec<bf16> = values.iter().map(|w| bf16::from_f32(*w)).collect();
    let bias = None;
    let f32 = packed(|| LinearWeight::pack_f32(&Serial, &values, OUTPUTS, INPUTS));
    let wide = packed(|| LinearWeight::pack_bf16(&Serial, &halves, OUTPUTS, INPUTS));
    let bf16 = packed(|| Bf16Weight::pack(&Serial, &halves, OUTPUTS, INPUTS));
    report("f32", f32[0].bytes(), |isa, i, x, out| {
        linear(isa, &Serial, x, &f32[i], bias, out, Epilogue::Store);
    });
    report("bf16 weights", wide[0].bytes(), |isa, i, x, out| {
        linear(isa, &Serial, x, &wide[i], bias, out, Epilogue::Store);
    });
    let mut rows = Bf16Rows::default();
    report("bf16", bf16[0].bytes(), |isa, i, x, out| {
        rows.round(isa, &Serial, x, INPUTS).expect("memory");
        linear_bf16(isa, &Serial, &rows, &bf16[i], bias, out, Epilogue::Store);
    });
}

fn packed<T>(pack: impl Fn() -> Option<T>) -> Vec<T> {
    let memory = || pack().expect("memory for the weights");
    (0..MATRICES).map(|_| memory()).collect()
}

/// Checks one row of the first matrix and times all of them.
#[expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]
fn report(name: &str, bytes: usize, mut multiply: impl FnMut(Isa, usize, &[f32], &mut [f32])) {
    let x: Vec<f32> = (0..512 * INPUTS)
        .map(|i| ((i * 2_246_822_519) % 2000) as f32 * 1e-3 - 1.0)
        .collect();
    let mut expected = vec![0.0; OUTPUTS];
    multiply(Isa::Scalar, 0, &x[..INPUTS], &mut expected);
    let named: Vec<String> = std::env::args().skip(1).collect();
    for isa in Isa::supported().filter(|isa| named.is_empty() || named.contains(&isa.to_string())) {
        let mut out = vec![0.0; OUTPUTS];
        multiply(isa, 0, &x[..INPUTS], &mut out);
        let same = out.iter().zip(&expected);
        let same = same.clone().all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same, "{isa} differs from scalar");
        for rows in [1, 2, 4, 8, 16, 32, 128, 512] {
            let mut out = vec![0.0; rows * OUTPUTS];
            let mut best = f64::INFINITY;
            for _ in 0..5 {
                let start = Instant::now();
                (0..MATRICES).for_each(|i| multiply(isa, i, &x[..rows * INPUTS], &mut out));
                best = best.min(start.elapsed().as_secs_f64() / MATRICES as f64);
            }
            println!(
                "{name:>12} {:>11} {rows:>4} rows: {:7.2} GB/s {:8.1} GFLOP/s",
                isa.to_string(),
                bytes as f64 / best * 1e-9,
                2.0 * (rows * INPUTS * OUTPUTS) as f64 / best * 1e-9,
            );
        }
    }
    println!("{:?}", kernels_cpu::peak::measure(Isa::detect(), 1));
}
