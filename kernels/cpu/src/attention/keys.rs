//! How the keys of a block are multiplied with queries: numbers with numbers, or bytes with bytes.

use crate::dot::{Dot, OFFSET, STEP};
use crate::kv_int8::{Int8Word, MAX_WORDS};
use crate::quantise::quantise_group;
use crate::simd::{LANES, Simd};
use crate::store_kv::{FloatElement, KEY_BLOCK};

/// One head's keys, and the level that multiplies them.
pub(super) trait Keys<S: Simd>: Copy {
    /// A row's query in the form that keys are multiplied with.
    type Query<'q>;

    /// Prepares a query; `scale` multiplies every score.
    fn query<'q>(self, s: S, q: &'q [f32], scale: f32) -> Self::Query<'q>;

    /// Scores of `V` vectors of keys of a block, from vector `first` on, for all rows.
    ///
    /// # Safety
    /// The block exists, and `first + V` is at most two.
    unsafe fn scores<const R: usize, const V: usize>(
        self,
        s: S,
        queries: &[Self::Query<'_>; R],
        block: usize,
        first: usize,
    ) -> [[S::F; V]; R];
}

/// Keys that are numbers, `[block][head_dim][32]`.
#[derive(Clone, Copy)]
pub(super) struct FloatKeys<'a, T> {
    pub keys: &'a [T],
    pub head_dim: usize,
}

/// A query and what multiplies its scores.
pub(super) struct FloatQuery<'q> {
    q: &'q [f32],
    scale: f32,
}

impl<T: FloatElement, S: Simd> Keys<S> for FloatKeys<'_, T> {
    type Query<'q> = FloatQuery<'q>;

    #[inline(always)]
    fn query<'q>(self, _s: S, q: &'q [f32], scale: f32) -> FloatQuery<'q> {
        assert_eq!(q.len(), self.head_dim);
        FloatQuery { q, scale }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize, const V: usize>(
        self,
        s: S,
        queries: &[FloatQuery<'_>; R],
        block: usize,
        first: usize,
    ) -> [[S::F; V]; R] {
        let zero = s.splat(0.0);
        let mut sums = [[zero; V]; R];
        let keys = self.keys[block * self.head_dim * KEY_BLOCK + first * LANES..].as_ptr();
        for d in 0..self.head_dim {
            let mut k = [zero; V];
            for v in 0..V {
                // SAFETY: feature `d < head_dim` of the block, which exists by the caller's promise.
                k[v] = unsafe { T::load(s, keys.add(d * KEY_BLOCK + v * LANES)) };
            }
            for r in 0..R {
                // SAFETY: queries have `head_dim` features (`query`).
                let q = s.splat(unsafe { *queries[r].q.get_unchecked(d) });
                for v in 0..V {
                    sums[r][v] = s.fma(q, k[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                sums[r][v] = s.mul(sums[r][v], s.splat(queries[r].scale));
            }
        }
        sums
    }
}

/// Keys in 8 bits, as [`Int8Word`] lays them out.
#[derive(Clone, Copy)]
pub(super) struct Int8Keys<'a, D> {
    pub level: D,
    pub keys: &'a [Int8Word],
    pub head_dim: usize,
}

/// A query in 8 bits.
pub(super) struct Int8Query {
    words: [u32; MAX_WORDS],
    /// What sums start from.
    offset: i32,
    /// The query's own scale times what multiplies its scores.
    scale: f32,
}

impl<S: Simd, D: Dot<S = S>> Keys<S> for Int8Keys<'_, D> {
    type Query<'q> = Int8Query;

    #[inline(always)]
    fn query(self, s: S, q: &[f32], scale: f32) -> Int8Query {
        assert_eq!(q.len(), self.head_dim);
        let mut words = [0; MAX_WORDS];
        let (step, sum) = quantise_group(s, q, &mut words);
        Int8Query {
            words,
            offset: -i32::from(OFFSET) * sum as i32,
            scale: step * scale,
        }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize, const V: usize>(
        self,
        s: S,
        queries: &[Int8Query; R],
        block: usize,
        first: usize,
    ) -> [[S::F; V]; R] {
        let key_words = Int8Word::key_words(self.head_dim);
        let keys = self.keys[block * (key_words + KEY_BLOCK) + first * LANES..].as_ptr();
        let mut sums = [[self.level.start(0); V]; R];
        for r in 0..R {
            sums[r] = [self.level.start(queries[r].offset); V];
        }
        for word in 0..self.head_dim.div_ceil(STEP) {
            for v in 0..V {
                // SAFETY: sixteen keys of the block, which exists by the caller's promise.
                let k = unsafe {
                    let keys = keys.add(word * KEY_BLOCK + v * LANES);
                    self.level.load(keys.cast())
                };
                for r in 0..R {
                    // SAFETY: a head has at most `MAX_HEAD_DIM` features, and so many words.
                    let q = unsafe { *queries[r].words.get_unchecked(word) };
                    sums[r][v] = self.level.add(sums[r][v], k, q as i32);
                }
            }
        }
        let mut scores = [[s.splat(0.0); V]; R];
        for v in 0..V {
            // SAFETY: the block's scales follow its keys.
            let scales = unsafe { s.load_ptr(keys.add(key_words + v * LANES).cast()) };
            for r in 0..R {
                let sum = self.level.to_f32(sums[r][v]);
                scores[r][v] = s.mul(s.mul(sum, s.splat(queries[r].scale)), scales);
            }
        }
        scores
    }
}
