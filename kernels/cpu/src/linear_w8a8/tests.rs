use quant::{BLOCK, GROUP, Granularity, Quantised, linear};

use super::*;
use crate::test_data::{random, same_bits};
use crate::{Isa, Serial, quantise};

const ROW: Granularity = Granularity::Row;
const GROUPS: Granularity = Granularity::Groups(GROUP);
const BLOCKS: Granularity = Granularity::Groups(BLOCK);

/// How weights and activations may be quantised together.
const PAIRS: [[Granularity; 2]; 5] = [
    [ROW, ROW],
    [ROW, GROUPS],
    [ROW, BLOCKS],
    [GROUPS, GROUPS],
    [BLOCKS, BLOCKS],
];

/// One multiplication and what `quant` says it gives.
struct Case {
    x: Vec<f32>,
    inputs: usize,
    weight: Quantised,
    bias: Option<Vec<f32>>,
}

impl Case {
    fn new(
        inputs: usize,
        outputs: usize,
        rows: usize,
        weights: Granularity,
        with_bias: bool,
    ) -> Self {
        let weight = random(1, inputs * outputs);
        Self {
            x: random(2 + rows as u64, rows * inputs),
            inputs,
            weight: Quantised::new(&weight, outputs, inputs, weights).expect("finite"),
            bias: with_bias.then(|| random(3, outputs)),
        }
    }

    fn rows(&self) -> usize {
        self.x.len() / self.inputs
    }

    fn packed(&self) -> QuantisedWeight {
        QuantisedWeight::from_quantised(&Serial, &self.weight).expect("memory")
    }

    fn expected(&self, granularity: Granularity) -> Vec<f32> {
        let x = Quantised::new(&self.x, self.rows(), self.inputs, granularity).expect("finite");
        linear(&x, &self.weight, self.bias.as_deref()).expect("fits")
    }

    fn run(
        &self,
        level: Int8Level,
        granularity: Granularity,
        packed: &QuantisedWeight,
    ) -> Vec<f32> {
        let x = quantised(granularity, &self.x, self.inputs);
        let mut out = vec![f32::NAN; x.rows() * packed.outputs()];
        let bias = self.bias.as_deref();
        linear_w8a8(level, &Serial, &x, packed, bias, &mut out, Epilogue::Store);
        out
    }

    /// Every level of this machine against `quant`, on bits.
    fn check(&self, granularity: Granularity) {
        let expected = self.expected(granularity);
        let packed = self.packed();
        let (rows, outputs) = (self.rows(), self.weight.rows());
        for level in Int8Level::supported() {
            let what = format!(
                "{rows} × {} → {outputs}, {:?}, {granularity:?}, {level}",
                self.inputs,
                self.weight.granularity()
            );
            same_bits(&self.run(level, granularity, &packed), &expected, &what);
        }
    }
}

fn quantised(granularity: Granularity, x: &[f32], inputs: usize) -> QuantisedRows {
    let layout = RowLayout::new(inputs, granularity);
    let mut rows = QuantisedRows::new(x.len() / inputs, layout).expect("memory");
    quantise(Isa::detect(), layout, x, rows.words_mut());
    rows
}

#[test]
fn every_level_follows_the_definition() {
    let shapes = [
        (1, 1),
        (3, 33),
        (4, 1),
        (16, 31),
        (63, 65),
        (64, 64),
        (127, 17),
        (128, 32),
        (129, 1),
        (258, 47),
        (576, 49),
        (1023, 5),
    ];
    for (i, (inputs, outputs)) in shapes.into_iter().enumerate() {
        for rows in [0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 23, 65] {
            for [weights, x] in PAIRS {
                Case::new(inputs, outputs, rows, weights, i % 2 == 0).check(x);
            }
        }
    }
}

#[test]
fn every_number_of_rows() {
    for rows in 1..=65 {
        for [weights, x] in PAIRS {
            Case::new(300, 35, rows, weights, true).check(x);
        }
    }
    for rows in [TASK_ROWS - 1, TASK_ROWS, 2 * TASK_ROWS + 5] {
        Case::new(20, 33, rows, ROW, false).check(GROUPS);
    }
    // Several panels in a task, the last one of fewer.
    for rows in [1, 13, 30] {
        let outputs = 14 * PANEL_WIDTH + 5;
        Case::new(20, outputs, rows, ROW, true).check(GROUPS);
    }
}

#[test]
fn rows_of_zeros_outliers_and_the_ends_of_the_range() {
    for [weights, granularity] in PAIRS {
        let (inputs, outputs, rows) = (261, 37, 9);
        let mut case = Case::new(inputs, outputs, rows, weights, true);
        case.x[..inputs].fill(0.0);
        case.x[inputs + 3] = 1e6;
        case.x[2 * inputs..3 * inputs].fill(-7.0);
        case.x[3 * inputs..4 * inputs].fill(1e-35);
        case.x[4 * inputs + 200] = f32::MAX / 1e6;
        // Integers from outside: −128 everywhere, ±127 in turns, a row without scale.
        let mut values = case.weight.values().to_vec();
        let mut scales = case.weight.scales().to_vec();
        values[..inputs].fill(-128);
        for (k, value) in values[inputs..2 * inputs].iter_mut().enumerate() {
            *value = if k % 2 == 0 { 127 } else { -128 };
        }
        values[2 * inputs..3 * inputs].fill(127);
        scales[3] = 0.0;
        case.weight =
            Quantised::from_parts(values, scales, outputs, inputs, weights).expect("fits");
        case.check(granularity);
        let zero_row = &case.expected(granularity)[..outputs];
        assert_eq!(Some(zero_row), case.bias.as_deref());
    }
}

