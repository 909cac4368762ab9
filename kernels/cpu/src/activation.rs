//! Element-wise functions, in place, and their product with a second half.

use crate::isa::{Isa, Kernel};
use crate::math::{gelu, one_plus_exp_neg, tanh};
use crate::simd::{LANES, Simd};

/// Element-wise functions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`.
    Gelu,
    /// `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))` (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `cap · tanh(x / cap)`.
    SoftCap(f32),
}

/// Applies the function to every element.
pub fn activate(isa: Isa, x: &mut [f32], activation: Activation) {
    isa.dispatch(InPlace { x, activation });
}

/// `out[r, i] = activation(x[r, i]) · x[r, width + i]` for rows `[gate | up]` of `2 · width`.
///
/// # Panics
/// When the lengths do not fit together.
pub fn gated(isa: Isa, x: &[f32], width: usize, activation: Activation, out: &mut [f32]) {
    assert_eq!(x.len(), 2 * out.len(), "two inputs for each result");
    assert!(width > 0 && out.len().is_multiple_of(width));
    isa.dispatch(Gated {
        x,
        width,
        activation,
        out,
    });
}

struct InPlace<'a> {
    x: &'a mut [f32],
    activation: Activation,
}

impl Kernel for InPlace<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.x.chunks_mut(LANES) {
            let y = apply(s, s.load_slice(x), self.activation);
            s.store_slice(x, y);
        }
    }
}

struct Gated<'a> {
    x: &'a [f32],
    width: usize,
    activation: Activation,
    out: &'a mut [f32],
}

impl Kernel for Gated<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (row, out) in self.out.chunks_exact_mut(self.width).enumerate() {
            let x = &self.x[row * 2 * self.width..(row + 1) * 2 * self.width];
            let (gate, up) = x.split_at(self.width);
            let mut i = 0;
            while i < self.width {
                let part = i..(i + LANES).min(self.width);
                let y = apply(s, s.load_slice(&gate[part.clone()]), self.activation);
                let y = s.mul(y, s.load_slice(&up[part.clone()]));
                i = part.end;
                s.store_slice(&mut out[part], y);
            }
        }
    }
}

#[inline(always)]
fn apply<S: Simd>(s: S, x: S::F, activation: Activation) -> S::F {
    match activation {
        Activation::Silu => s.div(x, one_plus_exp_neg(s, x)),
        Activation::Gelu => gelu(s, x),
        Activation::GeluTanh => {
            // 0.5·(1 + tanh u) is the sigmoid of 2u.
            const TWO_ROOT: f32 = 1.595_769;
            let cube = s.mul(s.mul(x, x), x);
            let u = s.mul(s.fma(cube, s.splat(0.044_715), x), s.splat(TWO_ROOT));
            s.div(x, one_plus_exp_neg(s, u))
        }
        Activation::Relu => s.select_less(x, s.splat(0.0), s.splat(0.0), x),
        Activation::SoftCap(cap) => {
            let cap = s.splat(cap);
            s.mul(cap, tanh(s, s.div(x, cap)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{random, same_bits};

    const ALL: [Activation; 5] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::SoftCap(2.5),
    ];

    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            // The tanh form differs from the exact one by less than 5e-4; `math` tests the exact one.
            Activation::Gelu | Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::Relu => x.max(0.0),
            Activation::SoftCap(cap) => f64::from(cap) * (x / f64::from(cap)).tanh(),
        }
    }

    #[test]
    fn activations_are_accurate() {
        for activation in ALL {
            let tolerance = if activation == Activation::Gelu {
                5e-4
            } else {
                1e-6
            };
            let x: Vec<f32> = (-400..400).map(|i| i as f32 * 0.031).collect();
            let mut y = x.clone();
            activate(Isa::Scalar, &mut y, activation);
            for (x, y) in x.iter().zip(&y) {
                let want = exact(activation, f64::from(*x));
                let error = (f64::from(*y) - want).abs();
                assert!(
                    error <= tolerance * (1.0 + want.abs()),
                    "{activation:?}({x}) = {y}"
                );
            }
        }
    }

    #[test]
    fn levels_and_the_fused_form_agree_on_bits() {
        for width in [1, 7, 16, 33, 96] {
            let mut x = random(5, 6 * width);
            x[0] = f32::NAN;
            x[2 * width] = -300.0;
            for activation in ALL {
                let mut expected = Vec::new();
                for row in x.chunks_exact(2 * width) {
                    let mut gate = row[..width].to_vec();
                    activate(Isa::Scalar, &mut gate, activation);
                    expected.extend(gate.iter().zip(&row[width..]).map(|(g, u)| g * u));
                }
                for isa in Isa::supported() {
                    let mut found = vec![0.0; 3 * width];
                    gated(isa, &x, width, activation, &mut found);
                    same_bits(&found, &expected, &format!("{activation:?} {width} {isa}"));
                    assert!(found[0].is_nan());
                }
            }
        }
    }
}
