//! The product of quantised activations and weights, in the one order that every kernel follows.
//!
//! For an output: `t = 0`; for each group `g` in increasing order `t ← fma(f32(Σ q_x · q_w), s[g], t)`,
//! the inner sum being exact in 32 bits. Weights with one scale per output: `s[g] = s_x[g]`, and at last
//! `y = fma(t, s_w, bias)`. Weights with a scale per group: `s[g] = s_x[g] · s_w[g]`, rounded, and at last
//! `y = t + bias`. The bias of a layer without one is zero.

use crate::{Granularity, QuantError, Quantised, expect_len};

/// Inputs whose products fit one 32-bit sum, activations in ±127 and weights in −128…127.
pub const MAX_INPUTS: usize = (i32::MAX / (127 * 128)) as usize;

/// `x · wᵀ + bias`, `[rows of x, rows of w]`. A NaN scale of an activation makes its row NaN.
///
/// # Errors
/// [`QuantError::Length`] where shapes do not fit, [`QuantError::Groups`] where weights have a scale per
/// group and activations do not have the same groups, and [`QuantError::TooManyInputs`].
pub fn linear(x: &Quantised, w: &Quantised, bias: Option<&[f32]>) -> Result<Vec<f32>, QuantError> {
    expect_len("inputs", x.columns(), w.columns())?;
    let (weights, activations) = (w.granularity(), x.granularity());
    if weights.of_activations(activations) != activations {
        return Err(QuantError::Groups {
            weights,
            activations,
        });
    }
    if let Some(bias) = bias {
        expect_len("biases", bias.len(), w.rows())?;
    }
    let group_len = x.granularity().group_len(x.columns());
    let inputs = group_len.min(x.columns());
    if inputs > MAX_INPUTS {
        return Err(QuantError::TooManyInputs { inputs });
    }
    let mut out = Vec::with_capacity(x.rows() * w.rows());
    for row in 0..x.rows() {
        for output in 0..w.rows() {
            let bias = bias.map_or(0.0, |bias| bias[output]);
            let sums = x
                .row(row)
                .chunks(group_len)
                .zip(w.row(output).chunks(group_len));
            let sums = sums.map(|(x, w)| dot(x, w) as f32);
            let (s_x, s_w) = (x.row_scales(row), w.row_scales(output));
            out.push(match weights {
                Granularity::Row => {
                    let scaled = sums.zip(s_x);
                    let total = scaled.fold(0.0f32, |t, (sum, s_x)| sum.mul_add(*s_x, t));
                    s_w.iter().fold(bias, |bias, s_w| total.mul_add(*s_w, bias))
                }
                Granularity::Groups(_) => {
                    let scaled = sums.zip(s_x.iter().zip(s_w));
                    let total =
                        scaled.fold(0.0f32, |t, (sum, (s_x, s_w))| sum.mul_add(s_x * s_w, t));
                    total + bias
                }
            });
        }
    }
    Ok(out)
}

