//! `out[m, n] = Σ_k x[m, k] · w[n, k] + bias[n]`, for any number of rows in one order.
//!
//! The order of an output: inputs are taken in blocks of 256; inside a block one running sum, fused
//! multiply-adds in increasing `k`; the blocks' sums are added in order; then the bias; then, where
//! asked for, the value that was in `out`. Rows share loads of weights and nothing else, so a row's
//! bits do not depend on how many there are. 16-bit weights are widened exactly and follow the same
//! order.
//!
//! [`linear_bf16()`] multiplies with activations rounded to 16 bits too. Its order is that of the
//! instruction for it, which the other levels follow: inputs in pairs, inside a pair the second first.
//! Numbers below 2⁻⁵⁶ count as zero in both operands.
//!
//! One task is one panel of 32 outputs and up to 192 rows; the panel's block of 256 inputs stays in
//! the first two cache levels while the rows pass. Few rows: bound by reading the weights once. Many
//! rows: bound by the multiply-adds (12 × 32 tiles, 24 accumulators, where 32 registers exist; 6 × 16
//! otherwise).

mod bf16_rows;
mod linear_bf16;
mod linear_bf16_pairs;
mod linear_f32;
#[cfg(test)]
mod tests;
mod weight;

use std::mem::MaybeUninit;

use crate::isa::{Isa, Kernel};
use crate::runner::{Shared, TaskRunner};
use crate::simd::{LANES, Simd};
pub use bf16_rows::Bf16Rows;
use linear_bf16::Bf16;
use linear_bf16_pairs::Bf16Pairs;
use linear_f32::F32;
use weight::Storage;
pub use weight::{Bf16Weight, LinearWeight, PANEL_WIDTH};

/// Inputs that one running sum takes.
const K_BLOCK: usize = 256;
/// Rows of one task; a multiple of every tile height.
const TASK_ROWS: usize = 192;

/// What happens to the value that `out` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    /// It is overwritten.
    Store,
    /// The result is added to it.
    Add,
}

/// Multiplies the rows of `x`, each `weight.inputs()` long, into the rows of `out`, each
/// `weight.outputs()` long.
///
/// # Panics
/// When the lengths do not fit together.
pub fn linear(
    isa: Isa,
    runner: &dyn TaskRunner,
    x: &[f32],
    weight: &LinearWeight,
    bias: Option<&[f32]>,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    let rows = Operand {
        elements: x,
        row_stride: weight.inputs(),
        inputs: weight.inputs(),
    };
    let results = Results {
        out,
        outputs: weight.outputs(),
        bias,
        epilogue,
    };
    match weight.storage() {
        Storage::F32(words) => each_panel::<F32>(isa, runner, rows, words, results),
        Storage::Bf16(words) => each_panel::<Bf16>(isa, runner, rows, words, results),
    }
}

/// As [`linear`], with activations and weights of 16 bits.
///
/// # Panics
/// When the lengths do not fit together.
pub fn linear_bf16(
    isa: Isa,
    runner: &dyn TaskRunner,
    x: &Bf16Rows,
    weight: &Bf16Weight,
    bias: Option<&[f32]>,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    assert_eq!(x.inputs(), weight.inputs(), "rows of inputs");
    let rows = Operand {
        elements: x.words(),
        row_stride: x.row_words(),
        inputs: x.inputs(),
    };
    let results = Results {
        out,
        outputs: weight.outputs(),
        bias,
        epilogue,
    };
    each_panel::<Bf16Pairs>(isa, runner, rows, weight.words(), results);
}

/// Rows of activations.
#[derive(Clone, Copy)]
struct Operand<'a, X> {
    elements: &'a [X],
    row_stride: usize,
    inputs: usize,
}

/// Where results go, and what joins them.
struct Results<'a> {
    out: &'a mut [f32],
    outputs: usize,
    bias: Option<&'a [f32]>,
    epilogue: Epilogue,
}

