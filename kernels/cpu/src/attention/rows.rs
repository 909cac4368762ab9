//! Up to eight rows over one head's keys and values.

use super::keys::{Keys, prefetch};
use super::values::ValueForm;
use super::{AttentionShape, KvElement, MAX_HEAD_DIM};
use crate::math::{LOG2_E, exp2, tanh};
use crate::simd::{LANES, Simd};
use crate::store_kv::{KEY_BLOCK, KvGeometry};

/// Keys of one split.
pub(super) const SPLIT: usize = 256;
/// Rows that go together at most.
pub(super) const MAX_ROWS: usize = 8;

/// Floats of what a row has of one split: its maximum, its sum of weights, its values.
pub(super) fn part_len(head_dim: usize) -> usize {
    2 + head_dim.next_multiple_of(LANES)
}

/// `R` rows that share keys and values.
pub(super) struct Rows<'a, K, V, const R: usize> {
    q: [&'a [f32]; R],
    /// First visible position of each row, and the position after its last.
    visible: [(usize, usize); R],
    head_dim: usize,
    value_row_len: usize,
    /// Of one head.
    keys: K,
    /// One head, block after block.
    values: &'a [V],
    value_block_len: usize,
    blocks: &'a [u32],
    /// Whether nobody has read these keys and values lately: a sequence that decodes.
    pub(super) prefetch: bool,
    /// Multiplies `q·k`; holds log₂e unless there is a soft cap.
    scale: f32,
    /// Multiplies the hyperbolic tangent.
    cap: Option<f32>,
}

/// Memory of a task, for as many rows as go together.
pub(super) struct Scratch {
    /// Scores of a split, then weights.
    weights: [[f32; SPLIT]; MAX_ROWS],
    /// Weighted values of a split.
    values: [[f32; MAX_HEAD_DIM]; MAX_ROWS],
    /// Weighted values of all splits so far.
    totals: [[f32; MAX_HEAD_DIM]; MAX_ROWS],
}

impl Scratch {
    pub(super) const fn new() -> Self {
        Self {
            weights: [[0.0; SPLIT]; MAX_ROWS],
            values: [[0.0; MAX_HEAD_DIM]; MAX_ROWS],
            totals: [[0.0; MAX_HEAD_DIM]; MAX_ROWS],
        }
    }
}

/// The largest score of a row and the sum of its weights; zero where nothing was seen, because the
/// weight of the largest score is one.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    sum: f32,
}

impl Softmax {
    const NOTHING: Self = Self { max: 0.0, sum: 0.0 };
}

impl<'a, K: Copy, V: KvElement, const R: usize> Rows<'a, K, V, R> {
    #[inline(always)]
    pub(super) fn new(
        shape: &AttentionShape,
        geometry: KvGeometry,
        positions: [usize; R],
        q: [&'a [f32]; R],
        keys: K,
        values: &'a [V],
        blocks: &'a [u32],
    ) -> Self {
        let (scale, cap) = match shape.soft_cap {
            Some(cap) => (shape.scale / cap, Some(cap * LOG2_E)),
            None => (shape.scale * LOG2_E, None),
        };
        let window = shape.window.unwrap_or(usize::MAX);
        Self {
            q,
            visible: positions.map(|i| ((i + 1).saturating_sub(window), i + 1)),
            head_dim: geometry.head_dim,
            value_row_len: geometry.value_row_len(),
            keys,
            values,
            value_block_len: V::value_block_len(geometry),
            blocks,
            prefetch: false,
            scale,
            cap,
        }
    }

    /// Computes all splits and divides, or computes the one that starts at `only` and writes what the
    /// rows have of it.
    ///
    /// # Safety
    /// `head_dim` floats, or [`part_len`] of one split, can be written at each `out`; `blocks` covers the
    /// last visible position and its ids lie inside `keys` and `values`; every query has
    /// `head_dim ≤ MAX_HEAD_DIM` features.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(
        &self,
        s: S,
        scratch: &mut Scratch,
        only: Option<usize>,
        out: [*mut f32; R],
    ) where
        K: Keys<S>,
    {
        let (mut first, mut end) = self.visible[0];
        for r in 1..R {
            first = first.min(self.visible[r].0);
            end = end.max(self.visible[r].1);
        }
        let mut queries = [self.keys.query(s, self.q[0], self.scale); R];
        for r in 1..R {
            queries[r] = self.keys.query(s, self.q[r], self.scale);
        }
        let mut rows = [Softmax::NOTHING; R];
        let (mut start, last) = match only {
            Some(start) => (start, start),
            None => (first / SPLIT * SPLIT, end - 1),
        };
        while start <= last {
            // SAFETY: the caller's promise; nothing is read from `end` on.
            let split = unsafe { self.split(s, &queries, scratch, start, first, end) };
            for r in 0..R {
                let values = &scratch.values[r];
                rows[r] = self.merge(s, rows[r], &mut scratch.totals[r], split[r], values);
            }
            start += SPLIT;
        }
        for r in 0..R {
            // SAFETY: the caller's promise.
            unsafe {
                if only.is_some() {
                    self.write_part(rows[r], &scratch.totals[r], out[r]);
                } else {
                    self.finish(s, rows[r], &scratch.totals[r], out[r]);
                }
            }
        }
    }

