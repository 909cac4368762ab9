//! The twin without vector instructions: arrays, one lane after the other.

use half::bf16;

use super::{LANES, Simd};

/// Runs everywhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

macro_rules! lanewise {
    ($(fn $name:ident($($arg:ident),+) -> $body:expr;)+) => {
        $(#[inline(always)]
        fn $name(self, $($arg: Self::F),+) -> Self::F {
            let mut out = [0.0; LANES];
            for lane in 0..LANES {
                $(let $arg = $arg[lane];)+
                out[lane] = $body;
            }
            out
        })+
    };
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type Pairs = [u32; LANES];

    const WIDE: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    lanewise! {
        fn add(a, b) -> a + b;
        fn sub(a, b) -> a - b;
        fn mul(a, b) -> a * b;
        fn div(a, b) -> a / b;
        fn fma(a, b, c) -> a.mul_add(b, c);
        fn max(a, b) -> if a > b { a } else { b };
        fn min(a, b) -> if a < b { a } else { b };
        fn abs(x) -> x.abs();
        fn select_less(a, b, x, y) -> if a < b { x } else { y };
        fn shift_to_exponent(x) -> f32::from_bits((x.to_bits() << 23).wrapping_add(1f32.to_bits()));
    }

    #[inline(always)]
    fn sum(self, mut x: Self::F) -> f32 {
        for distance in [8, 4, 2, 1] {
            for lane in 0..distance {
                x[lane] += x[lane + distance];
            }
        }
        x[0]
    }

    #[inline(always)]
    unsafe fn load_ptr(self, from: *const f32) -> Self::F {
        // SAFETY: the caller answers for sixteen floats; no alignment is assumed.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, to: *mut f32, x: Self::F) {
        // SAFETY: the caller answers for sixteen floats; no alignment is assumed.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }

    #[inline(always)]
    unsafe fn store_i8_ptr(self, to: *mut i8, x: Self::F) {
        let mut bytes = [0; LANES];
        for lane in 0..LANES {
            bytes[lane] = x[lane] as i8;
        }
        // SAFETY: the caller answers for sixteen bytes; no alignment is assumed.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(bytes) }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs_ptr(self, from: *const u32) -> (Self::F, Self::F) {
        // SAFETY: the caller answers for sixteen 32-bit numbers; no alignment is assumed.
        let pairs = unsafe { from.cast::<[u32; LANES]>().read_unaligned() };
        let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            low[lane] = f32::from_bits(pairs[lane] << 16);
            high[lane] = f32::from_bits(pairs[lane] & 0xffff_0000);
        }
        (low, high)
    }

    #[inline(always)]
    fn store_rounded(self, to: &mut [u32; LANES], x: Self::F) {
        for lane in 0..LANES {
            to[lane] = x[lane].round_ties_even() as u32;
        }
    }

    #[inline(always)]
    fn mask_inside(self, from: &[u32; LANES], low: u32, width: u32) -> u32 {
        let mut mask = 0;
        for lane in 0..LANES {
            mask |= u32::from(from[lane].wrapping_sub(low) < width) << lane;
        }
        mask
    }

    #[inline(always)]
    fn sum_from(self, from: &[[u32; LANES]], least: u32) -> u64 {
        let kept = from.as_flattened().iter().filter(|x| **x >= least);
        kept.map(|x| u64::from(*x)).sum()
    }

    #[inline(always)]
    fn add_to_wide(self, sums: &mut [f64; LANES], x: Self::F) {
        for lane in 0..LANES {
            sums[lane] += f64::from(x[lane]);
        }
    }

    #[inline(always)]
    unsafe fn load_pairs_ptr(self, from: *const u32) -> Self::Pairs {
        // SAFETY: the caller answers for sixteen 32-bit numbers; no alignment is assumed.
        unsafe { from.cast::<Self::Pairs>().read_unaligned() }
    }

    #[inline(always)]
    fn splat_pair(self, pair: u32) -> Self::Pairs {
        [pair; LANES]
    }

    #[inline(always)]
    fn dot(self, mut sum: Self::F, a: Self::Pairs, b: Self::Pairs) -> Self::F {
        let low = |pair: u32| f32::from_bits(pair << 16);
        let high = |pair: u32| f32::from_bits(pair & 0xffff_0000);
        for lane in 0..LANES {
            let (a, b) = (a[lane], b[lane]);
            sum[lane] = high(a).mul_add(high(b), sum[lane]);
            sum[lane] = low(a).mul_add(low(b), sum[lane]);
        }
        sum
    }

    #[inline(always)]
    unsafe fn store_bf16_ptr(self, to: *mut u16, x: Self::F) {
        let rounded = x.map(|x| bf16::from_f32(x).to_bits());
        // SAFETY: the caller answers for sixteen 16-bit numbers; no alignment is assumed.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(rounded) }
    }

    #[inline(always)]
    fn mask_pairs(self, pairs: Self::Pairs, mask: u32) -> Self::Pairs {
        pairs.map(|pair| pair & mask)
    }

    #[inline(always)]
    unsafe fn load_i8_pairs_ptr(self, from: *const i8) -> Self::Pairs {
        // SAFETY: the caller answers for 32 bytes; no alignment is assumed.
        let bytes = unsafe { from.cast::<[[i8; 2]; LANES]>().read_unaligned() };
        let bits = |byte: i8| u32::from(bf16::from_f32(f32::from(byte)).to_bits());
        bytes.map(|[low, high]| bits(low) | bits(high) << 16)
    }
}
