//! Sixteen lanes of f32, the same on every level.
//!
//! The rules that keep bits equal: `fma` rounds once; `min` and `max` return their second operand
//! when either is NaN or both are zero, as the x86 instructions do; sums over lanes are butterflies.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use scalar::Scalar;

/// Lanes of a vector.
pub(crate) const LANES: usize = 16;

/// 2⁻⁵⁶: what is smaller is rounded to zero before bfloat16 numbers are multiplied. The instruction for
/// it takes denormal sums for zero, which would be costly to imitate; without these numbers every
/// product, and so every sum, is a multiple of 2⁻¹²⁶, and none is denormal.
pub(crate) const LEAST_BF16: f32 = f32::from_bits((127 - 56) << 23);

/// Operations on sixteen lanes. A value of the implementing type is the proof that the CPU can
/// execute them. Public inside a private module: the trait of cache elements names it, nobody else can.
pub trait Simd: Copy {
    /// Sixteen lanes.
    type F: Copy;
    /// Sixteen pairs of bfloat16.
    type Pairs: Copy;

    /// Whether 32 registers of sixteen lanes exist; smaller tiles are used otherwise.
    const WIDE: bool;

    fn splat(self, x: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b` per lane.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b` per lane.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `|x|` per lane.
    fn abs(self, x: Self::F) -> Self::F;
    /// `a < b ? x : y` per lane; false for NaN.
    fn select_less(self, a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// The lane's bits shifted left by 23 plus the bits of 1.0: turns the low bits of an integer held
    /// in a mantissa into a power of two.
    fn shift_to_exponent(self, x: Self::F) -> Self::F;
    /// Butterfly over the lanes: distance 8, 4, 2, 1.
    fn sum(self, x: Self::F) -> f32;

    /// # Safety
    /// Sixteen floats can be read at `from`.
    unsafe fn load_ptr(self, from: *const f32) -> Self::F;
    /// # Safety
    /// Sixteen floats can be written at `to`.
    unsafe fn store_ptr(self, to: *mut f32, x: Self::F);
    /// Sixteen pairs of bfloat16, widened: the low halves, then the high halves.
    ///
    /// # Safety
    /// Sixteen 32-bit numbers can be read at `from`.
    unsafe fn load_bf16_pairs_ptr(self, from: *const u32) -> (Self::F, Self::F);

    /// Sixteen pairs of bfloat16 as they lie in memory, the first of each in the low half.
    ///
    /// # Safety
    /// Sixteen 32-bit numbers can be read at `from`.
    unsafe fn load_pairs_ptr(self, from: *const u32) -> Self::Pairs;
    fn splat_pair(self, pair: u32) -> Self::Pairs;
    /// `a₀ · b₀ + (a₁ · b₁ + sum)` per lane, the high halves first, each sum rounded once. Numbers are
    /// as [`Self::round_to_bf16`] leaves them.
    fn dot(self, sum: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F;
    /// Writes sixteen numbers rounded to bfloat16, to nearest even.
    ///
    /// # Safety
    /// Sixteen 16-bit numbers can be written at `to`.
    unsafe fn store_bf16_ptr(self, to: *mut u16, x: Self::F);

    /// The bits of each pair that `mask` has.
    fn mask_pairs(self, pairs: Self::Pairs, mask: u32) -> Self::Pairs;
    /// Sixteen pairs of signed bytes, as pairs of bfloat16.
    ///
    /// # Safety
    /// 32 bytes can be read at `from`.
    unsafe fn load_i8_pairs_ptr(self, from: *const i8) -> Self::Pairs;

    /// The lanes, integers between −127 and 127, as bytes.
    ///
    /// # Safety
    /// Sixteen bytes can be written at `to`.
    unsafe fn store_i8_ptr(self, to: *mut i8, x: Self::F);

    /// The lanes, none negative and all below 2³¹, rounded to integers, ties to even.
    fn store_rounded(self, to: &mut [u32; LANES], x: Self::F);

    /// Of sixteen integers, those from `low` on and less than `width` behind it, a bit for each.
    fn mask_inside(self, from: &[u32; LANES], low: u32, width: u32) -> u32;

    /// The sum of the integers from `least` on.
    fn sum_from(self, from: &[[u32; LANES]], least: u32) -> u64;

    /// Adds each lane in double precision.
    fn add_to_wide(self, sums: &mut [f64; LANES], x: Self::F);

    /// Rounds sixteen numbers for [`Self::dot`]: to bfloat16, and to zero below [`LEAST_BF16`].
    ///
    /// # Safety
    /// Sixteen 16-bit numbers can be written at `to`.
    #[inline(always)]
    unsafe fn round_to_bf16(self, to: *mut u16, x: Self::F) {
        let least = self.splat(LEAST_BF16);
        let x = self.select_less(self.abs(x), least, self.splat(0.0), x);
        // SAFETY: the caller's promise.
        unsafe { self.store_bf16_ptr(to, x) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        // SAFETY: the array holds sixteen floats.
        unsafe { self.load_ptr(from.as_ptr()) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Self::F) {
        // SAFETY: the array holds sixteen floats.
        unsafe { self.store_ptr(to.as_mut_ptr(), x) }
    }

    /// The first lanes from a slice of at most sixteen floats, the rest zero.
    #[inline(always)]
    fn load_slice(self, from: &[f32]) -> Self::F {
        if let Ok(full) = from.try_into() {
            return self.load(full);
        }
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Writes as many lanes as the slice holds, at most sixteen.
    #[inline(always)]
    fn store_slice(self, to: &mut [f32], x: Self::F) {
        if let Ok(full) = <&mut [f32; LANES]>::try_from(&mut *to) {
            return self.store(full, x);
        }
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, x);
        let len = to.len();
        to.copy_from_slice(&lanes[..len]);
    }

    /// The largest lane, in the order of `max`.
    #[inline(always)]
    fn max_lane(self, x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes, x);
        let mut best = lanes[0];
        for lane in &lanes[1..] {
            best = if best > *lane { best } else { *lane };
        }
        best
    }
}
