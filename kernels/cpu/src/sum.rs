//! The canonical sum over a row: 256 strided lanes, each adding its elements in increasing index; a
//! butterfly inside each group of 32 lanes (distance 16, 8, 4, 2, 1); then the eight groups in order.

use crate::simd::{LANES, Simd};

/// Lanes of the canonical sum.
const STRIDE: usize = 256;
/// Vectors that hold them.
const VECTORS: usize = STRIDE / LANES;

/// What a lane adds for an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Term {
    /// The element.
    Value,
    /// `(x − offset)²`, fused into the running sum.
    SquaredDifference,
}

/// `Σ x` or `Σ (x − offset)²` in the canonical order.
#[inline(always)]
pub(crate) fn sum<S: Simd>(s: S, x: &[f32], term: Term, offset: f32) -> f32 {
    let zero = s.splat(0.0);
    let mut lanes = [zero; VECTORS];
    let offset_lanes = s.splat(offset);
    let (rows, rest) = x.as_chunks::<STRIDE>();
    for row in rows {
        let (vectors, _) = row.as_chunks::<LANES>();
        for i in 0..VECTORS {
            lanes[i] = accumulate(s, s.load(&vectors[i]), term, offset_lanes, lanes[i]);
        }
    }
    let (vectors, tail) = rest.as_chunks::<LANES>();
    let mut i = 0;
    while i < vectors.len() {
        lanes[i] = accumulate(s, s.load(&vectors[i]), term, offset_lanes, lanes[i]);
        i += 1;
    }
    if !tail.is_empty() {
        // Absent elements equal the offset and add zero.
        let mut padded = [if term == Term::Value { 0.0 } else { offset }; LANES];
        padded[..tail.len()].copy_from_slice(tail);
        lanes[i] = accumulate(s, s.load(&padded), term, offset_lanes, lanes[i]);
    }
    let mut total = s.sum(s.add(lanes[0], lanes[1]));
    for group in 1..VECTORS / 2 {
        total += s.sum(s.add(lanes[2 * group], lanes[2 * group + 1]));
    }
    total
}

#[inline(always)]
fn accumulate<S: Simd>(s: S, x: S::F, term: Term, offset: S::F, sum: S::F) -> S::F {
    match term {
        Term::Value => s.add(sum, x),
        Term::SquaredDifference => {
            let d = s.sub(x, offset);
            s.fma(d, d, sum)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{Isa, Kernel};
    use crate::test_data::{random, same_bits};

    struct Sum<'a>(&'a [f32], Term, f32, &'a mut f32);

    impl Kernel for Sum<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            *self.3 = sum(s, self.0, self.1, self.2);
        }
    }

    /// The definition, lane by lane.
    fn expected(x: &[f32], term: Term, offset: f32) -> f32 {
        let mut lanes = [0.0f32; STRIDE];
        for (i, x) in x.iter().enumerate() {
            let lane = &mut lanes[i % STRIDE];
            *lane = match term {
                Term::Value => *lane + x,
                Term::SquaredDifference => (x - offset).mul_add(x - offset, *lane),
            };
        }
        let groups = lanes.chunks_exact_mut(32).map(|group| {
            for distance in [16, 8, 4, 2, 1] {
                for lane in 0..distance {
                    group[lane] += group[lane + distance];
                }
            }
            group[0]
        });
        groups.reduce(|a, b| a + b).expect("eight groups")
    }

    #[test]
    fn every_level_follows_the_definition() {
        for len in [
            0, 1, 15, 16, 17, 31, 64, 255, 256, 257, 300, 576, 2048, 4099,
        ] {
            let x = random(len as u64, len);
            for term in [Term::Value, Term::SquaredDifference] {
                for isa in Isa::supported() {
                    let mut found = 0.0;
                    isa.dispatch(Sum(&x, term, 0.25, &mut found));
                    let want = expected(&x, term, 0.25);
                    same_bits(&[found], &[want], &format!("{len} {term:?} {isa}"));
                }
            }
        }
    }
}
