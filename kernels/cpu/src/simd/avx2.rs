//! AVX2 with FMA: sixteen lanes in two registers, lanes 0–7 in the first.

use std::arch::x86_64::*;

use super::{LANES, Simd};

/// Proof that the CPU has AVX2 and FMA.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        found.then_some(Self(()))
    }
}

/// Applies a two-operand intrinsic to both registers.
macro_rules! both {
    ($intrinsic:ident, $a:expr, $b:expr) => {
        // SAFETY: checked in `new`.
        unsafe { [$intrinsic($a[0], $b[0]), $intrinsic($a[1], $b[1])] }
    };
}

// Every SAFETY note below that says "checked in `new`" refers to the features above.
impl Simd for Avx2 {
    type F = [__m256; 2];
    type Pairs = [__m256i; 2];

    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: checked in `new`.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: checked in `new`.
        unsafe {
            [
                _mm256_fmadd_ps(a[0], b[0], c[0]),
                _mm256_fmadd_ps(a[1], b[1], c[1]),
            ]
        }
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        // SAFETY: checked in `new`.
        let sign = unsafe { [_mm256_set1_ps(-0.0); 2] };
        both!(_mm256_andnot_ps, sign, x)
    }

    #[inline(always)]
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        // SAFETY: checked in `new`.
        unsafe {
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
            ]
        }
    }

    #[inline(always)]
    fn shift_to_exponent(self, x: Self::F) -> Self::F {
        // SAFETY: checked in `new`.
        unsafe {
            let one = _mm256_set1_epi32(1f32.to_bits() as i32);
            let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(x[0]));
            let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(x[1]));
            [
                _mm256_castsi256_ps(_mm256_add_epi32(low, one)),
                _mm256_castsi256_ps(_mm256_add_epi32(high, one)),
            ]
        }
    }

    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        // SAFETY: checked in `new`. The shuffles swap halves, pairs and neighbours.
        unsafe {
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm256_add_ps(x, _mm256_permute2f128_ps::<1>(x, x));
            let x = _mm256_add_ps(x, _mm256_permute_ps::<0b01_00_11_10>(x));
            let x = _mm256_add_ps(x, _mm256_permute_ps::<0b10_11_00_01>(x));
            _mm256_cvtss_f32(x)
        }
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Self::F {
        // SAFETY: features checked in `new`; the caller answers for sixteen floats.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, x: Self::F) {
        // SAFETY: features checked in `new`; the caller answers for sixteen floats.
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_i8_ptr(self, to: *mut i8, x: Self::F) {
        // SAFETY: features checked in `new`; the caller answers for sixteen bytes.
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0]), _mm256_cvtps_epi32(x[1]));
            // The pack works in halves: its 64-bit parts come as 0, 2, 1, 3.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let (low, high) = (
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(to.cast(), _mm_packs_epi16(low, high));
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs_ptr(self, from: *const u32) -> (Self::F, Self::F) {
        // SAFETY: features checked in `new`; the caller answers for sixteen 32-bit numbers.
        unsafe {
            let first = _mm256_loadu_si256(from.cast());
            let second = _mm256_loadu_si256(from.add(8).cast());
            let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            (
                [
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(first)),
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(second)),
                ],
                [
                    _mm256_castsi256_ps(_mm256_and_si256(first, mask)),
                    _mm256_castsi256_ps(_mm256_and_si256(second, mask)),
                ],
            )
        }
    }

    #[inline(always)]
    fn store_rounded(self, to: &mut [u32; LANES], x: Self::F) {
        // SAFETY: checked in `new`; the array holds sixteen integers.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_cvtps_epi32(x[0]));
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), _mm256_cvtps_epi32(x[1]));
        }
    }

    #[inline(always)]
    fn mask_inside(self, from: &[u32; LANES], low: u32, width: u32) -> u32 {
        // SAFETY: checked in `new`; the array holds sixteen integers.
        unsafe {
            let low = _mm256_set1_epi32(low as i32);
            // Comparisons are signed: the highest bit changes sides first.
            let flip = _mm256_set1_epi32(i32::MIN);
            let width = _mm256_xor_si256(_mm256_set1_epi32(width as i32), flip);
            let mut mask = 0;
            for half in 0..2 {
                let from = _mm256_loadu_si256(from.as_ptr().add(8 * half).cast());
                let behind = _mm256_xor_si256(_mm256_sub_epi32(from, low), flip);
                let inside = _mm256_castsi256_ps(_mm256_cmpgt_epi32(width, behind));
                mask |= (_mm256_movemask_ps(inside) as u32) << (8 * half);
            }
            mask
        }
    }

    #[inline(always)]
    fn sum_from(self, from: &[[u32; LANES]], least: u32) -> u64 {
        // SAFETY: checked in `new`; each array holds sixteen integers.
        unsafe {
            let least = _mm256_set1_epi32(least as i32);
            let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
            let half = _mm256_set1_epi64x(u32::MAX.into());
            for from in from.as_flattened().as_chunks::<8>().0 {
                let from = _mm256_loadu_si256(from.as_ptr().cast());
                // Unsigned `from ≥ least`: the larger of both is `from`.
                let is_kept = _mm256_cmpeq_epi32(_mm256_max_epu32(from, least), from);
                let kept = _mm256_and_si256(from, is_kept);
                even = _mm256_add_epi64(even, _mm256_and_si256(kept, half));
                odd = _mm256_add_epi64(odd, _mm256_srli_epi64::<32>(kept));
            }
            let mut lanes = [0u64; 4];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi64(even, odd));
            lanes.iter().sum()
        }
    }

    #[inline(always)]
    fn add_to_wide(self, sums: &mut [f64; LANES], x: Self::F) {
        // SAFETY: checked in `new`; the array holds sixteen doubles.
        unsafe {
            for (quarter, x) in [
                _mm256_castps256_ps128(x[0]),
                _mm256_extractf128_ps::<1>(x[0]),
                _mm256_castps256_ps128(x[1]),
                _mm256_extractf128_ps::<1>(x[1]),
            ]
            .into_iter()
            .enumerate()
            {
                let sum = sums.as_mut_ptr().add(4 * quarter);
                _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_cvtps_pd(x)));
            }
        }
    }

    #[inline(always)]
    unsafe fn load_pairs_ptr(self, from: *const u32) -> Self::Pairs {
        // SAFETY: features checked in `new`; the caller answers for sixteen 32-bit numbers.
        unsafe {
            [
                _mm256_loadu_si256(from.cast()),
                _mm256_loadu_si256(from.add(8).cast()),
            ]
        }
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> Self::Pairs {
        // SAFETY: checked in `new`.
        unsafe { [_mm256_set1_epi32(pair as i32); 2] }
    }

    #[inline(always)]
    fn dot(self, sum: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F {
        let high = self.fma(high_halves(a), high_halves(b), sum);
        self.fma(low_halves(a), low_halves(b), high)
    }

    #[inline(always)]
    unsafe fn store_bf16_ptr(self, to: *mut u16, x: Self::F) {
        // SAFETY: features checked in `new`; the caller answers for sixteen 16-bit numbers. The pack
        // works in halves: its 64-bit parts come as 0, 2, 1, 3.
        unsafe {
            let words = _mm256_packus_epi32(rounded_halves(x[0]), rounded_halves(x[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            _mm256_storeu_si256(to.cast(), words);
        }
    }

    #[inline(always)]
    fn mask_pairs(self, pairs: Self::Pairs, mask: u32) -> Self::Pairs {
        // SAFETY: checked in `new`.
        unsafe {
            let mask = _mm256_set1_epi32(mask as i32);
            [
                _mm256_and_si256(pairs[0], mask),
                _mm256_and_si256(pairs[1], mask),
            ]
        }
    }

    #[inline(always)]
    unsafe fn load_i8_pairs_ptr(self, from: *const i8) -> Self::Pairs {
        // SAFETY: features checked in `new`; the caller answers for 32 bytes.
        unsafe {
            [
                widened_pairs(_mm_loadu_si128(from.cast())),
                widened_pairs(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }
}

/// Eight pairs of signed bytes as pairs of bfloat16, which hold them exactly.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn widened_pairs(bytes: __m128i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let pairs = _mm256_cvtepi16_epi32(bytes);
        let low = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(pairs));
        let high = _mm256_srai_epi32::<8>(pairs);
        let low = _mm256_castps_si256(_mm256_cvtepi32_ps(low));
        let high = _mm256_castps_si256(_mm256_cvtepi32_ps(high));
        _mm256_or_si256(_mm256_srli_epi32::<16>(low), high)
    }
}

/// The low halves as numbers.
#[inline(always)]
fn low_halves(pairs: [__m256i; 2]) -> [__m256; 2] {
    // SAFETY: pairs come from a level that was checked in `new`.
    unsafe {
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs[0])),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs[1])),
        ]
    }
}

/// The high halves as numbers.
#[inline(always)]
fn high_halves(pairs: [__m256i; 2]) -> [__m256; 2] {
    // SAFETY: as in `low_halves`.
    unsafe {
        let mask = _mm256_set1_epi32(0xffff_0000_u32 as i32);
        [
            _mm256_castsi256_ps(_mm256_and_si256(pairs[0], mask)),
            _mm256_castsi256_ps(_mm256_and_si256(pairs[1], mask)),
        ]
    }
}

/// Eight numbers rounded to bfloat16, each in the low half of its lane. NaN stays NaN.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn rounded_halves(x: __m256) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_add_epi32(bits, half);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, is_nan))
    }
}
