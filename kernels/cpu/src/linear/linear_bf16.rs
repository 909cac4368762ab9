//! The inner loop over bfloat16 weights, widened in registers. Panel layout: `[inputs/2][32]` words,
//! the even input in the low half of a word and the odd one in the high half, as pair instructions
//! want them.

use super::{PANEL_WIDTH, Panel};
use crate::simd::{LANES, Simd};

/// Weights of 16 bits.
pub(super) struct Bf16;

impl Panel for Bf16 {
    type Word = u32;
    type Input = f32;
    const INPUTS_PER_ELEMENT: usize = 1;
    const INPUTS_PER_STEP: usize = 2;

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize>(
        s: S,
        x: *const f32,
        row_stride: usize,
        words: *const u32,
        inputs: usize,
    ) -> [[S::F; V]; R] {
        let zero = s.splat(0.0);
        let mut sums = [[zero; V]; R];
        for step in 0..inputs.div_ceil(2) {
            let (mut even, mut odd) = ([zero; V], [zero; V]);
            for v in 0..V {
                // SAFETY: a step of the panel that covers inputs below `inputs`.
                let pair =
                    unsafe { s.load_bf16_pairs_ptr(words.add(step * PANEL_WIDTH + v * LANES)) };
                (even[v], odd[v]) = pair;
            }
            for r in 0..R {
                // SAFETY: `2·step < inputs`, and row `r < R`.
                let x = s.splat(unsafe { *x.add(r * row_stride + 2 * step) });
                for v in 0..V {
                    sums[r][v] = s.fma(x, even[v], sums[r][v]);
                }
            }
            if 2 * step + 1 == inputs {
                break;
            }
            for r in 0..R {
                // SAFETY: `2·step + 1 < inputs`, and row `r < R`.
                let x = s.splat(unsafe { *x.add(r * row_stride + 2 * step + 1) });
                for v in 0..V {
                    sums[r][v] = s.fma(x, odd[v], sums[r][v]);
                }
            }
        }
        sums
    }
}
