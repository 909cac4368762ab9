//! `out[m, n] = Σ_k x[m, k] · w[n, k] + bias[n]` for 8-bit activations and weights, in the order of
//! `quant::linear`: the exact integer sum of a group of inputs, converted and multiplied with the
//! group's scale onto a running total; then the scale of the output, where groups have none of their
//! own, and the bias; then, where asked for, the value that was in `out`. Nothing in it depends on the number of rows, so a row's bits are
//! the same in every batch.
//!
//! One task is one panel of 32 outputs and up to 96 rows. Tiles of up to 12 × 32 outputs (24 integer
//! accumulators, where 32 registers exist; 4 × 16 otherwise) walk the whole panel, which stays in the
//! second cache level while the rows pass. Few rows: bound by reading the weights once, a byte each.
//! Many rows: bound by the multiply-adds.

#[cfg(test)]
mod tests;
mod weight;

use quant::{Granularity, MAX_INPUTS};

use crate::dot::{Dot, DotKernel, Int8Level, STEP};
use crate::linear::{Epilogue, PANEL_WIDTH};
use crate::quantise::{QuantisedRows, RowLayout};
use crate::runner::{Shared, TaskRunner};
use crate::simd::{LANES, Simd};
pub use weight::{PackError, QuantisedWeight};

/// Rows of one task; a multiple of every tile height.
const TASK_ROWS: usize = 96;
/// Bytes of a panel that one step of four inputs takes.
const STEP_BYTES: usize = PANEL_WIDTH * STEP;

/// Multiplies quantised rows into the rows of `out`, each `weight.outputs()` long.
///
/// # Panics
/// When the lengths do not fit together, weights have scales for other groups than `x`, or the inputs
/// that share a scale are more than `quant::MAX_INPUTS`.
pub fn linear_w8a8(
    level: Int8Level,
    runner: &dyn TaskRunner,
    x: &QuantisedRows,
    weight: &QuantisedWeight,
    bias: Option<&[f32]>,
    out: &mut [f32],
    epilogue: Epilogue,
) {
    let (rows, outputs, layout) = (x.rows(), weight.outputs(), x.layout());
    assert_eq!(layout.columns(), weight.inputs(), "whole rows of inputs");
    assert_eq!(out.len(), rows * outputs, "one result per row and output");
    assert!(bias.is_none_or(|bias| bias.len() == outputs));
    assert_eq!(
        weight.granularity().of_activations(layout.granularity()),
        layout.granularity(),
        "activations in the groups of the weights"
    );
    let group_len = layout.granularity().group_len(layout.columns());
    assert!(group_len <= MAX_INPUTS, "a sum of products fits 32 bits");
    let row_blocks = rows.div_ceil(TASK_ROWS);
    let row_words = layout.row_words();
    let out = Shared(out.as_mut_ptr());
    runner.run(row_blocks * weight.panels(), &|index| {
        let (panel, first_row) = (index / row_blocks, index % row_blocks * TASK_ROWS);
        let num_rows = TASK_ROWS.min(rows - first_row);
        let first_output = panel * PANEL_WIDTH;
        level.dispatch(Task {
            x: &x.words()[first_row * row_words..(first_row + num_rows) * row_words],
            layout,
            num_rows,
            bytes: weight.panel(panel),
            scales: weight.panel_scales(panel),
            has_group_scales: weight.granularity() != Granularity::Row,
            tile: OutputTile {
                // SAFETY: the row and the output lie inside `out`, whose length is asserted above.
                start: unsafe { out.get().add(first_row * outputs + first_output) },
                row_stride: outputs,
                width: PANEL_WIDTH.min(outputs - first_output),
                bias: bias.map(|bias| &bias[first_output..]),
                epilogue,
            },
        });
        // Every task writes its own rows and outputs: `index` comes once (`TaskRunner`).
    });
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

struct Task<'a> {
    /// `num_rows` quantised rows.
    x: &'a [u32],
    layout: RowLayout,
    num_rows: usize,
    /// One panel.
    bytes: &'a [u8],
    /// `[groups, 32]`, or `[32]` where an output has one scale.
    scales: &'a [f32],
    has_group_scales: bool,
    tile: OutputTile<'a>,
}

