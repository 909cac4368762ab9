//! AVX2. The instruction that multiplies bytes takes one unsigned operand and saturates sums of two
//! products at 16 bits. With the magnitudes of weights on that side and their signs moved to the
//! activations, which are in ±127, a pair is at most 2 · 128 · 127 = 32 512 and never saturates.

use std::arch::x86_64::*;

use super::{Dot, OFFSET};
use crate::simd::Avx2;

// Every SAFETY note below that says "checked in `new`" refers to the features of `Avx2`.
impl Dot for Avx2 {
    type S = Self;
    type Sums = [__m256i; 2];
    /// Signed weights and their magnitudes, for outputs 0–7 and 8–15.
    type Weights = [(__m256i, __m256i); 2];

    #[inline(always)]
    fn simd(self) -> Self {
        self
    }

    #[inline(always)]
    fn start(self, _offset: i32) -> Self::Sums {
        // SAFETY: checked in `new`.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> Self::Weights {
        // SAFETY: features checked in `new`; the caller answers for 64 bytes.
        unsafe {
            let offset = _mm256_set1_epi8(OFFSET as i8);
            let first = _mm256_xor_si256(_mm256_loadu_si256(from.cast()), offset);
            let second = _mm256_xor_si256(_mm256_loadu_si256(from.add(32).cast()), offset);
            [
                (first, _mm256_abs_epi8(first)),
                (second, _mm256_abs_epi8(second)),
            ]
        }
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    fn add(self, sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums {
        // SAFETY: checked in `new`.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let ones = _mm256_set1_epi16(1);
            let mut out = sums;
            for half in 0..2 {
                let (signed, magnitude) = weights[half];
                let pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(x, signed));
                out[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, ones));
            }
            out
        }
    }

    #[inline(always)]
    fn to_f32(self, sums: Self::Sums) -> [__m256; 2] {
        // SAFETY: checked in `new`.
        unsafe { [_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])] }
    }
}
