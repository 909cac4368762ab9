//! The inner loop over bfloat16 weights and activations, two inputs at a time. Panels are those of
//! `linear_bf16`.

use super::{PANEL_WIDTH, Panel, TaskOf};
use crate::isa::Isa;
use crate::simd::{LANES, Simd};

/// Weights and activations of 16 bits.
pub(super) struct Bf16Pairs;

impl Panel for Bf16Pairs {
    type Word = u32;
    type Input = u32;
    const INPUTS_PER_ELEMENT: usize = 2;
    const INPUTS_PER_STEP: usize = 2;

    fn dispatch(isa: Isa, task: TaskOf<'_, Self>) {
        isa.dispatch_bf16(task);
    }

    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize>(
        s: S,
        x: *const u32,
        row_stride: usize,
        words: *const u32,
        inputs: usize,
    ) -> [[S::F; V]; R] {
        let mut sums = [[s.splat(0.0); V]; R];
        for step in 0..inputs.div_ceil(2) {
            let mut w = [s.splat_pair(0); V];
            for v in 0..V {
                // SAFETY: a step of the panel that covers inputs below `inputs`.
                w[v] = unsafe { s.load_pairs_ptr(words.add(step * PANEL_WIDTH + v * LANES)) };
            }
            for r in 0..R {
                // SAFETY: `2·step < inputs`, and row `r < R`.
                let x = s.splat_pair(unsafe { *x.add(r * row_stride + step) });
                for v in 0..V {
                    sums[r][v] = s.dot(sums[r][v], w[v], x);
                }
            }
        }
        sums
    }
}