/// Multiplies every panel with every run of up to [`TASK_ROWS`] rows.
fn each_panel<P: Panel>(
    isa: Isa,
    runner: &dyn TaskRunner,
    x: Operand<'_, P::Input>,
    words: &[P::Word],
    results: Results<'_>,
) {
    let Results {
        out,
        outputs,
        bias,
        epilogue,
    } = results;
    assert!(
        x.elements.len().is_multiple_of(x.row_stride),
        "whole rows of inputs"
    );
    let rows = x.elements.len() / x.row_stride;
    assert_eq!(out.len(), rows * outputs, "one result per row and output");
    assert!(bias.is_none_or(|bias| bias.len() == outputs));
    let panel_len = x.inputs.div_ceil(P::INPUTS_PER_STEP) * PANEL_WIDTH;
    assert_eq!(words.len(), outputs.div_ceil(PANEL_WIDTH) * panel_len);
    let row_blocks = rows.div_ceil(TASK_ROWS);
    let out = Shared(out.as_mut_ptr());
    runner.run(row_blocks * (words.len() / panel_len), &|index| {
        let (panel, first_row) = (index / row_blocks, index % row_blocks * TASK_ROWS);
        let num_rows = TASK_ROWS.min(rows - first_row);
        let first_output = panel * PANEL_WIDTH;
        let task = Task {
            x: &x.elements[first_row * x.row_stride..(first_row + num_rows) * x.row_stride],
            row_stride: x.row_stride,
            inputs: x.inputs,
            num_rows,
            tile: OutputTile {
                // SAFETY: the row and the output lie inside `out`, whose length is asserted above.
                start: unsafe { out.get().add(first_row * outputs + first_output) },
                row_stride: outputs,
                width: PANEL_WIDTH.min(outputs - first_output),
                bias: bias.map(|bias| &bias[first_output..]),
                epilogue,
            },
        };
        // Every task writes its own rows and outputs: `index` comes once (`TaskRunner`).
        let words = &words[panel * panel_len..(panel + 1) * panel_len];
        P::dispatch(isa, TaskOf(task, words));
    });
}

/// An element type of packed weights and its inner loop.
trait Panel: Sized {
    /// What a panel is made of; 32 per step.
    type Word: Sync;
    /// What a row of activations is made of.
    type Input: Sync;
    /// Inputs that one element of a row holds.
    const INPUTS_PER_ELEMENT: usize;
    /// Inputs that one step of 32 words covers.
    const INPUTS_PER_STEP: usize;

    /// Runs a task at a level.
    fn dispatch(isa: Isa, task: TaskOf<'_, Self>) {
        isa.dispatch(task);
    }

    /// The sums of one block of `inputs` inputs for `R` rows and `V` vectors of outputs.
    ///
    /// # Safety
    /// `R` rows of `inputs` inputs can be read at `x`, `row_stride` elements apart; the panel's words of
    /// `inputs` inputs can be read at `words`, of which `V` vectors of each step are used.
    unsafe fn tile<S: Simd, const R: usize, const V: usize>(
        s: S,
        x: *const Self::Input,
        row_stride: usize,
        words: *const Self::Word,
        inputs: usize,
    ) -> [[S::F; V]; R];
}

/// Where a task's results go.
#[derive(Clone, Copy)]
struct OutputTile<'a> {
    start: *mut f32,
    row_stride: usize,
    /// Outputs that exist; the panel's other columns are padding.
    width: usize,
    /// From the first output of the tile on.
    bias: Option<&'a [f32]>,
    epilogue: Epilogue,
}

struct Task<'a, X> {
    /// `num_rows` rows of `inputs`.
    x: &'a [X],
    row_stride: usize,
    inputs: usize,
    num_rows: usize,
    tile: OutputTile<'a>,
}

struct TaskOf<'a, P: Panel>(Task<'a, P::Input>, &'a [P::Word]);

impl<P: Panel> Kernel for TaskOf<'_, P> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self(task, words) = self;
        let mut totals = [MaybeUninit::<f32>::uninit(); TASK_ROWS * PANEL_WIDTH];
        let totals = totals.as_mut_ptr().cast::<f32>();
        let mut first = 0;
        while first < task.inputs {
            let block = Block {
                x: task.x[first / P::INPUTS_PER_ELEMENT..].as_ptr(),
                row_stride: task.row_stride,
                words: words[first / P::INPUTS_PER_STEP * PANEL_WIDTH..].as_ptr(),
                inputs: K_BLOCK.min(task.inputs - first),
                totals,
                is_first: first == 0,
            };
            // SAFETY: the block's rows and words lie inside `task.x` and `words` (`each_panel`
            // asserts the lengths), and `totals` has room for `num_rows ≤ TASK_ROWS` rows.
            unsafe { block.run::<S, P>(s, task.num_rows) };
            first += K_BLOCK;
        }
        for row in 0..task.num_rows {
            // SAFETY: the first block wrote all of this row's totals; the tile's row lies inside
            // `out` and belongs to this task (`each_panel`).
            unsafe { task.tile.finish(s, row, totals.add(row * PANEL_WIDTH)) };
        }
    }
}