/// `Σ x · w`, exact.
fn dot(x: &[i8], w: &[i8]) -> i32 {
    x.iter()
        .zip(w)
        .map(|(x, w)| i32::from(*x) * i32::from(*w))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BLOCK, GROUP, relative_error};

    fn numbers(seed: u32, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn close_to_the_product_of_floats_and_closer_with_groups() {
        for columns in [1, 7, 128, 300, 1000] {
            let (mut x, w) = (numbers(1, 5 * columns), numbers(2, 9 * columns));
            let bias = numbers(3, 9);
            x[..columns].fill(0.0);
            x[columns] = 100.0;
            let weights = Quantised::new(&w, 9, columns, Granularity::Row).expect("finite");
            let errors = [Granularity::Row, Granularity::Groups(GROUP)].map(|granularity| {
                let quantised = Quantised::new(&x, 5, columns, granularity).expect("finite");
                let y = linear(&quantised, &weights, Some(&bias)).expect("fits");
                assert_eq!(y[..9], bias, "a row of zeros");
                let mut exact = Vec::new();
                for x in x.chunks(columns) {
                    for (w, bias) in w.chunks(columns).zip(&bias) {
                        exact.push(x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>() + bias);
                    }
                }
                relative_error(&y[18..], &exact[18..])
            });
            assert!(
                errors[0] < 0.02 && errors[1] < 0.02,
                "{columns}: {errors:?}"
            );
        }
    }

    #[test]
    fn an_outlier_costs_less_with_groups() {
        let columns = 1024;
        let (mut x, w) = (numbers(1, columns), numbers(2, 64 * columns));
        x[5] = 300.0;
        let weights = Quantised::new(&w, 64, columns, Granularity::Row).expect("finite");
        let without: Vec<f32> = w
            .chunks(columns)
            .map(|w| (6..columns).map(|k| x[k] * w[k]).sum())
            .collect();
        // The error relative to what the ordinary inputs contribute.
        let errors = [Granularity::Row, Granularity::Groups(GROUP)].map(|granularity| {
            let quantised = Quantised::new(&x, 1, columns, granularity).expect("finite");
            let y = linear(&quantised, &weights, None).expect("fits");
            let heads = w
                .chunks(columns)
                .map(|w| (0..6).map(|k| x[k] * w[k]).sum::<f32>());
            let found: Vec<f32> = y.iter().zip(heads).map(|(y, head)| y - head).collect();
            relative_error(&found, &without)
        });
        assert!(errors[1] * 2.0 < errors[0], "{errors:?}");
    }

    #[test]
    fn the_integer_part_is_exact_at_the_limit() {
        let inputs = MAX_INPUTS;
        let x = Quantised::new(&vec![-1.0; inputs], 1, inputs, Granularity::Row);
        let w = Quantised::from_parts(vec![-128; inputs], vec![1.0], 1, inputs, Granularity::Row);
        let (x, w) = (x.expect("finite"), w.expect("fits"));
        let expected = (127 * 128 * inputs as i64) as f32 * (1.0f32 / 127.0);
        assert_eq!(linear(&x, &w, None).expect("fits"), [expected]);

        let inputs = MAX_INPUTS + 1;
        let x = Quantised::new(&vec![1.0; inputs], 1, inputs, Granularity::Row).expect("finite");
        let w = Quantised::new(&vec![1.0; inputs], 1, inputs, Granularity::Row).expect("finite");
        let refused = linear(&x, &w, None).expect_err("too long");
        assert_eq!(refused, QuantError::TooManyInputs { inputs });
        let x = Quantised::new(&vec![1.0; inputs], 1, inputs, Granularity::Groups(GROUP));
        linear(&x.expect("finite"), &w, None).expect("groups have no such limit");
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let make = |rows, columns, granularity| {
            Quantised::new(&vec![1.0; rows * columns], rows, columns, granularity).expect("finite")
        };
        let x = make(2, 2 * GROUP, Granularity::Groups(GROUP));
        let w = make(3, 2 * GROUP, Granularity::Row);
        assert_eq!(linear(&x, &w, None).expect("fits").len(), 6);
        for (w, bias) in [
            (make(3, GROUP, Granularity::Row), None),
            (w, Some(&[0.0; 2][..])),
        ] {
            let refused = linear(&x, &w, bias);
            assert!(
                matches!(refused, Err(QuantError::Length { .. })),
                "{refused:?}"
            );
        }
        let w = make(3, 2 * GROUP, Granularity::Groups(BLOCK));
        let refused = linear(&x, &w, None).expect_err("other groups");
        assert!(matches!(refused, QuantError::Groups { .. }), "{refused}");
        let x = make(2, 2 * GROUP, Granularity::Row);
        let refused = linear(&x, &w, None).expect_err("no groups");
        assert!(matches!(refused, QuantError::Groups { .. }), "{refused}");
    }

    /// Exact in powers of two: what a scale per group means, written out.
    #[test]
    fn weights_with_a_scale_per_group() {
        let columns = 2 * BLOCK + 3;
        let groups = Granularity::Groups(BLOCK);
        let values: Vec<i8> = (0..2 * columns).map(|i| (i % 11) as i8 - 5).collect();
        let scales = vec![0.5, 2.0, 0.25, 4.0, 0.0, 1.0];
        let w = Quantised::from_parts(values, scales, 2, columns, groups).expect("fits");
        // 127 in every group, so that its scale is one.
        let x: Vec<f32> = (0..columns)
            .map(|k| {
                if k % BLOCK == 0 {
                    127.0
                } else {
                    (k % 7) as f32 - 3.0
                }
            })
            .collect();
        let quantised = Quantised::new(&x, 1, columns, groups).expect("finite");
        let expected: Vec<f32> = w
            .dequantise()
            .chunks(columns)
            .map(|w| w.iter().zip(&x).map(|(w, x)| w * x).sum::<f32>() + 1.5)
            .collect();
        let y = linear(&quantised, &w, Some(&[1.5; 2])).expect("fits");
        assert_eq!(y, expected);
    }

    /// A group of weights that are far larger than the others costs less with a scale of its own.
    #[test]
    fn groups_of_weights_keep_small_weights() {
        let columns = 8 * GROUP;
        let mut w = numbers(2, 32 * columns);
        for w in w.chunks_mut(columns) {
            w[..GROUP].iter_mut().for_each(|w| *w *= 100.0);
        }
        let mut x = numbers(1, columns);
        x[..GROUP].fill(0.0);
        let exact: Vec<f32> = w
            .chunks(columns)
            .map(|w| w.iter().zip(&x).map(|(w, x)| w * x).sum())
            .collect();
        let groups = Granularity::Groups(GROUP);
        let x = Quantised::new(&x, 1, columns, groups).expect("finite");
        let errors = [Granularity::Row, groups].map(|granularity| {
            let w = Quantised::new(&w, 32, columns, granularity).expect("finite");
            relative_error(&linear(&x, &w, None).expect("fits"), &exact)
        });
        assert!(errors[1] * 10.0 < errors[0], "{errors:?}");
    }
}
