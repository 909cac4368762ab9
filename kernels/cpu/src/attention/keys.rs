//! How the keys of a block are multiplied with queries: in 32 bits, 16 or 8.

use half::bf16;

use super::MAX_HEAD_DIM;
use crate::dot::{Dot, OFFSET, STEP};
use crate::kv_int8::{Int8Word, MAX_WORDS};
use crate::quantise::quantise_group;
use crate::simd::{LANES, Simd};
use crate::store_kv::KEY_BLOCK;

/// One head's keys, and the level that multiplies them.
pub(super) trait Keys<S: Simd>: Copy {
    /// A row's query in the form that keys are multiplied with.
    type Query<'q>: Copy;

    /// Prepares a query; `scale` multiplies every score.
    fn query<'q>(self, s: S, q: &'q [f32], scale: f32) -> Self::Query<'q>;

    /// Asks for the keys of a block, which exists.
    fn prefetch(self, block: usize);

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

/// Keys of 32 bits, `[block][head_dim][32]`.
#[derive(Clone, Copy)]
pub(super) struct FloatKeys<'a> {
    pub keys: &'a [f32],
    pub head_dim: usize,
}

/// A query and what multiplies its scores.
#[derive(Clone, Copy)]
pub(super) struct FloatQuery<'q> {
    q: &'q [f32],
    scale: f32,
}

impl<S: Simd> Keys<S> for FloatKeys<'_> {
    type Query<'q> = FloatQuery<'q>;

    #[inline(always)]
    fn query<'q>(self, _s: S, q: &'q [f32], scale: f32) -> FloatQuery<'q> {
        assert_eq!(q.len(), self.head_dim);
        FloatQuery { q, scale }
    }

    #[inline(always)]
    fn prefetch(self, block: usize) {
        let len = self.head_dim * KEY_BLOCK;
        prefetch(&self.keys[block * len..][..len]);
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
                k[v] = unsafe { s.load_ptr(keys.add(d * KEY_BLOCK + v * LANES)) };
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

/// Keys of 16 bits, `[block][head_dim / 2][32]` words of two features.
#[derive(Clone, Copy)]
pub(super) struct Bf16Keys<'a> {
    pub keys: &'a [bf16],
    pub head_dim: usize,
}

/// A query in 16 bits and what multiplies its scores.
#[derive(Clone, Copy)]
pub(super) struct Bf16Query {
    words: [u32; MAX_HEAD_DIM / 2],
    scale: f32,
}

impl<S: Simd> Keys<S> for Bf16Keys<'_> {
    type Query<'q> = Bf16Query;

    #[inline(always)]
    fn query(self, s: S, q: &[f32], scale: f32) -> Bf16Query {
        assert_eq!(q.len(), self.head_dim);
        let mut words = [0; MAX_HEAD_DIM / 2];
        for (x, words) in q.chunks(LANES).zip(words.chunks_exact_mut(LANES / 2)) {
            // SAFETY: eight words are sixteen 16-bit numbers.
            unsafe { s.round_to_bf16(words.as_mut_ptr().cast(), s.load_slice(x)) }
        }
        Bf16Query { words, scale }
    }

    #[inline(always)]
    fn prefetch(self, block: usize) {
        let len = self.head_dim.next_multiple_of(2) * KEY_BLOCK;
        prefetch(&self.keys[block * len..][..len]);
    }

    #[inline(always)]
    unsafe fn scores<const R: usize, const V: usize>(
        self,
        s: S,
        queries: &[Bf16Query; R],
        block: usize,
        first: usize,
    ) -> [[S::F; V]; R] {
        let mut sums = [[s.splat(0.0); V]; R];
        let num_words = self.head_dim.div_ceil(2);
        let keys = self.keys[block * num_words * 2 * KEY_BLOCK..].as_ptr();
        for word in 0..num_words {
            let mut k = [s.splat_pair(0); V];
            for v in 0..V {
                // SAFETY: sixteen keys of the block, which exists by the caller's promise.
                k[v] = unsafe {
                    let keys = keys.cast::<u32>();
                    s.load_pairs_ptr(keys.add(word * KEY_BLOCK + (first + v) * LANES))
                };
            }
            for r in 0..R {
                // SAFETY: a head has at most `MAX_HEAD_DIM` features, and so many words.
                let q = s.splat_pair(unsafe { *queries[r].words.get_unchecked(word) });
                for v in 0..V {
                    sums[r][v] = s.dot(sums[r][v], k[v], q);
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
#[derive(Clone, Copy)]
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
    fn prefetch(self, block: usize) {
        let len = Int8Word::key_words(self.head_dim) + KEY_BLOCK;
        prefetch(&self.keys[block * len..][..len]);
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

/// Asks for memory to be brought into the second cache: what prefetching of the hardware does not do
/// across pages.
#[inline(always)]
pub(super) fn prefetch<T>(memory: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in 0..size_of_val(memory).div_ceil(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let address = memory.as_ptr().cast::<i8>().wrapping_add(64 * line);
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}
