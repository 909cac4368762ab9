//! The paged cache of one layer: its layout, and how new keys and values are written to it.
//!
//! Per key/value head and block of 32 tokens, 32-bit keys lie as `[head_dim][32]`, so that one vector
//! holds a feature of sixteen keys, and values as `[32][head_dim rounded up to 16]`. In 16 bits, words
//! of two numbers take their place: keys `[head_dim / 2][32]` with two features of a token in each,
//! values `[16][head_dim rounded up to 16]` with a feature of two tokens. The 8-bit form is that of
//! `kv_int8`. Memory-bound.

use half::bf16;

use crate::aligned::Element;
use crate::attention::HeadOfTile;
use crate::attention::values::{Paired, Single, ValueForm};
use crate::isa::Isa;
use crate::runner::{TaskRunner, for_each_chunk};
use crate::simd::{LANES, LEAST_BF16, Simd};

/// Tokens of one block.
pub const KEY_BLOCK: usize = 32;

/// The shape of one layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvGeometry {
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// Blocks of 32 tokens.
    pub num_blocks: usize,
}

impl KvGeometry {
    /// Elements of all keys, or none on overflow.
    pub fn keys_len<K: KvElement>(&self) -> Option<usize> {
        self.times_blocks(K::key_block_len(*self))
    }

    /// Elements of all values, or none on overflow.
    pub fn values_len<V: KvElement>(&self) -> Option<usize> {
        self.times_blocks(V::value_block_len(*self))
    }

    /// Elements between two tokens' values.
    pub(crate) fn value_row_len(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    fn times_blocks(&self, block_len: usize) -> Option<usize> {
        self.num_kv_heads
            .checked_mul(self.num_blocks)?
            .checked_mul(block_len)
    }
}

/// Element types of cached keys and values. An element holds one number or several, and a block may
/// hold more than its numbers: what belongs to them lies in the same block and is copied with it.
pub trait KvElement: Element {
    /// Elements of one head's keys in one block.
    fn key_block_len(geometry: KvGeometry) -> usize;

    /// Elements of one head's values in one block.
    fn value_block_len(geometry: KvGeometry) -> usize;

    /// Writes one token's keys to their place in a block of one head.
    #[doc(hidden)]
    fn store_key(isa: Isa, block: &mut [Self], token: usize, features: &[f32]);

    /// Writes one token's values to their place in a block of one head.
    #[doc(hidden)]
    fn store_value(isa: Isa, block: &mut [Self], token: usize, features: &[f32]);

    /// Computes one task of attention, in the way keys of this type are multiplied.
    #[doc(hidden)]
    fn attend<V: KvElement>(isa: Isa, task: HeadOfTile<Self, V>);

    /// How many tokens' values are added at a time.
    #[doc(hidden)]
    type Form: ValueForm;

    /// Vector `vector` of the features of one step's values, without their scale.
    ///
    /// # Safety
    /// `block` holds the values of one head, the step is one of the block's, and the vector lies inside
    /// the `row_len` features.
    #[doc(hidden)]
    unsafe fn load_values<S: Simd>(
        s: S,
        block: *const Self,
        row_len: usize,
        step: usize,
        vector: usize,
    ) -> <Self::Form as ValueForm>::Lanes<S>;

    /// What the weights of a block's 32 tokens are multiplied with before their values are, if
    /// values have scales.
    ///
    /// # Safety
    /// `block` holds the values of one head in rows of `row_len`.
    #[doc(hidden)]
    unsafe fn value_scales<S: Simd>(
        _s: S,
        _block: *const Self,
        _row_len: usize,
    ) -> Option<[S::F; KEY_BLOCK / LANES]> {
        None
    }
}

impl KvElement for f32 {
    type Form = Single;

    fn key_block_len(geometry: KvGeometry) -> usize {
        geometry.head_dim * KEY_BLOCK
    }

    fn value_block_len(geometry: KvGeometry) -> usize {
        geometry.value_row_len() * KEY_BLOCK
    }

    fn store_key(_isa: Isa, block: &mut [Self], token: usize, features: &[f32]) {
        for (d, x) in features.iter().enumerate() {
            block[d * KEY_BLOCK + token] = *x;
        }
    }

    fn store_value(_isa: Isa, block: &mut [Self], token: usize, features: &[f32]) {
        let row_len = block.len() / KEY_BLOCK;
        block[token * row_len..][..features.len()].copy_from_slice(features);
    }

    fn attend<V: KvElement>(isa: Isa, task: HeadOfTile<Self, V>) {
        isa.dispatch(task);
    }

    #[inline(always)]
    unsafe fn load_values<S: Simd>(
        s: S,
        block: *const Self,
        row_len: usize,
        step: usize,
        vector: usize,
    ) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_ptr(block.add(step * row_len + vector * LANES)) }
    }
}