/// One block of inputs for the rows of a task.
struct Block<X, W> {
    x: *const X,
    row_stride: usize,
    words: *const W,
    inputs: usize,
    totals: *mut f32,
    /// Whether totals are still unwritten.
    is_first: bool,
}

impl<X, W> Block<X, W> {
    /// # Safety
    /// `num_rows` rows of `inputs` inputs lie at `x`, `row_stride` apart; the block's words lie at
    /// `words`; `num_rows` rows of 32 totals lie at `totals`, written unless `is_first`.
    #[inline(always)]
    unsafe fn run<S: Simd, P: Panel<Input = X, Word = W>>(&self, s: S, num_rows: usize) {
        let mut row = 0;
        // SAFETY: every call stays below `num_rows`; the rest is the caller's promise.
        unsafe {
            if S::WIDE {
                self.rows::<S, P, 12, 2>(s, &mut row, num_rows);
                self.rows::<S, P, 8, 2>(s, &mut row, num_rows);
                self.rows::<S, P, 4, 2>(s, &mut row, num_rows);
            } else {
                self.rows::<S, P, 6, 1>(s, &mut row, num_rows);
                self.rows::<S, P, 4, 1>(s, &mut row, num_rows);
            }
            self.rows::<S, P, 2, 2>(s, &mut row, num_rows);
            self.rows::<S, P, 1, 2>(s, &mut row, num_rows);
        }
    }

    /// Tiles of `R` rows, as many as fit.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn rows<S: Simd, P: Panel<Input = X, Word = W>, const R: usize, const V: usize>(
        &self,
        s: S,
        row: &mut usize,
        num_rows: usize,
    ) {
        while *row + R <= num_rows {
            let mut vector = 0;
            while vector * LANES < PANEL_WIDTH {
                // SAFETY: `row + R ≤ num_rows` rows exist, and `V` vectors from `vector` on lie
                // inside the 32 words of a step.
                unsafe {
                    let sums = P::tile::<S, R, V>(
                        s,
                        self.x.add(*row * self.row_stride),
                        self.row_stride,
                        self.words.add(vector * LANES),
                        self.inputs,
                    );
                    self.accumulate(s, *row, vector, sums);
                }
                vector += V;
            }
            *row += R;
        }
    }

    /// # Safety
    /// As for `run`; `row + R` rows and `vector + V` vectors of totals exist.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const R: usize, const V: usize>(
        &self,
        s: S,
        row: usize,
        vector: usize,
        sums: [[S::F; V]; R],
    ) {
        for r in 0..R {
            for v in 0..V {
                // SAFETY: inside the totals by the caller's promise; read only when written.
                unsafe {
                    let total = self
                        .totals
                        .add((row + r) * PANEL_WIDTH + (vector + v) * LANES);
                    let sum = if self.is_first {
                        sums[r][v]
                    } else {
                        s.add(s.load_ptr(total), sums[r][v])
                    };
                    s.store_ptr(total, sum);
                }
            }
        }
    }
}

impl OutputTile<'_> {
    /// Adds bias and old value and writes one row.
    ///
    /// # Safety
    /// 32 totals can be read at `totals`; the tile has this row, and nobody else uses it.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, s: S, row: usize, totals: *const f32) {
        let mut first = 0;
        while first < self.width {
            let len = LANES.min(self.width - first);
            // SAFETY: `first + len ≤ width` outputs of this row exist and are ours; `first + 16 ≤ 32`.
            let (out, total) = unsafe {
                let start = self.start.add(row * self.row_stride + first);
                (
                    std::slice::from_raw_parts_mut(start, len),
                    s.load_ptr(totals.add(first)),
                )
            };
            let mut y = total;
            if let Some(bias) = self.bias {
                y = s.add(y, s.load_slice(&bias[first..first + len]));
            }
            if self.epilogue == Epilogue::Add {
                y = s.add(s.load_slice(out), y);
            }
            s.store_slice(out, y);
            first += len;
        }
    }
}
