//! Up to eight rows over one head's keys and values.

use super::{AttentionShape, KvElement, MAX_HEAD_DIM};
use crate::math::{LOG2_E, exp2, tanh};
use crate::simd::{LANES, Simd};
use crate::store_kv::{KEY_BLOCK, KvGeometry};

/// Keys of one split.
const SPLIT: usize = 256;

/// `R` rows that share keys and values.
pub(super) struct Rows<'a, T, const R: usize> {
    q: [&'a [f32]; R],
    /// First visible position of each row, and the position after its last.
    visible: [(usize, usize); R],
    head_dim: usize,
    value_row_len: usize,
    /// One head, `[block][head_dim][32]`.
    keys: &'a [T],
    /// One head, `[block][32][value_row_len]`.
    values: &'a [T],
    blocks: &'a [u32],
    /// Multiplies `q·k`; holds log₂e unless there is a soft cap.
    scale: f32,
    /// Multiplies the hyperbolic tangent.
    cap: Option<f32>,
}

/// What a row has gathered from the splits so far.
struct State<const R: usize> {
    max: [f32; R],
    /// Zero before the first split.
    num_splits: [usize; R],
    sum: [f32; R],
    values: [[f32; MAX_HEAD_DIM]; R],
}

/// One split: scores, then weights, and the weighted values.
struct Split<const R: usize> {
    /// Absolute position of the first key.
    start: usize,
    weights: [[f32; SPLIT]; R],
    values: [[f32; MAX_HEAD_DIM]; R],
}

impl<'a, T: KvElement, const R: usize> Rows<'a, T, R> {
    #[inline(always)]
    pub(super) fn new(
        shape: &AttentionShape,
        geometry: KvGeometry,
        positions: [usize; R],
        q: [&'a [f32]; R],
        keys: &'a [T],
        values: &'a [T],
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
            blocks,
            scale,
            cap,
        }
    }

