//! How weighted values are summed: a token at a time in 32 bits, or two tokens at a time in 16 bits.

use crate::simd::{LANES, Simd};

/// Tokens whose values one step adds. Public inside a private module, as [`Simd`] is.
pub trait ValueForm {
    /// Tokens of a step.
    const TOKENS: usize;
    /// A vector of features of a step's values; or a step's weights, the same in each lane.
    type Lanes<S: Simd>: Copy;

    /// Turns weights into the form in which [`Self::splat`] takes them, `TOKENS` to an element. Their
    /// number is a multiple of 32.
    fn prepare<S: Simd>(s: S, weights: &mut [f32]);
    fn splat<S: Simd>(s: S, weights: f32) -> Self::Lanes<S>;
    fn add<S: Simd>(s: S, sum: S::F, values: Self::Lanes<S>, weights: Self::Lanes<S>) -> S::F;
    /// The values of one token of a step, zeros in place of the others'.
    fn only<S: Simd>(s: S, values: Self::Lanes<S>, token: usize) -> Self::Lanes<S>;
}

/// One token, fused multiply-adds.
#[derive(Debug)]
pub struct Single;

/// Two tokens, in bfloat16.
#[derive(Debug)]
pub struct Paired;

impl ValueForm for Single {
    const TOKENS: usize = 1;
    type Lanes<S: Simd> = S::F;

    #[inline(always)]
    fn prepare<S: Simd>(_s: S, _weights: &mut [f32]) {}

    #[inline(always)]
    fn splat<S: Simd>(s: S, weights: f32) -> S::F {
        s.splat(weights)
    }

    #[inline(always)]
    fn add<S: Simd>(s: S, sum: S::F, values: S::F, weights: S::F) -> S::F {
        s.fma(weights, values, sum)
    }

    #[inline(always)]
    fn only<S: Simd>(_s: S, values: S::F, _token: usize) -> S::F {
        values
    }
}

impl ValueForm for Paired {
    const TOKENS: usize = 2;
    type Lanes<S: Simd> = S::Pairs;

    /// In place: the words of pairs take the first half.
    #[inline(always)]
    fn prepare<S: Simd>(s: S, weights: &mut [f32]) {
        let start = weights.as_mut_ptr();
        let mut i = 0;
        while i + LANES <= weights.len() {
            // SAFETY: sixteen floats are read at `i`, then half as many bytes are written at `i / 2`,
            // which no later read reaches; both lie inside the slice.
            unsafe {
                let x = s.load_ptr(start.add(i));
                s.round_to_bf16(start.add(i / 2).cast(), x);
            }
            i += LANES;
        }
    }

    #[inline(always)]
    fn splat<S: Simd>(s: S, weights: f32) -> S::Pairs {
        s.splat_pair(weights.to_bits())
    }

    #[inline(always)]
    fn add<S: Simd>(s: S, sum: S::F, values: S::Pairs, weights: S::Pairs) -> S::F {
        s.dot(sum, values, weights)
    }

    #[inline(always)]
    fn only<S: Simd>(s: S, values: S::Pairs, token: usize) -> S::Pairs {
        s.mask_pairs(values, 0xffff << (16 * token))
    }
}
