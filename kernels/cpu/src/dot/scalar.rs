//! The twin without vector instructions. It takes the offset back from each weight.

use super::{Dot, OFFSET, STEP};
use crate::simd::{LANES, Scalar};

impl Dot for Scalar {
    type S = Self;
    type Sums = [i32; LANES];
    type Weights = [[i32; STEP]; LANES];

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn start(self, _offset: i32) -> Self::Sums {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> Self::Weights {
        let mut weights = [[0; STEP]; LANES];
        for lane in 0..LANES {
            for input in 0..STEP {
                // SAFETY: below 64, the number of bytes that the caller answers for.
                let stored = unsafe { *from.add(lane * STEP + input) };
                weights[lane][input] = i32::from(stored) - i32::from(OFFSET);
            }
        }
        weights
    }

    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}

    #[inline(always)]
    fn add(self, mut sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums {
        let x = x.to_ne_bytes();
        for lane in 0..LANES {
            for input in 0..STEP {
                sums[lane] += i32::from(x[input] as i8) * weights[lane][input];
            }
        }
        sums
    }

    #[inline(always)]
    fn to_f32(self, sums: Self::Sums) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for lane in 0..LANES {
            out[lane] = sums[lane] as f32;
        }
        out
    }
}