impl KvElement for bf16 {
    type Form = Paired;

    fn key_block_len(geometry: KvGeometry) -> usize {
        geometry.head_dim.next_multiple_of(2) * KEY_BLOCK
    }

    fn value_block_len(geometry: KvGeometry) -> usize {
        geometry.value_row_len() * KEY_BLOCK
    }

    fn store_key(_isa: Isa, block: &mut [Self], token: usize, features: &[f32]) {
        for (d, x) in features.iter().enumerate() {
            block[d / 2 * 2 * KEY_BLOCK + 2 * token + d % 2] = rounded(*x);
        }
    }

    fn store_value(_isa: Isa, block: &mut [Self], token: usize, features: &[f32]) {
        let row_len = block.len() / KEY_BLOCK;
        let pair = &mut block[token / 2 * 2 * row_len..][..2 * row_len];
        for (to, x) in pair.chunks_exact_mut(2).zip(features) {
            to[token % 2] = rounded(*x);
        }
    }

    fn attend<V: KvElement>(isa: Isa, task: HeadOfTile<Self, V>) {
        isa.dispatch_bf16(task);
    }

    #[inline(always)]
    unsafe fn load_values<S: Simd>(
        s: S,
        block: *const Self,
        row_len: usize,
        step: usize,
        vector: usize,
    ) -> S::Pairs {
        // SAFETY: the caller's promise; a word of two numbers for each feature.
        unsafe {
            let words = block.cast::<u32>();
            s.load_pairs_ptr(words.add(step * row_len + vector * LANES))
        }
    }
}

/// As products of 16 bits take a number.
fn rounded(x: f32) -> bf16 {
    if x.abs() < LEAST_BF16 {
        bf16::ZERO
    } else {
        bf16::from_f32(x)
    }
}

/// Writes keys, rows of `num_kv_heads · head_dim`, to their slots.
///
/// # Panics
/// When lengths do not fit together or a slot lies outside the cache.
pub fn store_keys<K: KvElement>(
    isa: Isa,
    runner: &dyn TaskRunner,
    geometry: KvGeometry,
    keys: &mut [K],
    k: &[f32],
    slots: &[usize],
) {
    let block_len = K::key_block_len(geometry);
    let write = |block: &mut [K], token, features: &[f32]| {
        K::store_key(isa, block, token, features);
    };
    store(runner, geometry, keys, block_len, k, slots, write);
}

/// Writes values, rows of `num_kv_heads · head_dim`, to their slots.
///
/// # Panics
/// When lengths do not fit together or a slot lies outside the cache.
pub fn store_values<V: KvElement>(
    isa: Isa,
    runner: &dyn TaskRunner,
    geometry: KvGeometry,
    values: &mut [V],
    v: &[f32],
    slots: &[usize],
) {
    let block_len = V::value_block_len(geometry);
    let write = |block: &mut [V], token, features: &[f32]| {
        V::store_value(isa, block, token, features);
    };
    store(runner, geometry, values, block_len, v, slots, write);
}

/// Calls `write(block, token in block, features)` for every head of every row; one task per head.
fn store<T: KvElement>(
    runner: &dyn TaskRunner,
    geometry: KvGeometry,
    cache: &mut [T],
    block_len: usize,
    rows: &[f32],
    slots: &[usize],
    write: impl Fn(&mut [T], usize, &[f32]) + Sync,
) {
    let head_dim = geometry.head_dim;
    let width = geometry.num_kv_heads * head_dim;
    assert_eq!(rows.len(), slots.len() * width, "one row per slot");
    assert_eq!(Some(cache.len()), geometry.times_blocks(block_len));
    let head_len = geometry.num_blocks * block_len;
    for_each_chunk(runner, cache, head_len, |head, cache| {
        for (row, slot) in rows.chunks_exact(width).zip(slots) {
            let (block, token) = (slot / KEY_BLOCK, slot % KEY_BLOCK);
            let block = &mut cache[block * block_len..(block + 1) * block_len];
            write(block, token, &row[head * head_dim..(head + 1) * head_dim]);
        }
    });
}

/// Copies one block of every head; `block_len` is that of keys or of values.
///
/// # Panics
/// When a block lies outside the cache.
pub fn copy_block<T: Element>(
    geometry: KvGeometry,
    cache: &mut [T],
    block_len: usize,
    from: usize,
    to: usize,
) {
    assert!(
        from.max(to) < geometry.num_blocks,
        "block outside the cache"
    );
    for head in cache.chunks_exact_mut(geometry.num_blocks * block_len) {
        head.copy_within(from * block_len..(from + 1) * block_len, to * block_len);
    }
}
