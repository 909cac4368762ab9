//! `out[m, n] = Σ_k x[m, k] · w[n, k] + bias[n]` for 8-bit activations and weights, in the order of
//! `quant::linear`: the exact integer sum of a group of inputs, converted and multiplied with the
//! group's scale onto a running total; then the scale of the output, where groups have none of their
//! own, and the bias; then, where asked for, the value that was in `out`. Nothing in it depends on the number of rows, so a row's bits are
//! the same in every batch.
//!
//! One task is up to 96 rows and a stretch of neighbouring panels of 32 outputs, which one thread walks
//! through. Tiles of up to 12 × 32 outputs (24 integer accumulators, where 32 registers exist; 4 × 16
//! otherwise) walk a whole panel, and while a panel is used the next one is asked for. Few rows: bound
//! by reading the weights once, a byte each. Many rows: bound by the multiply-adds.

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

/// Rows of one task at most.
const TASK_ROWS: usize = 96;
/// Bytes of quantised rows that one task takes at most, beyond the first tile: with a panel they stay in
/// the second cache level.
const TASK_ROW_BYTES: usize = 256 << 10;
/// Bytes of a panel that one step of four inputs takes.
const STEP_BYTES: usize = PANEL_WIDTH * STEP;
/// Rows of the tallest tile where 32 registers exist: so many pass the weights once.
const WIDE_ROWS: usize = 12;
/// Rows of a tile there when one does not suffice: its sums and totals together hardly exceed the
/// registers, and tiles that follow find the panel in the second cache level.
const MANY_ROWS: usize = 8;
/// Rows of the tallest tile elsewhere.
const NARROW_ROWS: usize = 4;
/// How far ahead of their use weights are asked for inside a panel, in bytes: the time that memory
/// takes, at the pace of a tile that is bound by multiply-adds.
const AHEAD: usize = 8 << 10;
/// The longest panel, in bytes, whose successor is brought to the second cache level meanwhile.
const LONGEST_PREFETCHED: usize = 256 << 10;
/// Tasks for each thread, so that a slow core delays little.
const TASKS_PER_THREAD: usize = 4;
/// Panels of one task at most.
const TASK_PANELS: usize = 16;

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
    let row_words = layout.row_words();
    let task_rows = TASK_ROW_BYTES / (row_words * size_of::<u32>()) / WIDE_ROWS * WIDE_ROWS;
    let task_rows = task_rows.clamp(WIDE_ROWS, TASK_ROWS);
    let row_blocks = rows.div_ceil(task_rows);
    // A task is a stretch of weights that one thread walks through.
    let tasks = (TASKS_PER_THREAD * runner.threads()).div_ceil(row_blocks.max(1));
    let task_panels = (weight.panels() / tasks).clamp(1, TASK_PANELS);
    let panel_blocks = weight.panels().div_ceil(task_panels);
    let out = Shared(out.as_mut_ptr());
    runner.run(row_blocks * panel_blocks, &|index| {
        let (block, first_row) = (index / row_blocks, index % row_blocks * task_rows);
        let num_rows = task_rows.min(rows - first_row);
        let first_panel = block * task_panels;
        let end = weight.panels().min(first_panel + task_panels);
        for panel in first_panel..end {
            let first_output = panel * PANEL_WIDTH;
            level.dispatch(Task {
                x: &x.words()[first_row * row_words..(first_row + num_rows) * row_words],
                layout,
                num_rows,
                bytes: weight.panel(panel),
                is_first: panel == first_panel,
                is_last: panel + 1 == end,
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
        }
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
    /// Whether this thread has not just worked on the panel before.
    is_first: bool,
    /// Whether this thread does not go on with the panel behind.
    is_last: bool,
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
        let mut walk = Walk {
            ahead: Ahead::default(),
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
        // SAFETY: the rows and the panel are slices of the lengths asserted above, and the tile has
        // that many rows of its own (`linear_w8a8`).
        unsafe { walk.run(d, self.num_rows, [self.is_first, self.is_last]) };
    }
}

/// Which weights a tile asks for while it uses others.
#[derive(Clone, Copy, Default)]
struct Ahead {
    /// From the start of the panel, at the first step.
    offset: usize,
    /// Further with every step.
    step_bytes: usize,
}

/// What a tile needs to walk over all inputs.
struct Walk<'a> {
    ahead: Ahead,
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
    /// Tiles of about equal heights, as few as there can be.
    ///
    /// # Safety
    /// `num_rows` rows lie at `x` and belong to the tile; `steps` steps of a panel lie at `bytes`, and
    /// its scales at `scales`.
    #[inline(always)]
    unsafe fn run<D: Dot>(&mut self, d: D, num_rows: usize, [is_first, is_last]: [bool; 2]) {
        let max = match num_rows {
            _ if !D::WIDE => NARROW_ROWS,
            0..=WIDE_ROWS => WIDE_ROWS,
            _ => MANY_ROWS,
        };
        let tiles = num_rows.div_ceil(max);
        let mut row = 0;
        for tile in 0..tiles {
            let height = (num_rows - row).div_ceil(tiles - tile);
            self.ahead = self.ahead(tile, tiles, is_first, is_last);
            // SAFETY: `row + height ≤ num_rows`; the rest is the caller's promise.
            unsafe {
                if D::WIDE {
                    self.wide_tile(d, row, height);
                } else {
                    self.narrow_tile(d, row, height);
                }
            }
            row += height;
        }
    }

    /// What a tile asks for: the first one of a task, or of a single one, what it is about to use; the
    /// others share the next panel.
    #[inline(always)]
    fn ahead(&self, tile: usize, tiles: usize, is_first: bool, is_last: bool) -> Ahead {
        let panel = self.steps * STEP_BYTES;
        if tiles == 1 || panel > LONGEST_PREFETCHED || is_first && tile == 0 {
            return Ahead {
                offset: AHEAD,
                step_bytes: STEP_BYTES,
            };
        }
        if is_last {
            return Ahead::default();
        }
        let (share, shares) = if is_first {
            (tile - 1, tiles - 1)
        } else {
            (tile, tiles)
        };
        let step_bytes = STEP_BYTES / shares;
        Ahead {
            offset: panel + share * self.steps * step_bytes,
            step_bytes,
        }
    }

    /// # Safety
    /// As for `run`; `row + height` rows exist, `height` is in `1..=WIDE_ROWS`.
    #[inline(always)]
    unsafe fn wide_tile<D: Dot>(&self, d: D, row: usize, height: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match height {
                1 => self.tile::<D, 1, 2>(d, row),
                2 => self.tile::<D, 2, 2>(d, row),
                3 => self.tile::<D, 3, 2>(d, row),
                4 => self.tile::<D, 4, 2>(d, row),
                5 => self.tile::<D, 5, 2>(d, row),
                6 => self.tile::<D, 6, 2>(d, row),
                7 => self.tile::<D, 7, 2>(d, row),
                8 => self.tile::<D, 8, 2>(d, row),
                9 => self.tile::<D, 9, 2>(d, row),
                10 => self.tile::<D, 10, 2>(d, row),
                11 => self.tile::<D, 11, 2>(d, row),
                _ => self.tile::<D, WIDE_ROWS, 2>(d, row),
            }
        }
    }

    /// # Safety
    /// As for `run`; `row + height` rows exist, `height` is in `1..=NARROW_ROWS`.
    #[inline(always)]
    unsafe fn narrow_tile<D: Dot>(&self, d: D, row: usize, height: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            match height {
                1 => self.tile::<D, 1, 2>(d, row),
                2 => self.tile::<D, 2, 1>(d, row),
                3 => self.tile::<D, 3, 1>(d, row),
                _ => self.tile::<D, NARROW_ROWS, 1>(d, row),
            }
        }
    }

    /// `R` rows by the outputs of the panel, `V` vectors at a time.
    ///
    /// # Safety
    /// As for `run`; `row + R` rows exist.
    #[inline(always)]
    unsafe fn tile<D: Dot, const R: usize, const V: usize>(&self, d: D, row: usize) {
        let mut vector = 0;
        while vector * LANES < self.tile.width {
            self.expect_results::<D, R, V>(d, row, vector);
            // SAFETY: the caller answers for the rows; `V` vectors from `vector` on lie inside the
            // 128 bytes of a step.
            unsafe {
                let totals = self.totals::<D, R, V>(d, row, vector);
                for r in 0..R {
                    self.finish(d.simd(), row + r, vector, totals[r]);
                }
            }
            vector += V;
        }
    }

    /// Asks for the places of the results while their sums are made: rows of results lie far apart, and
    /// what comes next would wait for each of them.
    #[inline(always)]
    fn expect_results<D: Dot, const R: usize, const V: usize>(
        &self,
        d: D,
        row: usize,
        vector: usize,
    ) {
        for r in row..row + R {
            let start = self.tile.start.wrapping_add(r * self.tile.row_stride);
            for v in vector..vector + V {
                d.prefetch(start.wrapping_add(v * LANES).cast());
            }
        }
    }

    /// The running totals of `R` rows and `V` vectors of outputs over all groups.
    ///
    /// # Safety
    /// As for `run`; `row + R` rows and `vector + V` vectors exist.
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
            // Past the end of the panel lies the next one, and what follows the last is only named.
            let ahead = self.ahead.offset + step * self.ahead.step_bytes + vector * LANES * STEP;
            for v in 0..V {
                d.prefetch(self.bytes.wrapping_add(ahead + v * LANES * STEP));
            }
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