impl DotKernel for Task<'_> {
    #[inline(always)]
    fn run<D: Dot>(self, d: D) {
        let steps = self.layout.columns().div_ceil(STEP);
        debug_assert_eq!(self.bytes.len(), steps * STEP_BYTES);
        debug_assert_eq!(self.x.len(), self.num_rows * self.layout.row_words());
        let groups = if self.has_group_scales {
            self.layout.num_groups()
        } else {
            1
        };
        debug_assert_eq!(self.scales.len(), groups * PANEL_WIDTH);
        let walk = Walk {
            x: self.x.as_ptr(),
            row_words: self.layout.row_words(),
            first_scale: self.layout.first_scale(),
            first_offset: self.layout.first_offset(),
            bytes: self.bytes.as_ptr(),
            scales: self.scales.as_ptr(),
            has_group_scales: self.has_group_scales,
            steps,
            steps_per_group: self
                .layout
                .granularity()
                .group_len(self.layout.columns())
                .div_ceil(STEP),
            tile: self.tile,
        };
        let mut row = 0;
        // SAFETY: the rows and the panel are slices of the lengths asserted above; every call stays
        // below `num_rows`, and the tile has that many rows of its own (`linear_w8a8`).
        unsafe {
            if D::WIDE {
                walk.rows::<D, 12, 2>(d, &mut row, self.num_rows);
                walk.rows::<D, 8, 2>(d, &mut row, self.num_rows);
                walk.rows::<D, 4, 2>(d, &mut row, self.num_rows);
            } else {
                walk.rows::<D, 4, 1>(d, &mut row, self.num_rows);
            }
            walk.rows::<D, 2, 2>(d, &mut row, self.num_rows);
            walk.rows::<D, 1, 2>(d, &mut row, self.num_rows);
        }
    }
}

/// What a tile needs to walk over all inputs.
struct Walk<'a> {
    x: *const u32,
    row_words: usize,
    first_scale: usize,
    first_offset: usize,
    bytes: *const u8,
    /// Of the weights.
    scales: *const f32,
    /// Whether `scales` has 32 for each group.
    has_group_scales: bool,
    /// Steps of four inputs in a row.
    steps: usize,
    steps_per_group: usize,
    tile: OutputTile<'a>,
}

