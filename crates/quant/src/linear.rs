//! The product of quantised activations and weights, in the one order that every kernel follows.
//!
//! For an output: `t = 0`; for each group `g` in increasing order `t ← fma(f32(Σ q_x · q_w), s_x[g], t)`,
//! the inner sum being exact in 32 bits; then `y = fma(t, s_w, bias)`, the bias of a layer without one
//! being zero.

use crate::{QuantError, Quantised, expect_len};

/// Inputs whose products fit one 32-bit sum, activations in ±127 and weights in −128…127.
pub const MAX_INPUTS: usize = (i32::MAX / (127 * 128)) as usize;

/// `x · wᵀ + bias`, `[rows of x, rows of w]`. A NaN scale of an activation makes its row NaN.
///
/// # Errors
/// [`QuantError::Length`] where shapes do not fit or weights have more than one scale per row, and
/// [`QuantError::TooManyInputs`].
pub fn linear(x: &Quantised, w: &Quantised, bias: Option<&[f32]>) -> Result<Vec<f32>, QuantError> {
    expect_len("inputs", x.columns(), w.columns())?;
    expect_len("weight scales", w.scales().len(), w.rows())?;
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
            let groups = x.row(row).chunks(group_len);
            let weights = w.row(output).chunks(group_len);
            let mut total = 0.0f32;
            for ((x, w), scale) in groups.zip(weights).zip(x.row_scales(row)) {
                total = (dot(x, w) as f32).mul_add(*scale, total);
            }
            let bias = bias.map_or(0.0, |bias| bias[output]);
            out.push(total.mul_add(w.row_scales(output)[0], bias));
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
    use crate::{GROUP, Granularity, relative_error};

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
            let errors = [Granularity::Row, Granularity::Group].map(|granularity| {
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
        let errors = [Granularity::Row, Granularity::Group].map(|granularity| {
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
        let x = Quantised::new(&vec![1.0; inputs], 1, inputs, Granularity::Group);
        linear(&x.expect("finite"), &w, None).expect("groups have no such limit");
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let make = |rows, columns, granularity| {
            Quantised::new(&vec![1.0; rows * columns], rows, columns, granularity).expect("finite")
        };
        let x = make(2, 2 * GROUP, Granularity::Group);
        let w = make(3, 2 * GROUP, Granularity::Row);
        assert_eq!(linear(&x, &w, None).expect("fits").len(), 6);
        for (w, bias) in [
            (make(3, GROUP, Granularity::Row), None),
            (make(3, 2 * GROUP, Granularity::Group), None),
            (w, Some(&[0.0; 2][..])),
        ] {
            let refused = linear(&x, &w, bias);
            assert!(
                matches!(refused, Err(QuantError::Length { .. })),
                "{refused:?}"
            );
        }
    }
}
