//! Norms, rotation and activations of the reference target.

use super::{Tensor, expect_below, expect_equal};
use crate::{Activation, BackendError, Norm, NormKind, Result, Rope, Routing};

pub(super) fn norm(x: &Tensor, norm: &Norm<Tensor>) -> Result<Tensor> {
    expect_equal("norm weight", norm.weight.data.len(), x.columns)?;
    if let Some(bias) = &norm.bias {
        expect_equal("norm bias", bias.data.len(), x.columns)?;
    }
    if norm.width == 0 || !x.columns.is_multiple_of(norm.width) {
        return Err(BackendError::Shape(format!(
            "norm width {} of {} features",
            norm.width, x.columns
        )));
    }
    let mut out = x.clone();
    for row in 0..x.rows {
        for (group, values) in out.row_mut(row).chunks_exact_mut(norm.width).enumerate() {
            normalise(values, norm.kind, norm.eps);
            let start = group * norm.width;
            values
                .iter_mut()
                .zip(&norm.weight.data[start..])
                .for_each(|(x, w)| *x *= w);
            if let Some(bias) = &norm.bias {
                values
                    .iter_mut()
                    .zip(&bias.data[start..])
                    .for_each(|(x, b)| *x += b);
            }
        }
    }
    Ok(out)
}

fn normalise(values: &mut [f32], kind: NormKind, eps: f32) {
    let count = values.len() as f32;
    if kind == NormKind::Layer {
        let mean = values.iter().sum::<f32>() / count;
        values.iter_mut().for_each(|x| *x -= mean);
    }
    let variance = values.iter().map(|x| x * x).sum::<f32>() / count;
    let scale = 1.0 / (variance + eps).sqrt();
    values.iter_mut().for_each(|x| *x *= scale);
}

pub(super) fn rope(x: &mut Tensor, rope: &Rope<Tensor>, positions: &[usize]) -> Result<()> {
    expect_equal("rotated tokens", x.rows, positions.len())?;
    expect_equal("rope table", rope.table.columns, rope.rotary_dim)?;
    if rope.head_dim == 0 || !x.columns.is_multiple_of(rope.head_dim) {
        return Err(BackendError::Shape(format!(
            "heads of {} in {} features",
            rope.head_dim, x.columns
        )));
    }
    if rope.rotary_dim > rope.head_dim || !rope.rotary_dim.is_multiple_of(2) {
        return Err(BackendError::Shape(format!(
            "{} of {} features of a head turn",
            rope.rotary_dim, rope.head_dim
        )));
    }
    let half = rope.rotary_dim / 2;
    for (row, position) in positions.iter().enumerate() {
        expect_below("position", *position, rope.table.rows)?;
        let (cos, sin) = rope.table.row(*position).split_at(half);
        for head in x.row_mut(row).chunks_exact_mut(rope.head_dim) {
            for i in 0..half {
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos[i] - b * sin[i];
                head[i + half] = b * cos[i] + a * sin[i];
            }
        }
    }
    Ok(())
}

/// Turns the router logits of one token into the weights of its experts, as
/// [`Backend::route`](crate::Backend::route) says. A logit that is not a number makes all weights so.
pub fn route_row(row: &mut [f32], routing: &Routing) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|x| *x = (*x - max).exp());
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|x| *x /= sum);
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    let (chosen, others) = order.split_at(routing.top_k.min(row.len()));
    others.iter().for_each(|expert| row[*expert] = 0.0);
    if routing.renormalise {
        let sum: f32 = chosen.iter().map(|expert| row[*expert]).sum();
        chosen.iter().for_each(|expert| row[*expert] /= sum);
    }
}

pub(super) fn activation(x: f32, activation: Activation) -> f32 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Activation::SoftCap(cap) => cap * (x / cap).tanh(),
    }
}

/// The error function in double precision: its Maclaurin series near zero (Abramowitz and Stegun
/// 7.1.5), the continued fraction of its complement beyond (7.1.14). NaN stays NaN.
fn erf(x: f32) -> f32 {
    let z = f64::from(x).abs();
    let value = if z < 2.5 {
        let (mut term, mut sum) = (z, z);
        for n in 1..60 {
            let n = f64::from(n);
            term *= -z * z / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60)
            .rev()
            .fold(z, |tail, n| z + f64::from(n) / 2.0 / tail);
        1.0 - (-z * z).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    if x < 0.0 { -value as f32 } else { value as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_function_matches_its_table() {
        // Abramowitz and Stegun, table 7.1.
        for (x, expected) in [
            (0.0, 0.0),
            (0.5, 0.520_499_9),
            (1.0, 0.842_700_8),
            (2.0, 0.995_322_3),
            (3.0, 0.999_977_9),
        ] {
            assert!((erf(x) - expected).abs() < 1e-6, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!(erf(f32::NAN).is_nan());
        assert_eq!(erf(30.0), 1.0);
    }

    #[test]
    fn the_best_experts_share_the_weight() {
        let logits = [1.0f32, 3.0, 2.0, 3.0].map(f32::ln);
        for (top_k, renormalise, expected) in [
            (1, false, [0.0, 3.0 / 9.0, 0.0, 0.0]),
            (1, true, [0.0, 1.0, 0.0, 0.0]),
            (3, false, [0.0, 3.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]),
            (3, true, [0.0, 3.0 / 8.0, 2.0 / 8.0, 3.0 / 8.0]),
        ] {
            let mut row = logits;
            route_row(&mut row, &Routing { top_k, renormalise });
            for (found, expected) in row.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{row:?}");
            }
        }
        let mut row = [0.0, f32::NAN, 1.0];
        let routing = Routing {
            top_k: 1,
            renormalise: true,
        };
        route_row(&mut row, &routing);
        assert!(row.iter().any(|weight| weight.is_nan()));
    }

    #[test]
    fn nan_is_never_hidden() {
        for kind in [
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Relu,
            Activation::SoftCap(3.0),
        ] {
            assert!(activation(f32::NAN, kind).is_nan(), "{kind:?}");
        }
    }
}
