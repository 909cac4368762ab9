//! Causal attention over the paged cache: prefill chunks and decode alike, grouped queries, windows
//! and soft caps.
//!
//! Every (token, head) row has one order, whatever the chunking, the batch and the level. Keys are
//! split at absolute positions every 256. Inside a split: scores as one running sum of fused
//! multiply-adds over the features; over 16-bit keys the same with the query in 16 bits, features in
//! pairs, of each pair the second first; over 8-bit keys an exact sum of products with the query in
//! 8 bits times both scales; their maximum; weights `2^(s − max)`; the weights' sum, a
//! butterfly over each 32 keys and the blocks in order; each weight times the scale of its value,
//! where values are in 8 bits; the weighted values, one running sum per
//! feature over the visible keys in order, and where values have fewer than 32 bits, weights in 16 bits
//! and keys in pairs (absolute positions), of each pair the second first. The (max, sum, values) of
//! the splits are merged in order.
//! What a row does not see is skipped or masked, never multiplied by zero: freed blocks may hold
//! anything.
//!
//! A task is one key/value head of one query tile; up to eight rows (tokens × the heads that share
//! the keys) go through a split together, so that keys and values are loaded once for all of them.
//! Where that leaves threads without work, every split is a task of its own (`parts`).
//! Decode is bound by reading the cache.

mod keys;
mod parts;
mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod values;

use crate::dot::{Dot, DotKernel};
use crate::isa::{Isa, Kernel};
use crate::kv_int8::Int8Word;
use crate::runner::{Shared, TaskRunner};
use crate::simd::Simd;
pub use crate::store_kv::KvElement;
use crate::store_kv::{KEY_BLOCK, KvGeometry};
use half::bf16;
use keys::{Bf16Keys, FloatKeys, Int8Keys, Keys};
use parts::{Part, Parts};
use rows::{MAX_ROWS, Rows, Scratch};

/// Features of the widest head.
pub const MAX_HEAD_DIM: usize = 256;
/// Tokens of the longest query tile.
pub const QUERY_TILE: usize = 8;

/// What is computed for a row.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads, a multiple of the cache's heads.
    pub num_heads: usize,
    /// Multiplies `q·k`.
    pub scale: f32,
    /// Query `i` sees keys `j` with `i − window < j ≤ i`.
    pub window: Option<usize>,
    /// `s ← cap · tanh(s / cap)`.
    pub soft_cap: Option<f32>,
}

/// Keys and values of one layer.
#[derive(Debug, Clone, Copy)]
pub struct KvLayer<'a, K, V> {
    /// The shape of both.
    pub geometry: KvGeometry,
    /// Laid out as [`crate::store_keys`] writes them.
    pub keys: &'a [K],
    /// Laid out as [`crate::store_values`] writes them.
    pub values: &'a [V],
}

/// Up to [`QUERY_TILE`] consecutive tokens of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryTile {
    /// Row of the first token.
    pub first_row: usize,
    /// Tokens.
    pub num_tokens: usize,
    /// Position of the first token.
    pub first_position: usize,
    /// Where the sequence's blocks start in the block tables.
    pub first_block: usize,
}

/// Computes rows of `num_heads · head_dim`. The tiles cover the rows of `q` in order.
///
/// # Panics
/// When lengths do not fit together, a tile reaches outside its rows or the block tables, or a block
/// outside the cache.
#[expect(clippy::too_many_arguments, reason = "each is one named operand")]
pub fn attention<K: KvElement, V: KvElement>(
    isa: Isa,
    runner: &dyn TaskRunner,
    shape: AttentionShape,
    q: &[f32],
    layer: KvLayer<K, V>,
    tiles: &[QueryTile],
    block_tables: &[u32],
    out: &mut [f32],
) {
    check(&shape, q, &layer, tiles, block_tables, out);
    let num_kv_heads = layer.geometry.num_kv_heads;
    let out = Shared(out.as_mut_ptr());
    let attend = |tile: usize, kv_head, part: Option<Part<'_>>| {
        let task = HeadOfTile {
            shape,
            q,
            layer,
            tile: tiles[tile],
            kv_head,
            block_tables,
            out: out.get(),
            part,
        };
        K::attend(isa, task);
    };
    if parts::worth_it(runner.threads(), num_kv_heads, tiles) {
        let mut parts = Parts::new(&shape, layer.geometry, tiles);
        parts.run(runner, |tile, kv_head, part| {
            attend(tile, kv_head, Some(part))
        });
    } else {
        runner.run(tiles.len() * num_kv_heads, &|index| {
            attend(index / num_kv_heads, index % num_kv_heads, None);
        });
    }
}

/// Everything the pointers of the kernel rely on.
fn check<K: KvElement, V: KvElement>(
    shape: &AttentionShape,
    q: &[f32],
    layer: &KvLayer<K, V>,
    tiles: &[QueryTile],
    block_tables: &[u32],
    out: &[f32],
) {
    let geometry = layer.geometry;
    assert!(geometry.num_kv_heads > 0 && shape.num_heads.is_multiple_of(geometry.num_kv_heads));
    assert!((1..=MAX_HEAD_DIM).contains(&geometry.head_dim));
    assert_eq!(geometry.keys_len::<K>(), Some(layer.keys.len()));
    assert_eq!(geometry.values_len::<V>(), Some(layer.values.len()));
    assert_ne!(shape.window, Some(0), "a window holds the token itself");
    let mut rows = 0;
    for tile in tiles {
        assert_eq!(tile.first_row, rows, "tiles cover the rows in order");
        assert!((1..=QUERY_TILE).contains(&tile.num_tokens));
        let num_blocks = (tile.first_position + tile.num_tokens).div_ceil(KEY_BLOCK);
        let blocks = &block_tables[tile.first_block..][..num_blocks];
        assert!(blocks.iter().all(|id| (*id as usize) < geometry.num_blocks));
        rows += tile.num_tokens;
    }
    assert_eq!(q.len(), rows * shape.num_heads * geometry.head_dim);
    assert_eq!(q.len(), out.len(), "as many results as queries");
}

