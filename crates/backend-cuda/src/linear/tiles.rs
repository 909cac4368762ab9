//! The tile kernels, their sizes, and among how many blocks K is divided.

use crate::device::Device;
use crate::tuning::Ways;

/// What products have besides their operands.
pub(crate) struct Products<D: Device> {
    pub(super) workspace: Option<Workspace<D>>,
    /// Whether products of many tokens are those of warpgroups, where nothing was measured.
    pub warpgroups: bool,
    /// What was measured to be faster than the table's way.
    pub tuned: Ways,
}

impl<D: Device> Products<D> {
    pub fn new(warpgroups: bool) -> Self {
        Self {
            workspace: None,
            warpgroups,
            tuned: Ways::default(),
        }
    }
}

/// Sums of divided products, zero between launches.
pub(super) struct Workspace<D: Device> {
    pub sums: D::Buffer,
    pub counters: D::Buffer,
}

/// A tile kernel: its name, its size, its threads, its shared memory, and how many blocks of it a
/// multiprocessor takes.
#[derive(Debug)]
pub(crate) struct Tile {
    pub kernel: &'static str,
    pub tokens: usize,
    pub channels: usize,
    pub threads: u32,
    pub dynamic_bytes: u32,
    pub per_multiprocessor: usize,
}

const fn tile(
    kernel: &'static str,
    tokens: usize,
    channels: usize,
    threads: u32,
    stages: u32,
) -> Tile {
    Tile {
        kernel,
        tokens,
        channels,
        threads,
        dynamic_bytes: stages * (tokens + channels) as u32 * 64,
        per_multiprocessor: 2,
    }
}

/// A stage has two blocks of activations for one of weights.
const fn wide(kernel: &'static str, tokens: usize, stages: u32) -> Tile {
    Tile {
        dynamic_bytes: stages * (2 * tokens + 64) as u32 * 64,
        ..tile(kernel, tokens, 64, 128, stages)
    }
}

/// A tile of warpgroups: four stages of twice as much of K, and what their alignment may cost.
const fn warpgroups(kernel: &'static str, tokens: usize, per_multiprocessor: usize) -> Tile {
    Tile {
        dynamic_bytes: 4 * (tokens + 128) as u32 * 128 + 1024,
        per_multiprocessor,
        ..tile(kernel, tokens, 128, 2 * tokens as u32, 4)
    }
}

/// Tiles of the 8-bit product by growing number of tokens.
pub(crate) static INT8_TILES: [Tile; 3] = [
    tile("gemm_i8_tile_32x64", 32, 64, 128, 4),
    tile("gemm_i8_tile_64x64", 64, 64, 128, 4),
    tile("gemm_i8_tile_128x128", 128, 128, 256, 3),
];
/// The same for scales of 32 columns.
pub(crate) static BLOCK_TILES: [Tile; 3] = [
    tile("gemm_i8_blocks_32x64", 32, 64, 128, 4),
    tile("gemm_i8_blocks_64x64", 64, 64, 128, 4),
    tile("gemm_i8_blocks_128x128", 128, 128, 256, 3),
];
/// The tiles of compute capability 9.0 alone, from so many tokens on: fewer are bound by reading weights.
pub(crate) static WARPGROUP_TILES: [Tile; 2] = [
    warpgroups("gemm_i8_wgmma_64x128", 64, 2),
    warpgroups("gemm_i8_wgmma_128x128", 128, 1),
];
pub(crate) const WARPGROUP_TOKENS: usize = 33;
pub(super) static F16_TILES: [Tile; 2] = [
    tile("gemm_f16_tile_16x64", 16, 64, 128, 4),
    tile("gemm_f16_tile_64x64", 64, 64, 128, 4),
];
pub(super) static BF16_TILES: [Tile; 2] = [
    tile("gemm_bf16_tile_16x64", 16, 64, 128, 4),
    tile("gemm_bf16_tile_64x64", 64, 64, 128, 4),
];
/// Activations are twice as wide as weights.
pub(super) static W8A16_TILES: [Tile; 2] = [
    wide("gemm_w8a16_tile_16x64", 16, 4),
    wide("gemm_w8a16_tile_64x64", 64, 4),
];
/// The largest tile of the workspace, and the blocks that may divide one K.
pub(super) const WORKSPACE_TILE: usize = 128 * 128;
pub(crate) const MAX_SPLIT: usize = 8;
/// Tiles of the workspace for each multiprocessor.
pub(super) const WORKSPACE_TILES: usize = 2;

/// The smallest tile that takes all tokens, or the largest.
pub(crate) fn choose(tiles: &[Tile], tokens: usize) -> &Tile {
    let last = &tiles[tiles.len() - 1];
    tiles.iter().find(|t| tokens <= t.tokens).unwrap_or(last)
}

/// Among how many blocks K is divided: one scale per row makes the sum one integer, exact in any order,
/// and more blocks fill a device that the tiles leave idle.
pub(crate) fn division(groups: usize, tiles: usize, slots: usize, blocks: usize) -> usize {
    if groups > 1 || tiles >= slots {
        return 1;
    }
    (slots / tiles).min(MAX_SPLIT).min(blocks / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_is_divided_only_where_sums_are_one_integer_and_tiles_are_few() {
        assert_eq!(division(2, 1, 100, 64), 1, "groups are chained in order");
        assert_eq!(division(1, 100, 100, 64), 1, "enough tiles");
        assert_eq!(division(1, 30, 100, 64), 3);
        assert_eq!(division(1, 1, 100, 64), MAX_SPLIT);
        assert_eq!(division(1, 1, 100, 5), 2, "two blocks of K for each");
        assert_eq!(division(1, 1, 100, 1), 1);
    }

    #[test]
    fn tiles_fit_two_to_a_multiprocessor_or_one_of_the_smallest() {
        for tile in [
            &INT8_TILES[..],
            &BLOCK_TILES,
            &F16_TILES,
            &BF16_TILES,
            &W8A16_TILES,
        ]
        .into_iter()
        .flatten()
        {
            assert!(tile.dynamic_bytes <= 49_152, "{}", tile.kernel);
            assert_eq!(tile.threads % 32, 0);
        }
        for tile in &WARPGROUP_TILES {
            // A multiprocessor of compute capability 9.0 has 228 KB, of which each block takes one more.
            let bytes = tile.per_multiprocessor * (tile.dynamic_bytes as usize + 1024 + 16);
            assert!(bytes <= 228 * 1024, "{}", tile.kernel);
            assert_eq!(tile.threads, 2 * tile.tokens as u32);
        }
        assert_eq!(choose(&INT8_TILES, 17).tokens, 32);
        assert_eq!(choose(&INT8_TILES, 33).tokens, 64);
        assert_eq!(choose(&INT8_TILES, 5000).tokens, 128);
    }
}
