//! The paged cache of one layer: its layout, and how new keys and values are written to it.
//!
//! Per key/value head and block of 32 tokens, keys lie as `[head_dim][32]`, so that one vector holds
//! a feature of sixteen keys, and values as `[32][head_dim rounded up to 16]`. Memory-bound.

use half::bf16;

use crate::aligned::Element;
use crate::runner::{TaskRunner, for_each_chunk};
use crate::simd::{LANES, Simd};

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
    /// Elements of one head's keys in one block.
    pub fn key_block_len(&self) -> usize {
        self.head_dim * KEY_BLOCK
    }

    /// Elements of one head's values in one block.
    pub fn value_block_len(&self) -> usize {
        self.value_row_len() * KEY_BLOCK
    }

    /// Elements of all keys, or none on overflow.
    pub fn keys_len(&self) -> Option<usize> {
        self.times_blocks(self.key_block_len())
    }

    /// Elements of all values, or none on overflow.
    pub fn values_len(&self) -> Option<usize> {
        self.times_blocks(self.value_block_len())
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

/// Element types of cached keys and values.
pub trait KvElement: Element {
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;

    /// Sixteen elements, widened.
    ///
    /// # Safety
    /// Sixteen elements can be read at `from`.
    #[doc(hidden)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F;
}

impl KvElement for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_ptr(from) }
    }
}

impl KvElement for bf16 {
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise; `bf16` is a transparent `u16`.
        unsafe { s.load_bf16_ptr(from.cast()) }
    }
}

/// Writes keys, rows of `num_kv_heads · head_dim`, to their slots.
///
/// # Panics
/// When lengths do not fit together or a slot lies outside the cache.
pub fn store_keys<T: KvElement>(
    runner: &dyn TaskRunner,
    geometry: KvGeometry,
    keys: &mut [T],
    k: &[f32],
    slots: &[usize],
) {
    let block_len = geometry.key_block_len();
    store(
        runner,
        geometry,
        keys,
        block_len,
        k,
        slots,
        |block, token, features| {
            for (d, x) in features.iter().enumerate() {
                block[d * KEY_BLOCK + token] = T::from_f32(*x);
            }
        },
    );
}

/// Writes values, rows of `num_kv_heads · head_dim`, to their slots.
///
/// # Panics
/// When lengths do not fit together or a slot lies outside the cache.
pub fn store_values<T: KvElement>(
    runner: &dyn TaskRunner,
    geometry: KvGeometry,
    values: &mut [T],
    v: &[f32],
    slots: &[usize],
) {
    let block_len = geometry.value_block_len();
    let row_len = geometry.value_row_len();
    store(
        runner,
        geometry,
        values,
        block_len,
        v,
        slots,
        |block, token, features| {
            for (to, x) in block[token * row_len..].iter_mut().zip(features) {
                *to = T::from_f32(*x);
            }
        },
    );
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
