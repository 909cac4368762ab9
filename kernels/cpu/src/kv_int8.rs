//! Cached keys and values in 8 bits, with one scale per token for keys and one for values.
//!
//! Per key/value head and block of 32 tokens, keys lie as `[head_dim / 4][32][4]` bytes with 128 added,
//! the form that products of bytes want, and values as `[16][head_dim rounded up to 16][2]` signed bytes,
//! two tokens to a feature.
//! The 32 scales follow in the same block, so that whatever moves a block moves them with it.

use crate::aligned::Element;
use crate::attention::HeadOfTile;
use crate::attention::values::Paired;
use crate::dot::{Int8Level, OFFSET, STEP};
use crate::isa::{Isa, Kernel};
use crate::quantise::quantise_group;
use crate::simd::{LANES, Simd};
use crate::store_kv::{KEY_BLOCK, KvElement, KvGeometry};

/// Four bytes of keys or values, or the bits of a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Int8Word(u32);

// SAFETY: a transparent `u32`; every bit pattern is a value, and zero bytes are the number zero.
unsafe impl Element for Int8Word {}

/// [`OFFSET`] in each byte of a word.
const OFFSETS: u32 = u32::from_ne_bytes([OFFSET; STEP]);

impl Int8Word {
    /// Words of one head's keys in a block, without the scales.
    pub(crate) fn key_words(head_dim: usize) -> usize {
        head_dim.div_ceil(STEP) * KEY_BLOCK
    }
}

impl KvElement for Int8Word {
    type Form = Paired;

    fn key_block_len(geometry: KvGeometry) -> usize {
        Self::key_words(geometry.head_dim) + KEY_BLOCK
    }

    fn value_block_len(geometry: KvGeometry) -> usize {
        (geometry.value_row_len() / STEP + 1) * KEY_BLOCK
    }

    fn store_key(isa: Isa, block: &mut [Self], token: usize, features: &[f32]) {
        let (scale, words) = quantise_head(isa, features);
        let (keys, scales) = block.split_at_mut(block.len() - KEY_BLOCK);
        for (keys, word) in keys.chunks_exact_mut(KEY_BLOCK).zip(words) {
            keys[token] = Self(word ^ OFFSETS);
        }
        scales[token] = Self(scale.to_bits());
    }

    fn store_value(isa: Isa, block: &mut [Self], token: usize, features: &[f32]) {
        let (scale, words) = quantise_head(isa, features);
        let (values, scales) = block.split_at_mut(block.len() - KEY_BLOCK);
        let pair_words = 2 * values.len() / KEY_BLOCK;
        let pair = &mut values[token / 2 * pair_words..][..pair_words];
        // A word of four features becomes two words, of two features of two tokens each.
        let (shift, kept) = (
            8 * (token as u32 % 2),
            0xff00_ff00 >> (8 * (token as u32 % 2)),
        );
        for (to, word) in pair.chunks_exact_mut(2).zip(words) {
            let [a, b, c, d] = word.to_le_bytes().map(u32::from);
            to[0] = Self(to[0].0 & kept | (a | b << 16) << shift);
            to[1] = Self(to[1].0 & kept | (c | d << 16) << shift);
        }
        scales[token] = Self(scale.to_bits());
    }

    fn attend<V: KvElement>(isa: Isa, task: HeadOfTile<Self, V>) {
        Int8Level::dispatch_bf16(isa, task);
    }

    #[inline(always)]
    unsafe fn load_values<S: Simd>(
        s: S,
        block: *const Self,
        row_len: usize,
        step: usize,
        vector: usize,
    ) -> S::Pairs {
        // SAFETY: the caller's promise; two bytes for each feature.
        unsafe {
            let bytes = block.cast::<i8>();
            s.load_i8_pairs_ptr(bytes.add(2 * (step * row_len + vector * LANES)))
        }
    }

    #[inline(always)]
    unsafe fn value_scales<S: Simd>(
        s: S,
        block: *const Self,
        row_len: usize,
    ) -> Option<[S::F; KEY_BLOCK / LANES]> {
        // SAFETY: the caller's promise; the scales follow the values.
        unsafe {
            let scales = block.add(row_len / STEP * KEY_BLOCK).cast::<f32>();
            Some([s.load_ptr(scales), s.load_ptr(scales.add(LANES))])
        }
    }
}

/// Words of the widest head.
pub(crate) const MAX_WORDS: usize = crate::MAX_HEAD_DIM / STEP;

/// The scale and the integers of one head's features, padded with zeros.
fn quantise_head(isa: Isa, features: &[f32]) -> (f32, [u32; MAX_WORDS]) {
    let mut words = [0; MAX_WORDS];
    let mut scale = 0.0;
    isa.dispatch(Quantise {
        features,
        words: &mut words,
        scale: &mut scale,
    });
    (scale, words)
}

struct Quantise<'a> {
    features: &'a [f32],
    words: &'a mut [u32; MAX_WORDS],
    scale: &'a mut f32,
}

impl Kernel for Quantise<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        (*self.scale, _) = quantise_group(s, self.features, self.words);
    }
}
