//! VNNI on registers of 32 bytes: one instruction multiplies and sums four bytes per lane without
//! saturating, as on wider registers. Processors without AVX-512 have it in an encoding of its own
//! (AVX-VNNI); those with AVX-512 VNNI and VL have the same operation in theirs. The body here is the
//! same for both, so that either kind of machine tests it.

use std::arch::x86_64::*;

use super::Dot;
use crate::simd::Avx2;

/// The instruction in one of its encodings. A value is the proof that the CPU can execute it.
pub(crate) trait Encoding: Copy {
    /// What AVX2 does for everything else.
    fn base(self) -> Avx2;
    /// Adds the products of unsigned and signed bytes, four per lane.
    fn dpbusd(self, sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i;
}

/// AVX-VNNI beside AVX2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vex(Avx2);

impl Vex {
    pub(crate) fn new() -> Option<Self> {
        let base = Avx2::new()?;
        is_x86_feature_detected!("avxvnni").then_some(Self(base))
    }
}

impl Encoding for Vex {
    #[inline(always)]
    fn base(self) -> Avx2 {
        self.0
    }

    #[inline(always)]
    fn dpbusd(self, sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: checked in `new`.
        unsafe { _mm256_dpbusd_avx_epi32(sums, unsigned, signed) }
    }
}

/// AVX-512 VNNI and VL, of which only this instruction is used, beside AVX2.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evex(Avx2);

impl Evex {
    pub(crate) fn new() -> Option<Self> {
        let base = Avx2::new()?;
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        found.then_some(Self(base))
    }
}

impl Encoding for Evex {
    #[inline(always)]
    fn base(self) -> Avx2 {
        self.0
    }

    #[inline(always)]
    fn dpbusd(self, sums: __m256i, unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: checked in `new`.
        unsafe { _mm256_dpbusd_epi32(sums, unsigned, signed) }
    }
}

/// Products in an encoding.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vnni256<E>(pub(crate) E);

// Every SAFETY note below that says "checked in `new`" refers to the features of `Avx2`.
impl<E: Encoding> Dot for Vnni256<E> {
    type S = Avx2;
    type Sums = [__m256i; 2];
    /// Weights with their offset, for outputs 0–7 and 8–15.
    type Weights = [__m256i; 2];

    #[inline(always)]
    fn simd(self) -> Avx2 {
        self.0.base()
    }

    #[inline(always)]
    fn start(self, offset: i32) -> Self::Sums {
        // SAFETY: checked in `new`.
        unsafe { [_mm256_set1_epi32(offset); 2] }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> Self::Weights {
        // SAFETY: features checked in `new`; the caller answers for 64 bytes.
        unsafe {
            [
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(32).cast()),
            ]
        }
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        self.0.base().prefetch(from);
    }

    #[inline(always)]
    fn add(self, sums: Self::Sums, weights: Self::Weights, x: i32) -> Self::Sums {
        // SAFETY: checked in `new`.
        let x = unsafe { _mm256_set1_epi32(x) };
        [
            self.0.dpbusd(sums[0], weights[0], x),
            self.0.dpbusd(sums[1], weights[1], x),
        ]
    }

    #[inline(always)]
    fn to_f32(self, sums: Self::Sums) -> [__m256; 2] {
        self.0.base().to_f32(sums)
    }
}
