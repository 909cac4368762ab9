//! Rotary position embedding in half pairing, in place. Memory-bound.

use crate::isa::{Isa, Kernel};
use crate::simd::{LANES, Simd};

/// Rotates every head of one row: feature `i` turns with `i + cos.len()`, features from
/// `2 · cos.len()` on pass through. `row` is a whole number of heads of `head_dim` features.
///
/// # Panics
/// When the lengths do not fit together.
pub fn rope(isa: Isa, row: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    assert_eq!(cos.len(), sin.len(), "as many cosines as sines");
    assert!(2 * cos.len() <= head_dim && head_dim > 0 && row.len().is_multiple_of(head_dim));
    isa.dispatch(Heads {
        row,
        head_dim,
        cos,
        sin,
    });
}

struct Heads<'a> {
    row: &'a mut [f32],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Heads<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.cos.len();
        for head in self.row.chunks_exact_mut(self.head_dim) {
            let (first, rest) = head.split_at_mut(half);
            let second = &mut rest[..half];
            let mut i = 0;
            while i < half {
                let part = i..(i + LANES).min(half);
                let cos = s.load_slice(&self.cos[part.clone()]);
                let sin = s.load_slice(&self.sin[part.clone()]);
                let a = s.load_slice(&first[part.clone()]);
                let b = s.load_slice(&second[part.clone()]);
                let minus_b = s.sub(s.splat(0.0), b);
                i = part.end;
                s.store_slice(&mut first[part.clone()], s.fma(a, cos, s.mul(minus_b, sin)));
                s.store_slice(&mut second[part], s.fma(b, cos, s.mul(a, sin)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_data::{random, same_bits};

    #[test]
    fn rotation_is_right_and_the_same_on_every_level() {
        for (head_dim, rotary_dim) in [(2, 2), (20, 6), (20, 20), (64, 64), (80, 32), (5, 0)] {
            let half = rotary_dim / 2;
            let angles = random(7, half);
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            let x = random(8, 3 * head_dim);
            let mut expected = x.clone();
            rope(Isa::Scalar, &mut expected, head_dim, &cos, &sin);
            for (x, y) in x
                .chunks_exact(head_dim)
                .zip(expected.chunks_exact(head_dim))
            {
                for i in 0..half {
                    let (a, b) = (x[i], x[i + half]);
                    assert!((y[i] - (a * cos[i] - b * sin[i])).abs() < 1e-6);
                    assert!((y[i + half] - (b * cos[i] + a * sin[i])).abs() < 1e-6);
                }
                assert_eq!(x[rotary_dim..], y[rotary_dim..]);
            }
            for isa in Isa::supported() {
                let mut found = x.clone();
                rope(isa, &mut found, head_dim, &cos, &sin);
                same_bits(&found, &expected, &format!("{head_dim} {isa}"));
            }
        }
    }
}