impl Walk<'_> {
    /// Tiles of `R` rows, as many as fit.
    ///
    /// # Safety
    /// `num_rows` rows lie at `x` and belong to the tile; `steps` steps of a panel lie at `bytes`, and
    /// its scales at `scales`.
    #[inline(always)]
    unsafe fn rows<D: Dot, const R: usize, const V: usize>(
        &self,
        d: D,
        row: &mut usize,
        num_rows: usize,
    ) {
        while *row + R <= num_rows {
            let mut vector = 0;
            while vector * LANES < self.tile.width {
                // SAFETY: `row + R ≤ num_rows` rows exist, and `V` vectors from `vector` on lie
                // inside the 128 bytes of a step.
                unsafe {
                    let totals = self.totals::<D, R, V>(d, *row, vector);
                    for r in 0..R {
                        self.finish(d.simd(), *row + r, vector, totals[r]);
                    }
                }
                vector += V;
            }
            *row += R;
        }
    }

    /// The running totals of `R` rows and `V` vectors of outputs over all groups.
    ///
    /// # Safety
    /// As for `rows`; `row + R` rows and `vector + V` vectors exist.
    #[inline(always)]
    unsafe fn totals<D: Dot, const R: usize, const V: usize>(
        &self,
        d: D,
        row: usize,
        vector: usize,
    ) -> [[<D::S as Simd>::F; V]; R] {
        let s = d.simd();
        let mut totals = [[s.splat(0.0); V]; R];
        let (mut group, mut first) = (0, 0);
        while first < self.steps {
            let end = self.steps.min(first + self.steps_per_group);
            // SAFETY: steps below `self.steps` of rows and vectors that the caller answers for.
            let sums = unsafe { self.sums::<D, R, V>(d, row, vector, group, first, end) };
            for r in 0..R {
                // SAFETY: every row has a scale for each group.
                let scale = unsafe { *self.word(row + r, self.first_scale + group) };
                let scale = s.splat(f32::from_bits(scale));
                for v in 0..V {
                    let mut scale = scale;
                    if self.has_group_scales {
                        // SAFETY: the panel has 32 scales for each group.
                        scale = s.mul(scale, unsafe { self.scales(s, group, vector + v) });
                    }
                    totals[r][v] = s.fma(d.to_f32(sums[r][v]), scale, totals[r][v]);
                }
            }
            first = end;
            group += 1;
        }
        totals
    }

    /// The integer sums of one group, steps `first..end`.
    ///
    /// # Safety
    /// As for `totals`; the steps and the group exist.
    #[inline(always)]
    unsafe fn sums<D: Dot, const R: usize, const V: usize>(
        &self,
        d: D,
        row: usize,
        vector: usize,
        group: usize,
        first: usize,
        end: usize,
    ) -> [[D::Sums; V]; R] {
        let mut sums = [[d.start(0); V]; R];
        for r in 0..R {
            // SAFETY: every row has an offset for each group.
            let offset = unsafe { *self.word(row + r, self.first_offset + group) };
            sums[r] = [d.start(offset as i32); V];
        }
        for step in first..end {
            let at = step * STEP_BYTES + vector * LANES * STEP;
            // SAFETY: the step lies in the panel, `V` vectors from `vector` on in the step.
            let mut weights = [unsafe { d.load(self.bytes.add(at)) }; V];
            for v in 1..V {
                // SAFETY: as above.
                weights[v] = unsafe { d.load(self.bytes.add(at + v * LANES * STEP)) };
            }
            for r in 0..R {
                // SAFETY: a row has a word of four integers for each step.
                let x = unsafe { *self.word(row + r, step) } as i32;
                for v in 0..V {
                    sums[r][v] = d.add(sums[r][v], weights[v], x);
                }
            }
        }
        sums
    }

    /// The scales of a vector of outputs.
    ///
    /// # Safety
    /// `scales` has 32 for this group.
    #[inline(always)]
    unsafe fn scales<S: Simd>(&self, s: S, group: usize, vector: usize) -> S::F {
        // SAFETY: two vectors of sixteen for each group.
        unsafe { s.load_ptr(self.scales.add(group * PANEL_WIDTH + vector * LANES)) }
    }

    /// # Safety
    /// The row exists, and `word` is below the words of a row.
    #[inline(always)]
    unsafe fn word(&self, row: usize, word: usize) -> *const u32 {
        // SAFETY: inside the rows by the caller's promise.
        unsafe { self.x.add(row * self.row_words + word) }
    }

    /// Scales, adds the bias and the old value, and writes the vectors of one row.
    ///
    /// # Safety
    /// The tile has this row, and nobody else uses it.
    #[inline(always)]
    unsafe fn finish<S: Simd, const V: usize>(
        &self,
        s: S,
        row: usize,
        vector: usize,
        totals: [S::F; V],
    ) {
        let tile = &self.tile;
        for v in 0..V {
            let first = (vector + v) * LANES;
            if first >= tile.width {
                return;
            }
            let len = LANES.min(tile.width - first);
            // SAFETY: `first + len ≤ width` outputs of this row exist and are ours.
            let out = unsafe {
                let start = tile.start.add(row * tile.row_stride + first);
                std::slice::from_raw_parts_mut(start, len)
            };
            let bias = match tile.bias {
                Some(bias) => s.load_slice(&bias[first..first + len]),
                None => s.splat(0.0),
            };
            let mut y = if self.has_group_scales {
                s.add(totals[v], bias)
            } else {
                // SAFETY: one scale for each output of the panel.
                s.fma(totals[v], unsafe { self.scales(s, 0, vector + v) }, bias)
            };
            if tile.epilogue == Epilogue::Add {
                y = s.add(s.load_slice(out), y);
            }
            s.store_slice(out, y);
        }
    }
}