    /// Writes what a row has of one split.
    ///
    /// # Safety
    /// [`part_len`] floats can be written at `out`.
    #[inline(always)]
    unsafe fn write_part(&self, row: Softmax, totals: &[f32; MAX_HEAD_DIM], out: *mut f32) {
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(out, part_len(self.head_dim)) };
        let (softmax, values) = out.split_at_mut(2);
        softmax.copy_from_slice(&[row.max, row.sum]);
        values.copy_from_slice(&totals[..self.value_row_len]);
    }

    /// Merges what [`Self::run`] wrote for the splits of each row.
    ///
    /// # Safety
    /// `head_dim` floats can be written at each `out`, and `num_splits` parts read at each of `parts`.
    #[inline(always)]
    pub(super) unsafe fn merge_splits<S: Simd>(
        &self,
        s: S,
        scratch: &mut Scratch,
        parts: [*const f32; R],
        num_splits: usize,
        out: [*mut f32; R],
    ) {
        for r in 0..R {
            let mut row = Softmax::NOTHING;
            for split in 0..num_splits {
                let len = part_len(self.head_dim);
                // SAFETY: the caller's promise.
                let part = unsafe { std::slice::from_raw_parts(parts[r].add(split * len), len) };
                let softmax = Softmax {
                    max: part[0],
                    sum: part[1],
                };
                row = self.merge(s, row, &mut scratch.totals[r], softmax, &part[2..]);
            }
            // SAFETY: the caller's promise.
            unsafe { self.finish(s, row, &scratch.totals[r], out[r]) };
        }
    }

    /// Divides a row's values by its sum of weights.
    ///
    /// # Safety
    /// `head_dim` floats can be written at `out`.
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        &self,
        s: S,
        row: Softmax,
        totals: &[f32; MAX_HEAD_DIM],
        out: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        let out = unsafe { std::slice::from_raw_parts_mut(out, self.head_dim) };
        let share = s.splat(1.0 / row.sum);
        let mut d = 0;
        while d < out.len() {
            let part = d..(d + LANES).min(out.len());
            let y = s.mul(s.load_slice(&totals[part.clone()]), share);
            d = part.end;
            s.store_slice(&mut out[part], y);
        }
    }

    /// Adds one split to a row.
    #[inline(always)]
    fn merge<S: Simd>(
        &self,
        s: S,
        row: Softmax,
        totals: &mut [f32; MAX_HEAD_DIM],
        split: Softmax,
        values: &[f32],
    ) -> Softmax {
        let len = self.value_row_len;
        if split.sum == 0.0 {
            return row;
        }
        if row.sum == 0.0 {
            totals[..len].copy_from_slice(&values[..len]);
            return split;
        }
        let max = if row.max > split.max {
            row.max
        } else {
            split.max
        };
        let mut powers = [0.0; LANES];
        powers[0] = row.max - max;
        powers[1] = split.max - max;
        let lanes = exp2(s, s.load(&powers));
        s.store(&mut powers, lanes);
        let (old, new) = (powers[0], powers[1]);
        let (totals, _) = totals[..len].as_chunks_mut::<LANES>();
        let (values, _) = values[..len].as_chunks::<LANES>();
        for (total, values) in totals.iter_mut().zip(values) {
            let scaled = s.mul(s.load(values), s.splat(new));
            let sum = s.fma(s.load(total), s.splat(old), scaled);
            s.store(total, sum);
        }
        Softmax {
            max,
            sum: row.sum * old + split.sum * new,
        }
    }

    /// The part of a split that row `r` sees, relative to the split's start; empty where it sees none.
    #[inline(always)]
    fn visible_in(&self, r: usize, start: usize) -> (usize, usize) {
        let (first, end) = self.visible[r];
        let first = first.max(start) - start;
        (first, (end.max(start) - start).min(SPLIT).max(first))
    }

    /// The block that holds a position.
    #[inline(always)]
    fn block(&self, position: usize) -> usize {
        self.blocks[position / KEY_BLOCK] as usize
    }

    /// Where the values of the block that holds a position start.
    #[inline(always)]
    fn values(&self, position: usize) -> *const V {
        self.values[self.block(position) * self.value_block_len..].as_ptr()
    }

    /// Scores of the split's blocks that any row sees.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn scores<S: Simd>(
        &self,
        s: S,
        queries: &[K::Query<'_>; R],
        scratch: &mut Scratch,
        start: usize,
        first: usize,
        end: usize,
    ) where
        K: Keys<S>,
    {
        let (end, all) = (end.min(start + SPLIT), end);
        let mut position = first.max(start) / KEY_BLOCK * KEY_BLOCK;
        while position < end {
            if self.prefetch {
                let block = self.block(position) * self.value_block_len;
                prefetch(&self.values[block..][..self.value_block_len]);
                if position + KEY_BLOCK < all {
                    self.keys.prefetch(self.block(position + KEY_BLOCK));
                }
            }
            // SAFETY: the block lies inside the cache by the caller's promise; two vectors cover it.
            unsafe {
                if S::WIDE {
                    self.block_scores::<S, 2>(s, queries, scratch, start, position, 0);
                } else {
                    self.block_scores::<S, 1>(s, queries, scratch, start, position, 0);
                    self.block_scores::<S, 1>(s, queries, scratch, start, position, 1);
                }
            }
            position += KEY_BLOCK;
        }
    }

    /// Scores of `N` vectors of keys for all rows, from vector `first` of the position's block on.
    ///
    /// # Safety
    /// The block exists, and `first + N` is at most two.
    #[inline(always)]
    unsafe fn block_scores<S: Simd, const N: usize>(
        &self,
        s: S,
        queries: &[K::Query<'_>; R],
        scratch: &mut Scratch,
        start: usize,
        position: usize,
        first: usize,
    ) where
        K: Keys<S>,
    {
        let block = self.block(position);
        // SAFETY: the caller's promise.
        let scores: [[S::F; N]; R] = unsafe { self.keys.scores(s, queries, block, first) };
        for r in 0..R {
            for v in 0..N {
                let score = match self.cap {
                    Some(cap) => s.mul(tanh(s, scores[r][v]), s.splat(cap)),
                    None => scores[r][v],
                };
                let column = position - start + (first + v) * LANES;
                s.store_slice(&mut scratch.weights[r][column..column + LANES], score);
            }
        }
    }

    /// Computes one split: scores, weights, weighted values.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn split<S: Simd>(
        &self,
        s: S,
        queries: &[K::Query<'_>; R],
        scratch: &mut Scratch,
        start: usize,
        first: usize,
        end: usize,
    ) -> [Softmax; R]
    where
        K: Keys<S>,
    {
        // SAFETY: the caller's promise.
        unsafe { self.scores(s, queries, scratch, start, first, end) };
        let mut rows = [Softmax::NOTHING; R];
        for r in 0..R {
            let (first, end) = self.visible_in(r, start);
            if first < end {
                let weights = &mut scratch.weights[r];
                rows[r] = weigh(s, weights, first, end);
                // SAFETY: the caller's promise.
                unsafe { self.fold_scales(s, weights, start, first, end) };
                let (aligned_first, aligned_end) = whole_blocks(first, end);
                weights[aligned_first..first].fill(0.0);
                weights[end..aligned_end].fill(0.0);
                V::Form::prepare(s, &mut weights[..aligned_end]);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.weighted_values(s, scratch, start) };
        rows
    }

    /// Multiplies the weights `first..end` of the split with the scales of the values they belong to.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn fold_scales<S: Simd>(
        &self,
        s: S,
        weights: &mut [f32; SPLIT],
        start: usize,
        first: usize,
        end: usize,
    ) {
        let mut column = first / KEY_BLOCK * KEY_BLOCK;
        while column < end {
            let block = self.values(start + column);
            // SAFETY: the block exists by the caller's promise.
            let Some(scales) = (unsafe { V::value_scales(s, block, self.value_row_len) }) else {
                return;
            };
            for v in 0..KEY_BLOCK / LANES {
                let first = column + v * LANES;
                let weights = &mut weights[first..first + LANES];
                let folded = s.mul(s.load_slice(weights), scales[v]);
                s.store_slice(weights, folded);
            }
            column += KEY_BLOCK;
        }
    }

    /// Sums the values of the split's visible keys, in order for each row: steps that all rows see
    /// alike are loaded once for all of them, the few before and after per row.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn weighted_values<S: Simd>(&self, s: S, scratch: &mut Scratch, start: usize) {
        let (mut first, mut end) = self.visible_in(0, start);
        let mut alike = true;
        for r in 1..R {
            let (a, b) = self.visible_in(r, start);
            alike &= (a, b) == (first, end);
            first = first.max(a);
            end = end.min(b);
        }
        if !alike {
            first = first.next_multiple_of(V::Form::TOKENS);
            end -= end % V::Form::TOKENS;
        }
        let shared = first < end;
        for r in 0..R {
            scratch.values[r][..self.value_row_len].fill(0.0);
        }
        for after in [false, true] {
            if after && shared {
                // SAFETY: every row sees these keys, which exist by the caller's promise.
                unsafe { self.span::<S, R>(s, scratch, start, 0, first, end) };
            }
            for r in 0..R {
                let (a, b) = self.visible_in(r, start);
                let (from, to) = match (after, shared) {
                    (false, true) => (a, first),
                    (false, false) => (a, b),
                    (true, true) => (end, b),
                    (true, false) => break,
                };
                // SAFETY: keys inside the visible part, by the caller's promise.
                unsafe { self.span::<S, 1>(s, scratch, start, r, from, to) };
            }
        }
    }

    /// Adds the values of keys `first..end` of the split to `N` rows from `row` on.
    ///
    /// # Safety
    /// The keys are visible to the rows, and the promise of `run`.
    #[inline(always)]
    unsafe fn span<S: Simd, const N: usize>(
        &self,
        s: S,
        scratch: &mut Scratch,
        start: usize,
        row: usize,
        first: usize,
        end: usize,
    ) {
        if first >= end {
            return;
        }
        let span = Span { start, first, end };
        let vectors = self.value_row_len / LANES;
        let mut vector = 0;
        // SAFETY: the caller's promise; `vector + C ≤ vectors` in each call.
        unsafe {
            if N <= 2 || S::WIDE {
                while vector + 2 <= vectors {
                    self.columns::<S, N, 2>(s, scratch, row, span, vector);
                    vector += 2;
                }
            }
            while vector < vectors {
                self.columns::<S, N, 1>(s, scratch, row, span, vector);
                vector += 1;
            }
        }
    }

    /// `C` vectors of features from `vector` on.
    ///
    /// # Safety
    /// As for `span`; the features exist and `row + N ≤ R`.
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize, const C: usize>(
        &self,
        s: S,
        scratch: &mut Scratch,
        row: usize,
        span: Span,
        vector: usize,
    ) {
        let tokens = V::Form::TOKENS;
        let mut sums = [[s.splat(0.0); C]; N];
        for r in 0..N {
            for c in 0..C {
                let d = (vector + c) * LANES;
                sums[r][c] = s.load_slice(&scratch.values[row + r][d..d + LANES]);
            }
        }
        let mut key = span.first;
        while key < span.end {
            let block_start = key / KEY_BLOCK * KEY_BLOCK;
            let block_end = (block_start + KEY_BLOCK).min(span.end);
            let values = self.values(span.start + key);
            while key < block_end {
                let step = key / tokens;
                let mut v = [V::Form::splat(s, 0.0); C];
                for c in 0..C {
                    let step = step - block_start / tokens;
                    // SAFETY: inside the block, which lies inside the cache.
                    v[c] =
                        unsafe { V::load_values(s, values, self.value_row_len, step, vector + c) };
                }
                let next = (step + 1) * tokens;
                if next - key < tokens || next > block_end {
                    for c in 0..C {
                        v[c] = V::Form::only(s, v[c], key % tokens);
                    }
                }
                for r in 0..N {
                    // SAFETY: `row + N ≤ R`, and `step < SPLIT`.
                    let weights =
                        unsafe { *scratch.weights.get_unchecked(row + r).get_unchecked(step) };
                    let weights = V::Form::splat(s, weights);
                    for c in 0..C {
                        sums[r][c] = V::Form::add(s, sums[r][c], v[c], weights);
                    }
                }
                key = next;
            }
        }
        for r in 0..N {
            for c in 0..C {
                let d = (vector + c) * LANES;
                s.store_slice(&mut scratch.values[row + r][d..d + LANES], sums[r][c]);
            }
        }
    }
}

