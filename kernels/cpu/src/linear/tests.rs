use half::bf16;

use super::*;
use crate::Serial;
use crate::simd::LEAST_BF16;
use crate::test_data::{random, random_bf16, same_bits};

/// The documented order, one output at a time.
fn definition(x: &[f32], weight: &[f32], inputs: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let outputs = weight.len() / inputs;
    let mut out = Vec::new();
    for x in x.chunks_exact(inputs) {
        for n in 0..outputs {
            let row = &weight[n * inputs..(n + 1) * inputs];
            let total = x
                .chunks(K_BLOCK)
                .zip(row.chunks(K_BLOCK))
                .map(|(x, w)| {
                    x.iter()
                        .zip(w)
                        .fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum))
                })
                .reduce(|total, block| total + block)
                .expect("at least one block");
            out.push(bias.map_or(total, |bias| total + bias[n]));
        }
    }
    out
}

fn run(isa: Isa, x: &[f32], weight: &LinearWeight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut out = vec![f32::NAN; x.len() / weight.inputs() * weight.outputs()];
    linear(isa, &Serial, x, weight, bias, &mut out, Epilogue::Store);
    out
}

#[test]
fn every_level_follows_the_definition_for_both_types() {
    for (inputs, outputs) in [(1, 1), (3, 33), (16, 1), (64, 64), (255, 31), (513, 40)] {
        let weight = random_bf16(1, inputs * outputs);
        let wide: Vec<f32> = weight.iter().map(|w| w.to_f32()).collect();
        let packed = [
            LinearWeight::pack_f32(&Serial, &wide, outputs, inputs).expect("memory"),
            LinearWeight::pack_bf16(&Serial, &weight, outputs, inputs).expect("memory"),
        ];
        let bias = random(2, outputs);
        for rows in [0, 1, 2, 3, 5, 7, 11, 12, 13, 23] {
            let x = random(3 + rows as u64, rows * inputs);
            for bias in [None, Some(&bias[..])] {
                let expected = definition(&x, &wide, inputs, bias);
                for isa in Isa::supported() {
                    for packed in &packed {
                        let what = format!("{rows} × {inputs} → {outputs}, {isa}");
                        same_bits(&run(isa, &x, packed, bias), &expected, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let (inputs, outputs) = (300, 70);
    let packed = LinearWeight::pack_f32(&Serial, &random(1, inputs * outputs), outputs, inputs)
        .expect("memory");
    let x = random(2, 65 * inputs);
    for isa in Isa::supported().filter(|isa| *isa != Isa::Scalar) {
        let alone: Vec<f32> = x
            .chunks_exact(inputs)
            .flat_map(|x| run(isa, x, &packed, None))
            .collect();
        for rows in 1..=65 {
            let found = run(isa, &x[..rows * inputs], &packed, None);
            same_bits(
                &found,
                &alone[..rows * outputs],
                &format!("{rows} rows, {isa}"),
            );
        }
    }
}

/// As products of 16 bits take a number.
fn rounded(x: f32) -> f32 {
    let x = if x.abs() < LEAST_BF16 { 0.0 } else { x };
    bf16::from_f32(x).to_f32()
}

/// The documented order of 16-bit products, one output at a time.
fn definition_bf16(x: &[f32], weight: &[bf16], inputs: usize, bias: Option<&[f32]>) -> Vec<f32> {
    let outputs = weight.len() / inputs;
    let mut out = Vec::new();
    for x in x.chunks_exact(inputs) {
        for n in 0..outputs {
            let products: Vec<(f32, f32)> = x
                .iter()
                .zip(&weight[n * inputs..])
                .map(|(x, w)| (rounded(*x), rounded(w.to_f32())))
                .collect();
            let block = |block: &[(f32, f32)]| {
                block.chunks(2).fold(0.0f32, |sum, pair| {
                    let (x, w) = pair.get(1).copied().unwrap_or_default();
                    pair[0].0.mul_add(pair[0].1, x.mul_add(w, sum))
                })
            };
            let blocks = products.chunks(K_BLOCK).map(block);
            let total = blocks.reduce(|a, b| a + b).expect("at least one block");
            out.push(bias.map_or(total, |bias| total + bias[n]));
        }
    }
    out
}

fn run_bf16(isa: Isa, x: &[f32], weight: &Bf16Weight, bias: Option<&[f32]>) -> Vec<f32> {
    let mut rows = Bf16Rows::default();
    rows.round(isa, &Serial, x, weight.inputs())
        .expect("memory");
    let mut out = vec![f32::NAN; x.len() / weight.inputs() * weight.outputs()];
    linear_bf16(isa, &Serial, &rows, weight, bias, &mut out, Epilogue::Store);
    out
}

/// Numbers of every size, so that sums cancel and products would underflow were small numbers kept.
fn of_every_size(seed: u64, len: usize) -> Vec<f32> {
    let exponents = random(seed + 1, len);
    random(seed, len)
        .into_iter()
        .zip(exponents)
        .map(|(x, e)| x * (60.0 * e).exp2())
        .collect()
}

#[test]
fn sixteen_bit_products_follow_their_definition_on_every_level() {
    for (inputs, outputs) in [(1, 1), (3, 33), (64, 64), (255, 31), (513, 40)] {
        for sizes in [random, of_every_size] {
            let weight = sizes(1, inputs * outputs);
            let weight: Vec<bf16> = weight.into_iter().map(bf16::from_f32).collect();
            let packed = Bf16Weight::pack(&Serial, &weight, outputs, inputs).expect("memory");
            assert_eq!(
                packed.bytes(),
                outputs.next_multiple_of(32) * inputs.next_multiple_of(2) * 2
            );
            let bias = random(2, outputs);
            for rows in [0, 1, 2, 3, 5, 11, 13, 23] {
                let x = sizes(3 + rows as u64, rows * inputs);
                let expected = definition_bf16(&x, &weight, inputs, Some(&bias));
                for isa in Isa::supported() {
                    let what = format!("{rows} × {inputs} → {outputs}, {isa}");
                    same_bits(&run_bf16(isa, &x, &packed, Some(&bias)), &expected, &what);
                }
            }
        }
    }
}

#[test]
fn a_row_of_sixteen_bits_is_the_same_in_every_batch() {
    let (inputs, outputs) = (300, 70);
    let weight = random_bf16(1, inputs * outputs);
    let packed = Bf16Weight::pack(&Serial, &weight, outputs, inputs).expect("memory");
    let x = random(2, 65 * inputs);
    for isa in Isa::supported().filter(|isa| *isa != Isa::Scalar) {
        let alone: Vec<f32> = x
            .chunks_exact(inputs)
            .flat_map(|x| run_bf16(isa, x, &packed, None))
            .collect();
        for rows in 1..=65 {
            let found = run_bf16(isa, &x[..rows * inputs], &packed, None);
            same_bits(
                &found,
                &alone[..rows * outputs],
                &format!("{rows} rows, {isa}"),
            );
        }
    }
}

#[test]
fn what_is_not_finite_goes_through_the_rounding() {
    let (inputs, outputs) = (33, 5);
    let weight = vec![bf16::ONE; inputs * outputs];
    let packed = Bf16Weight::pack(&Serial, &weight, outputs, inputs).expect("memory");
    for isa in Isa::supported() {
        // The last NaN has only low bits, which the rounding cuts off; the last number rounds to ∞.
        for bad in [
            f32::NAN,
            f32::INFINITY,
            f32::from_bits(0x7f80_0001),
            f32::MAX,
        ] {
            let mut x = vec![1.0; 3 * inputs];
            x[inputs + 7] = bad;
            let y = run_bf16(isa, &x, &packed, None);
            for (row, y) in y.chunks_exact(outputs).enumerate() {
                let finite = y.iter().all(|y| y.is_finite());
                assert_eq!(finite, row != 1, "{isa}, {bad}, row {row}");
                let nan = y.iter().all(|y| y.is_nan());
                assert_eq!(nan, row == 1 && bad.is_nan(), "{isa}, {bad}, row {row}");
            }
        }
    }
}

#[test]
fn more_rows_than_a_task_holds() {
    let (inputs, outputs, rows) = (20, 33, 2 * TASK_ROWS + 5);
    let weight = random(1, inputs * outputs);
    let packed = LinearWeight::pack_f32(&Serial, &weight, outputs, inputs).expect("memory");
    let x = random(2, rows * inputs);
    let expected = definition(&x, &weight, inputs, None);
    for isa in Isa::supported() {
        same_bits(&run(isa, &x, &packed, None), &expected, &isa.to_string());
    }
}

#[test]
fn adding_equals_storing_then_adding() {
    let (inputs, outputs, rows) = (48, 50, 9);
    let packed =
        LinearWeight::pack_bf16(&Serial, &random_bf16(1, inputs * outputs), outputs, inputs)
            .expect("memory");
    let bias = random(2, outputs);
    let x = random(3, rows * inputs);
    for isa in Isa::supported() {
        let mut residual = random(4, rows * outputs);
        let y = run(isa, &x, &packed, Some(&bias));
        let expected: Vec<f32> = residual.iter().zip(&y).map(|(r, y)| r + y).collect();
        linear(
            isa,
            &Serial,
            &x,
            &packed,
            Some(&bias),
            &mut residual,
            Epilogue::Add,
        );
        same_bits(&residual, &expected, &isa.to_string());
    }
}

#[test]
fn nan_reaches_its_row_and_no_other() {
    let (inputs, outputs, rows) = (33, 40, 14);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut weight = vec![bf16::ONE; inputs * outputs];
        weight[5] = bf16::ZERO;
        let packed = LinearWeight::pack_bf16(&Serial, &weight, outputs, inputs).expect("memory");
        let mut x = random(1, rows * inputs);
        x[6 * inputs + 5] = bad;
        for isa in Isa::supported() {
            let y = run(isa, &x, &packed, None);
            for (row, y) in y.chunks_exact(outputs).enumerate() {
                assert_eq!(
                    y.iter().all(|y| !y.is_finite()),
                    row == 6,
                    "{isa}, row {row}"
                );
                // 0 · ∞ is NaN.
                assert_eq!(y[0].is_nan(), row == 6, "{isa}, row {row}");
            }
        }
    }
}
