use half::bf16;

use super::*;
use crate::Serial;
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