    /// # Safety
    /// `head_dim` floats can be written at each `out`; `blocks` covers the last visible position and
    /// its ids lie inside `keys` and `values`; every query has `head_dim ≤ MAX_HEAD_DIM` features.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, s: S, out: [*mut f32; R]) {
        let (mut first, mut end) = self.visible[0];
        for r in 1..R {
            first = first.min(self.visible[r].0);
            end = end.max(self.visible[r].1);
        }
        let mut state = State {
            max: [0.0; R],
            num_splits: [0; R],
            sum: [0.0; R],
            values: [[0.0; MAX_HEAD_DIM]; R],
        };
        let mut split = Split {
            start: first / SPLIT * SPLIT,
            weights: [[0.0; SPLIT]; R],
            values: [[0.0; MAX_HEAD_DIM]; R],
        };
        while split.start < end {
            // SAFETY: the caller's promise, for positions below `end`.
            unsafe {
                self.scores(s, &mut split, first, end);
                self.split(s, &mut split, &mut state);
            }
            split.start += SPLIT;
        }
        for r in 0..R {
            // SAFETY: the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(out[r], self.head_dim) };
            let share = s.splat(1.0 / state.sum[r]);
            let mut d = 0;
            while d < out.len() {
                let part = d..(d + LANES).min(out.len());
                let y = s.mul(s.load_slice(&state.values[r][part.clone()]), share);
                d = part.end;
                s.store_slice(&mut out[part], y);
            }
        }
    }

    /// The part of a split that row `r` sees, relative to the split's start; empty where it sees none.
    #[inline(always)]
    fn visible_in(&self, r: usize, start: usize) -> (usize, usize) {
        let (first, end) = self.visible[r];
        let first = first.max(start) - start;
        (first, (end.max(start) - start).min(SPLIT).max(first))
    }

    /// Where a block's elements start.
    #[inline(always)]
    fn block(&self, position: usize, block_len: usize) -> usize {
        self.blocks[position / KEY_BLOCK] as usize * block_len
    }

    /// Scores of the split's blocks that any row sees.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn scores<S: Simd>(&self, s: S, split: &mut Split<R>, first: usize, end: usize) {
        let end = end.min(split.start + SPLIT);
        let mut position = first.max(split.start) / KEY_BLOCK * KEY_BLOCK;
        while position < end {
            let start = self.block(position, self.head_dim * KEY_BLOCK);
            let column = position - split.start;
            // SAFETY: the block lies inside the cache by the caller's promise; two vectors cover it.
            unsafe {
                let keys = self.keys[start..].as_ptr();
                if S::WIDE {
                    self.block_scores::<S, 2>(s, keys, split, column);
                } else {
                    self.block_scores::<S, 1>(s, keys, split, column);
                    self.block_scores::<S, 1>(s, keys.add(LANES), split, column + LANES);
                }
            }
            position += KEY_BLOCK;
        }
    }

    /// Scores of `V` vectors of keys for all rows.
    ///
    /// # Safety
    /// `head_dim` rows of 32 keys lie at `keys`, less what the caller skipped in the first.
    #[inline(always)]
    unsafe fn block_scores<S: Simd, const V: usize>(
        &self,
        s: S,
        keys: *const T,
        split: &mut Split<R>,
        column: usize,
    ) {
        let zero = s.splat(0.0);
        let mut sums = [[zero; V]; R];
        for d in 0..self.head_dim {
            let mut k = [zero; V];
            for v in 0..V {
                // SAFETY: feature `d < head_dim` of the block.
                k[v] = unsafe { T::load(s, keys.add(d * KEY_BLOCK + v * LANES)) };
            }
            for r in 0..R {
                // SAFETY: queries have `head_dim` features by the promise of `run`.
                let q = s.splat(unsafe { *self.q[r].get_unchecked(d) });
                for v in 0..V {
                    sums[r][v] = s.fma(q, k[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                let score = s.mul(sums[r][v], s.splat(self.scale));
                let score = match self.cap {
                    Some(cap) => s.mul(tanh(s, score), s.splat(cap)),
                    None => score,
                };
                let first = column + v * LANES;
                s.store_slice(&mut split.weights[r][first..first + LANES], score);
            }
        }
    }

    /// Turns the scores of a split into weights and weighted values and merges them into the state.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn split<S: Simd>(&self, s: S, split: &mut Split<R>, state: &mut State<R>) {
        let mut max = [0.0; R];
        let mut sum = [0.0; R];
        for r in 0..R {
            let (first, end) = self.visible_in(r, split.start);
            if first < end {
                (max[r], sum[r]) = weights(s, &mut split.weights[r], first, end);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.weighted_values(s, split) };
        for r in 0..R {
            let (first, end) = self.visible_in(r, split.start);
            if first < end {
                let vectors = self.value_row_len / LANES;
                state.merge(s, r, max[r], sum[r], &split.values[r], vectors);
            }
        }
    }

    /// Sums the values of the split's visible keys, in order for each row: keys that all rows see are
    /// loaded once for all of them, the few before and after per row.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn weighted_values<S: Simd>(&self, s: S, split: &mut Split<R>) {
        let (mut first, mut end) = self.visible_in(0, split.start);
        for r in 1..R {
            let (a, b) = self.visible_in(r, split.start);
            first = first.max(a);
            end = end.min(b);
        }
        for r in 0..R {
            let (a, b) = self.visible_in(r, split.start);
            split.values[r][..self.value_row_len].fill(0.0);
            let shared = first.min(b).max(a);
            let before = if first < end { shared } else { b };
            // SAFETY: keys inside the visible part, by the caller's promise.
            unsafe { self.span::<S, 1>(s, split, r, a, before) };
        }
        if first >= end {
            return;
        }
        // SAFETY: as above; every row sees these keys.
        unsafe { self.span::<S, R>(s, split, 0, first, end) };
        for r in 0..R {
            let (_, b) = self.visible_in(r, split.start);
            // SAFETY: as above.
            unsafe { self.span::<S, 1>(s, split, r, end, b) };
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
        split: &mut Split<R>,
        row: usize,
        first: usize,
        end: usize,
    ) {
        if first >= end {
            return;
        }
        let vectors = self.value_row_len / LANES;
        let mut vector = 0;
        // SAFETY: the caller's promise; `vector + C ≤ vectors` in each call.
        unsafe {
            if N <= 4 && S::WIDE {
                while vector + 4 <= vectors {
                    self.columns::<S, N, 4>(s, split, row, first, end, vector);
                    vector += 4;
                }
            }
            if N <= 2 || S::WIDE {
                while vector + 2 <= vectors {
                    self.columns::<S, N, 2>(s, split, row, first, end, vector);
                    vector += 2;
                }
            }
            while vector < vectors {
                self.columns::<S, N, 1>(s, split, row, first, end, vector);
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
        split: &mut Split<R>,
        row: usize,
        first: usize,
        end: usize,
        vector: usize,
    ) {
        let mut sums = [[s.splat(0.0); C]; N];
        for r in 0..N {
            for c in 0..C {
                let d = (vector + c) * LANES;
                sums[r][c] = s.load_slice(&split.values[row + r][d..d + LANES]);
            }
        }
        let mut key = first;
        while key < end {
            let block_end = ((key / KEY_BLOCK + 1) * KEY_BLOCK).min(end);
            let start = self.block(split.start + key, self.value_row_len * KEY_BLOCK);
            let values = self.values[start..].as_ptr();
            while key < block_end {
                let mut v = [s.splat(0.0); C];
                for c in 0..C {
                    let at = key % KEY_BLOCK * self.value_row_len + (vector + c) * LANES;
                    // SAFETY: inside the block, which lies inside the cache.
                    v[c] = unsafe { T::load(s, values.add(at)) };
                }
                for r in 0..N {
                    // SAFETY: `row + N ≤ R`, and `key < SPLIT`.
                    let weight =
                        unsafe { *split.weights.get_unchecked(row + r).get_unchecked(key) };
                    for c in 0..C {
                        sums[r][c] = s.fma(s.splat(weight), v[c], sums[r][c]);
                    }
                }
                key += 1;
            }
        }
        for r in 0..N {
            for c in 0..C {
                let d = (vector + c) * LANES;
                s.store_slice(&mut split.values[row + r][d..d + LANES], sums[r][c]);
            }
        }
    }
}

/// Turns the scores `first..end` into weights and returns their maximum and their sum.
#[inline(always)]
fn weights<S: Simd>(s: S, scores: &mut [f32; SPLIT], first: usize, end: usize) -> (f32, f32) {
    let aligned = (
        first / KEY_BLOCK * KEY_BLOCK,
        end.next_multiple_of(KEY_BLOCK),
    );
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
    (max, sum)
}

impl<const R: usize> State<R> {
    /// Adds one split to row `r`.
    #[inline(always)]
    fn merge<S: Simd>(
        &mut self,
        s: S,
        r: usize,
        max: f32,
        sum: f32,
        values: &[f32; MAX_HEAD_DIM],
        vectors: usize,
    ) {
        self.num_splits[r] += 1;
        if self.num_splits[r] == 1 {
            self.max[r] = max;
            self.sum[r] = sum;
            let len = vectors * LANES;
            self.values[r][..len].copy_from_slice(&values[..len]);
            return;
        }
        let larger = if self.max[r] > max { self.max[r] } else { max };
        let mut powers = [0.0; LANES];
        powers[0] = self.max[r] - larger;
        powers[1] = max - larger;
        let lanes = exp2(s, s.load(&powers));
        s.store(&mut powers, lanes);
        let (old, new) = (powers[0], powers[1]);
        self.max[r] = larger;
        self.sum[r] = self.sum[r] * old + sum * new;
        let (totals, _) = self.values[r].as_chunks_mut::<LANES>();
        let (values, _) = values.as_chunks::<LANES>();
        for i in 0..vectors {
            let scaled = s.mul(s.load(&values[i]), s.splat(new));
            let total = s.fma(s.load(&totals[i]), s.splat(old), scaled);
            s.store(&mut totals[i], total);
        }
    }
}
