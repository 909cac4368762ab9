//! Up to eight rows over one head's keys and values.

use super::keys::Keys;
use super::{AttentionShape, KvElement, MAX_HEAD_DIM};
use crate::math::{LOG2_E, exp2, tanh};
use crate::simd::{LANES, Simd};
use crate::store_kv::{KEY_BLOCK, KvGeometry};

/// Keys of one split.
const SPLIT: usize = 256;

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
            scale,
            cap,
        }
    }

    /// # Safety
    /// `head_dim` floats can be written at each `out`; `blocks` covers the last visible position and
    /// its ids lie inside `keys` and `values`; every query has `head_dim ≤ MAX_HEAD_DIM` features.
    #[inline(always)]
    pub(super) unsafe fn run<S: Simd>(&self, s: S, out: [*mut f32; R])
    where
        K: Keys<S>,
    {
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
        let queries = self.q.map(|q| self.keys.query(s, q, self.scale));
        while split.start < end {
            // SAFETY: the caller's promise, for positions below `end`.
            unsafe {
                self.scores(s, &queries, &mut split, first, end);
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
        split: &mut Split<R>,
        first: usize,
        end: usize,
    ) where
        K: Keys<S>,
    {
        let end = end.min(split.start + SPLIT);
        let mut position = first.max(split.start) / KEY_BLOCK * KEY_BLOCK;
        while position < end {
            // SAFETY: the block lies inside the cache by the caller's promise; two vectors cover it.
            unsafe {
                if S::WIDE {
                    self.block_scores::<S, 2>(s, queries, split, position, 0);
                } else {
                    self.block_scores::<S, 1>(s, queries, split, position, 0);
                    self.block_scores::<S, 1>(s, queries, split, position, 1);
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
        split: &mut Split<R>,
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
                let column = position - split.start + (first + v) * LANES;
                s.store_slice(&mut split.weights[r][column..column + LANES], score);
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
        let (mut any_first, mut any_end) = (SPLIT, 0);
        for r in 0..R {
            let (first, end) = self.visible_in(r, split.start);
            if first < end {
                (max[r], sum[r]) = weights(s, &mut split.weights[r], first, end);
                any_first = any_first.min(first);
                any_end = any_end.max(end);
            }
        }
        // SAFETY: the caller's promise.
        unsafe {
            self.fold_scales(s, split, any_first, any_end);
            self.weighted_values(s, split);
        }
        for r in 0..R {
            let (first, end) = self.visible_in(r, split.start);
            if first < end {
                let vectors = self.value_row_len / LANES;
                state.merge(s, r, max[r], sum[r], &split.values[r], vectors);
            }
        }
    }

    /// Multiplies the weights `first..end` of the split with the scales of the values they belong to.
    ///
    /// # Safety
    /// As for `run`.
    #[inline(always)]
    unsafe fn fold_scales<S: Simd>(&self, s: S, split: &mut Split<R>, first: usize, end: usize) {
        let mut column = first / KEY_BLOCK * KEY_BLOCK;
        while column < end {
            let block = self.values(split.start + column);
            // SAFETY: the block exists by the caller's promise.
            if let Some(scales) = unsafe { V::value_scales(s, block, self.value_row_len) } {
                for r in 0..R {
                    for v in 0..KEY_BLOCK / LANES {
                        let first = column + v * LANES;
                        let weights = &mut split.weights[r][first..first + LANES];
                        let folded = s.mul(s.load_slice(weights), scales[v]);
                        s.store_slice(weights, folded);
                    }
                }
            }
            column += KEY_BLOCK;
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
            let values = self.values(split.start + key);
            while key < block_end {
                let mut v = [s.splat(0.0); C];
                for c in 0..C {
                    let (row_len, token) = (self.value_row_len, key % KEY_BLOCK);
                    // SAFETY: inside the block, which lies inside the cache.
                    v[c] = unsafe { V::load_value(s, values, row_len, token, vector + c) };
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