/// One task. Public inside a private module: the trait of cache elements names it.
#[derive(Debug)]
pub struct HeadOfTile<'a, K, V> {
    shape: AttentionShape,
    q: &'a [f32],
    layer: KvLayer<'a, K, V>,
    tile: QueryTile,
    kv_head: usize,
    block_tables: &'a [u32],
    out: *mut f32,
    /// One split instead of all.
    part: Option<Part<'a>>,
}

impl<V: KvElement> Kernel for HeadOfTile<'_, f32, V> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (keys, head_dim) = (self.head_keys(), self.layer.geometry.head_dim);
        self.all_rows(s, FloatKeys { keys, head_dim });
    }
}

impl<V: KvElement> Kernel for HeadOfTile<'_, bf16, V> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (keys, head_dim) = (self.head_keys(), self.layer.geometry.head_dim);
        self.all_rows(s, Bf16Keys { keys, head_dim });
    }
}

impl<V: KvElement> DotKernel for HeadOfTile<'_, Int8Word, V> {
    #[inline(always)]
    fn run<D: Dot>(self, level: D) {
        let keys = Int8Keys {
            level,
            keys: self.head_keys(),
            head_dim: self.layer.geometry.head_dim,
        };
        self.all_rows(level.simd(), keys);
    }
}

impl<'a, K: KvElement, V: KvElement> HeadOfTile<'a, K, V> {
    /// The task's part of `head`-wise memory whose blocks have `block_len` elements.
    #[inline(always)]
    fn head_part<T>(&self, all: &'a [T], block_len: usize) -> &'a [T] {
        let len = self.layer.geometry.num_blocks * block_len;
        &all[self.kv_head * len..][..len]
    }

    #[inline(always)]
    fn head_keys(&self) -> &'a [K] {
        self.head_part(self.layer.keys, K::key_block_len(self.layer.geometry))
    }

    #[inline(always)]
    fn all_rows<S: Simd>(&self, s: S, keys: impl Keys<S>) {
        let scratch = &mut Scratch::new();
        for merge in [false, true] {
            if !merge || self.part.is_some_and(|part| part.is_last()) {
                self.each_rows(s, keys, scratch, merge);
            }
        }
    }

    /// Goes through the rows of the tile; where only splits are computed, `merge` says to merge them.
    #[inline(always)]
    fn each_rows<S: Simd>(&self, s: S, keys: impl Keys<S>, scratch: &mut Scratch, merge: bool) {
        let heads_per_kv = self.shape.num_heads / self.layer.geometry.num_kv_heads;
        let num_rows = self.tile.num_tokens * heads_per_kv;
        let mut row = 0;
        while row < num_rows {
            let left = num_rows - row;
            row += if S::WIDE && left >= MAX_ROWS {
                self.rows::<S, _, MAX_ROWS>(s, keys, scratch, row, merge)
            } else if left >= 4 {
                self.rows::<S, _, 4>(s, keys, scratch, row, merge)
            } else if left >= 2 {
                self.rows::<S, _, 2>(s, keys, scratch, row, merge)
            } else {
                self.rows::<S, _, 1>(s, keys, scratch, row, merge)
            };
        }
    }

    /// Computes `R` rows from `first` on; row `r` is head `r mod h` of token `r / h`, where `h` heads
    /// share the keys.
    #[inline(always)]
    fn rows<S: Simd, H: Keys<S>, const R: usize>(
        &self,
        s: S,
        keys: H,
        scratch: &mut Scratch,
        first: usize,
        merge: bool,
    ) -> usize {
        let geometry = self.layer.geometry;
        let heads_per_kv = self.shape.num_heads / geometry.num_kv_heads;
        let mut starts = [0; R];
        let mut positions = [0; R];
        for r in 0..R {
            let (token, head) = ((first + r) / heads_per_kv, (first + r) % heads_per_kv);
            let head = self.kv_head * heads_per_kv + head;
            let row = self.tile.first_row + token;
            starts[r] = (row * self.shape.num_heads + head) * geometry.head_dim;
            positions[r] = self.tile.first_position + token;
        }
        let mut rows = Rows::<H, V, R>::new(
            &self.shape,
            geometry,
            positions,
            starts.map(|start| &self.q[start..start + geometry.head_dim]),
            keys,
            self.head_part(self.layer.values, V::value_block_len(geometry)),
            &self.block_tables[self.tile.first_block..],
        );
        rows.prefetch = self.tile.num_tokens == 1;
        // SAFETY: each start and the `head_dim` elements from there lie inside `out`, whose length
        // equals that of `q`; no other task and no other row has them. The blocks of every position
        // up to the last row's exist (`check`). Parts are those of this task's rows; they are merged
        // when every split was written (`Part::is_last`).
        unsafe {
            let out = starts.map(|start| self.out.add(start));
            match self.part {
                Some(part) if merge => {
                    let parts = part.of_rows::<R>(first, geometry.head_dim);
                    rows.merge_splits(s, scratch, parts, part.num_splits, out);
                }
                part => {
                    let own = |part: Part<'_>| part.own_of_rows::<R>(first, geometry.head_dim);
                    let only = part.map(|part| part.start());
                    rows.run(s, scratch, only, part.map_or(out, own));
                }
            }
        }
        R
    }
}
