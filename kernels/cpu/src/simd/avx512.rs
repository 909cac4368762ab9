//! AVX-512: sixteen lanes in one register, with or without the instructions for bfloat16.

use std::arch::x86_64::*;

use super::{LANES, Simd};

/// Proof that the CPU has AVX-512 F, BW, DQ and VL, AVX2 and FMA, and with `BF16` also AVX512-BF16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    pub(crate) fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && (!BF16 || is_x86_feature_detected!("avx512bf16"));
        found.then_some(Self(()))
    }
}

// Every SAFETY note below that says "checked in `new`" refers to the features above.
impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type Pairs = __m512i;

    const WIDE: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_abs_ps(x) }
    }

    #[inline(always)]
    fn select_less(self, a: __m512, b: __m512, x: __m512, y: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }

    #[inline(always)]
    fn shift_to_exponent(self, x: __m512) -> __m512 {
        // SAFETY: checked in `new`.
        unsafe {
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(x));
            let one = _mm512_set1_epi32(1f32.to_bits() as i32);
            _mm512_castsi512_ps(_mm512_add_epi32(shifted, one))
        }
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        // SAFETY: checked in `new`. The shuffles swap halves, quarters, pairs and neighbours.
        unsafe {
            let x = _mm512_add_ps(x, _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x));
            let x = _mm512_add_ps(x, _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b01_00_11_10>(x));
            let x = _mm512_add_ps(x, _mm512_permute_ps::<0b10_11_00_01>(x));
            _mm512_cvtss_f32(x)
        }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> __m512 {
        // SAFETY: features checked in `new`; the caller answers for sixteen floats.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, x: __m512) {
        // SAFETY: features checked in `new`; the caller answers for sixteen floats.
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    unsafe fn store_i8_ptr(self, to: *mut i8, x: __m512) {
        // SAFETY: features checked in `new`; the caller answers for sixteen bytes.
        unsafe {
            let bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs_ptr(self, from: *const u32) -> (__m512, __m512) {
        // SAFETY: features checked in `new`; the caller answers for sixteen 32-bit numbers.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)),
                _mm512_castsi512_ps(high),
            )
        }
    }

    #[inline(always)]
    fn store_rounded(self, to: &mut [u32; LANES], x: __m512) {
        // SAFETY: checked in `new`; the array holds sixteen integers.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_cvtps_epi32(x)) }
    }

    #[inline(always)]
    fn mask_inside(self, from: &[u32; LANES], low: u32, width: u32) -> u32 {
        // SAFETY: checked in `new`; the array holds sixteen integers.
        unsafe {
            let from = _mm512_loadu_si512(from.as_ptr().cast());
            let behind = _mm512_sub_epi32(from, _mm512_set1_epi32(low as i32));
            let mask = _mm512_cmplt_epu32_mask(behind, _mm512_set1_epi32(width as i32));
            u32::from(mask)
        }
    }

    #[inline(always)]
    fn sum_from(self, from: &[[u32; LANES]], least: u32) -> u64 {
        // SAFETY: checked in `new`; each array holds sixteen integers.
        unsafe {
            let least = _mm512_set1_epi32(least as i32);
            let (mut even, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
            let half = _mm512_set1_epi64(u32::MAX.into());
            for from in from {
                let from = _mm512_loadu_si512(from.as_ptr().cast());
                let kept = _mm512_maskz_mov_epi32(_mm512_cmpge_epu32_mask(from, least), from);
                even = _mm512_add_epi64(even, _mm512_and_si512(kept, half));
                odd = _mm512_add_epi64(odd, _mm512_srli_epi64::<32>(kept));
            }
            _mm512_reduce_add_epi64(_mm512_add_epi64(even, odd)) as u64
        }
    }

    #[inline(always)]
    fn add_to_wide(self, sums: &mut [f64; LANES], x: __m512) {
        // SAFETY: checked in `new`; the array holds sixteen doubles.
        unsafe {
            let (low, high) = (sums.as_mut_ptr(), sums.as_mut_ptr().add(8));
            let x_low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
            let x_high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x));
            _mm512_storeu_pd(low, _mm512_add_pd(_mm512_loadu_pd(low), x_low));
            _mm512_storeu_pd(high, _mm512_add_pd(_mm512_loadu_pd(high), x_high));
        }
    }

    #[inline(always)]
    unsafe fn load_pairs_ptr(self, from: *const u32) -> __m512i {
        // SAFETY: features checked in `new`; the caller answers for sixteen 32-bit numbers.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> __m512i {
        // SAFETY: checked in `new`.
        unsafe { _mm512_set1_epi32(pair as i32) }
    }

    #[inline(always)]
    fn dot(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        if BF16 {
            // SAFETY: checked in `new`; the types hold the same bits.
            return unsafe { _mm512_dpbf16_ps(sum, pairs(a), pairs(b)) };
        }
        let high = self.fma(high_halves(a), high_halves(b), sum);
        self.fma(low_halves(a), low_halves(b), high)
    }

    #[inline(always)]
    unsafe fn store_bf16_ptr(self, to: *mut u16, x: __m512) {
        // SAFETY: features checked in `new`; the caller answers for sixteen 16-bit numbers.
        unsafe {
            let rounded = if BF16 {
                std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))
            } else {
                rounded_halves(x)
            };
            _mm256_storeu_si256(to.cast(), rounded);
        }
    }

    #[inline(always)]
    fn mask_pairs(self, pairs: __m512i, mask: u32) -> __m512i {
        // SAFETY: checked in `new`.
        unsafe { _mm512_and_si512(pairs, _mm512_set1_epi32(mask as i32)) }
    }

    #[inline(always)]
    unsafe fn load_i8_pairs_ptr(self, from: *const i8) -> __m512i {
        // SAFETY: features checked in `new`; the caller answers for 32 bytes. Bytes are exact in 8 bits
        // of mantissa, so nothing is rounded.
        unsafe {
            if BF16 {
                let low = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()));
                let high = _mm512_cvtepi8_epi32(_mm_loadu_si128(from.add(16).cast()));
                let (low, high) = (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(high));
                return std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            }
            let pairs = _mm512_cvtepi16_epi32(_mm256_loadu_si256(from.cast()));
            let low = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(pairs));
            let high = _mm512_srai_epi32::<8>(pairs);
            let low = _mm512_castps_si512(_mm512_cvtepi32_ps(low));
            let high = _mm512_castps_si512(_mm512_cvtepi32_ps(high));
            _mm512_or_si512(_mm512_srli_epi32::<16>(low), high)
        }
    }
}

/// The type that the instruction takes.
#[inline(always)]
fn pairs(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which every pattern is a value.
    unsafe { std::mem::transmute(x) }
}

/// The low halves as numbers.
#[inline(always)]
fn low_halves(pairs: __m512i) -> __m512 {
    // SAFETY: pairs come from a level that was checked in `new`.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)) }
}

/// The high halves as numbers.
#[inline(always)]
fn high_halves(pairs: __m512i) -> __m512 {
    // SAFETY: as in `low_halves`.
    unsafe {
        let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        _mm512_castsi512_ps(_mm512_and_si512(pairs, mask))
    }
}

/// Sixteen numbers rounded to bfloat16. NaN stays NaN.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn rounded_halves(x: __m512) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_add_epi32(bits, half);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let bits = _mm512_mask_blend_epi32(is_nan, rounded, quiet);
        _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(bits))
    }
}