/// Keys of a split.
#[derive(Clone, Copy)]
struct Span {
    /// Where the split starts.
    start: usize,
    /// First key and the one after the last, relative to that.
    first: usize,
    end: usize,
}

/// The blocks of 32 that hold `first..end`.
#[inline(always)]
fn whole_blocks(first: usize, end: usize) -> (usize, usize) {
    (
        first / KEY_BLOCK * KEY_BLOCK,
        end.next_multiple_of(KEY_BLOCK),
    )
}

/// Turns the scores `first..end` into weights.
#[inline(always)]
fn weigh<S: Simd>(s: S, scores: &mut [f32; SPLIT], first: usize, end: usize) -> Softmax {
    let aligned = whole_blocks(first, end);
    scores[aligned.0..first].fill(f32::NEG_INFINITY);
    scores[end..aligned.1].fill(f32::NEG_INFINITY);
    let scores = &mut scores[aligned.0..aligned.1];
    let (vectors, _) = scores.as_chunks_mut::<LANES>();
    let mut max = s.splat(f32::NEG_INFINITY);
    for vector in &*vectors {
        max = s.max(max, s.load(vector));
    }
    let max = s.max_lane(max);
    let mut sum = 0.0;
    let mut i = 0;
    while i < vectors.len() {
        let low = exp2(s, s.sub(s.load(&vectors[i]), s.splat(max)));
        let high = exp2(s, s.sub(s.load(&vectors[i + 1]), s.splat(max)));
        s.store(&mut vectors[i], low);
        s.store(&mut vectors[i + 1], high);
        let block = s.sum(s.add(low, high));
        sum = if i == 0 { block } else { sum + block };
        i += 2;
    }
    Softmax { max, sum }
}