/// The largest 32-bit sums there can be, one product below overflow.
#[test]
fn the_longest_rows_are_exact() {
    for value in [-128, 127] {
        let inputs = MAX_INPUTS;
        let scales = vec![1.0];
        let weight =
            Quantised::from_parts(vec![value; inputs], scales, 1, inputs, Granularity::Row);
        for x in [1.0, -1.0] {
            let case = Case {
                x: vec![x; inputs],
                inputs,
                weight: weight.clone().expect("fits"),
                bias: None,
            };
            for granularity in [ROW, GROUPS, BLOCKS] {
                case.check(granularity);
            }
        }
    }
}

#[test]
fn quantising_at_load_equals_packing_what_quant_made() {
    for (inputs, outputs) in [(1, 1), (70, 33), (300, 64)] {
        let mut weight = random(5, inputs * outputs);
        weight[..inputs].fill(0.0);
        for granularity in [ROW, GROUPS, BLOCKS] {
            let known = Quantised::new(&weight, outputs, inputs, granularity).expect("finite");
            let expected = QuantisedWeight::from_quantised(&Serial, &known).expect("memory");
            for isa in Isa::supported() {
                let read = |row: usize, out: &mut [f32]| {
                    out.copy_from_slice(&weight[row * inputs..(row + 1) * inputs]);
                };
                let shape = [outputs, inputs];
                let found = QuantisedWeight::quantise(isa, &Serial, shape, granularity, read);
                let found = found.expect("finite");
                for panel in 0..found.panels() {
                    assert_eq!(found.panel(panel), expected.panel(panel), "{isa}");
                    assert_eq!(found.panel_scales(panel), expected.panel_scales(panel));
                }
                assert_eq!(found.granularity(), granularity);
                assert_eq!(found.bytes(), expected.bytes());
            }
        }
    }
}

#[test]
fn weights_take_a_byte_each() {
    for (granularity, scales) in [(ROW, 1), (GROUPS, 4), (BLOCKS, 16)] {
        let packed = Case::new(512, 320, 1, granularity, false).packed();
        assert_eq!(packed.bytes(), 512 * 320 + 4 * 320 * scales);
    }
}

#[test]
#[should_panic(expected = "activations in the groups of the weights")]
fn activations_in_other_groups_are_a_bug() {
    let case = Case::new(300, 3, 2, BLOCKS, false);
    case.run(Int8Level::Scalar, GROUPS, &case.packed());
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for bad in [f32::NAN, f32::INFINITY] {
        let read = |row: usize, out: &mut [f32]| {
            out.fill(1.0);
            if row == 40 || row == 50 {
                out[2] = bad;
            }
        };
        let refused = QuantisedWeight::quantise(Isa::detect(), &Serial, [64, 5], ROW, read);
        let error = refused.expect_err("not finite");
        assert_eq!(error, PackError::NonFinite { output: 40 });
        let read = |row: usize, _: &mut [i8], scales: &mut [f32]| {
            scales.fill(1.0);
            if row == 33 {
                scales[1] = bad;
            }
        };
        let refused = QuantisedWeight::from_rows(&Serial, [64, 50], BLOCKS, read);
        let error = refused.expect_err("no scale");
        assert_eq!(error, PackError::NonFinite { output: 33 });
    }
}

#[test]
fn adding_equals_storing_then_adding() {
    for [weights, granularity] in PAIRS {
        let case = Case::new(140, 50, 9, weights, true);
        let packed = case.packed();
        for level in Int8Level::supported() {
            let mut residual = random(4, 9 * 50);
            let y = case.run(level, granularity, &packed);
            let expected: Vec<f32> = residual.iter().zip(&y).map(|(r, y)| r + y).collect();
            let x = quantised(granularity, &case.x, case.inputs);
            let bias = case.bias.as_deref();
            let epilogue = Epilogue::Add;
            linear_w8a8(level, &Serial, &x, &packed, bias, &mut residual, epilogue);
            same_bits(&residual, &expected, &level.to_string());
        }
    }
}

#[test]
fn numbers_that_are_not_finite_reach_their_row_and_no_other() {
    for [weights, granularity] in PAIRS {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut case = Case::new(200, 40, 14, weights, true);
            let clean = case.expected(granularity);
            case.x[6 * 200 + 5] = bad;
            let packed = case.packed();
            for level in Int8Level::supported() {
                let y = case.run(level, granularity, &packed);
                let rows = y.chunks_exact(40).zip(clean.chunks_exact(40));
                for (row, (y, clean)) in rows.enumerate() {
                    if row == 6 {
                        assert!(y.iter().all(|y| y.is_nan()), "{level}, {bad}");
                    } else {
                        same_bits(y, clean, "beside a row that is not finite");
                    }
                }
            }
        }
    }
}
