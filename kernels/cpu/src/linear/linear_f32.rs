//! The inner loop over f32 weights. Panel layout: `[inputs][32]`.

use super::{PANEL_WIDTH, Panel};
use crate::simd::{LANES, Simd};

/// Weights of 32 bits.
pub(super) struct F32;

impl Panel for F32 {
    type Word = f32;
    type Input = f32;
    const INPUTS_PER_ELEMENT: usize = 1;
    const INPUTS_PER_STEP: usize = 1;

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize>(
        s: S,
        x: *const f32,
        row_stride: usize,
        words: *const f32,
        inputs: usize,
    ) -> [[S::F; V]; R] {
        let zero = s.splat(0.0);
        let mut sums = [[zero; V]; R];
        for k in 0..inputs {
            let mut w = [zero; V];
            for v in 0..V {
                // SAFETY: step `k < inputs` of the panel, by the caller's promise.
                w[v] = unsafe { s.load_ptr(words.add(k * PANEL_WIDTH + v * LANES)) };
            }
            for r in 0..R {
                // SAFETY: input `k < inputs` of row `r < R`, by the caller's promise.
                let x = s.splat(unsafe { *x.add(r * row_stride + k) });
                for v in 0..V {
                    sums[r][v] = s.fma(x, w[v], sums[r][v]);
                }
            }
        }
        sums
    }
}
