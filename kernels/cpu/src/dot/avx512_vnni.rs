//! AVX-512 with VNNI: one instruction multiplies and sums four bytes per lane without saturating.
//! Sums wrap at 32 bits on the way and are exact at the end, because their true value fits.

use std::arch::x86_64::*;

use super::Dot;
use crate::simd::Avx512;

/// Proof that the CPU has what [`Avx512`] needs, and VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512Vnni<const BF16: bool>(Avx512<BF16>);

impl<const BF16: bool> Avx512Vnni<BF16> {
    pub(crate) fn new() -> Option<Self> {
        let base = Avx512::new()?;
        is_x86_feature_detected!("avx512vnni").then_some(Self(base))
    }
}

// Every SAFETY note below that says "checked in `new`" refers to the features above.
impl<const BF16: bool> Dot for Avx512Vnni<BF16> {
    type S = Avx512<BF16>;
    type Sums = __m512i;
    type Weights = __m512i;

    #[inline(always)]
    fn simd(self) -> Avx512<BF16> {
        self.0
    }

    #[inline(always)]
    fn start(self, offset: i32) -> __m512i {
        // SAFETY: checked in `new`.
        unsafe { _mm512_set1_epi32(offset) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> __m512i {
        // SAFETY: features checked in `new`; the caller answers for 64 bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
    }

    #[inline(always)]
    fn add(self, sums: __m512i, weights: __m512i, x: i32) -> __m512i {
        // SAFETY: checked in `new`.
        unsafe { _mm512_dpbusd_epi32(sums, weights, _mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    fn to_f32(self, sums: __m512i) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_cvtepi32_ps(sums) }
    }
}
