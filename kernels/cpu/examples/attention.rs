//! Times attention on one core over one layer of the shape of a 1B Llama (32 heads, 4 of keys and
//! values, 64 features): a prefill of 512 tokens, and decoding at several contexts. For decoding it
//! prints at what rate the cache is read.
//!
//! `cargo run --release -p kernels-cpu --example attention [LEVEL]…`, every level if none is named.

use std::time::Instant;

use half::bf16;
use kernels_cpu::{
    AlignedBuf, AttentionShape, Int8Word, Isa, KEY_BLOCK, KvElement, KvGeometry, KvLayer,
    QUERY_TILE, QueryTile, Serial, attention, store_keys, store_values,
};

const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
/// Caches are used in turn, so that they come from memory as the layers of a model do.
const LAYERS: usize = 22;

fn main() {
    let named: Vec<String> = std::env::args().skip(1).collect();
    for isa in Isa::supported().filter(|isa| named.is_empty() || named.contains(&isa.to_string())) {
        report::<f32>("f32", isa);
        report::<bf16>("bf16", isa);
        report::<Int8Word>("int8", isa);
    }
}

/// Keys and values of one layer, of sequences of `context` tokens one after the other.
struct Cache<K: KvElement> {
    geometry: KvGeometry,
    keys: AlignedBuf<K>,
    values: AlignedBuf<K>,
}

impl<K: KvElement> Cache<K> {
    fn filled(isa: Isa, tokens: usize, seed: usize) -> Self {
        let geometry = KvGeometry {
            num_kv_heads: KV_HEADS,
            head_dim: HEAD_DIM,
            num_blocks: tokens.div_ceil(KEY_BLOCK),
        };
        let memory = |len: Option<usize>| AlignedBuf::zeroed(len.expect("small")).expect("memory");
        let (mut keys, mut values) = (
            memory(geometry.keys_len::<K>()),
            memory(geometry.values_len::<K>()),
        );
        let rows = numbers(seed, tokens * KV_HEADS * HEAD_DIM);
        let slots: Vec<usize> = (0..tokens).collect();
        store_keys(isa, &Serial, geometry, &mut keys, &rows, &slots);
        store_values(isa, &Serial, geometry, &mut values, &rows, &slots);
        Self {
            geometry,
            keys,
            values,
        }
    }
}

fn numbers(seed: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i + seed).wrapping_mul(2_654_435_761) % 2000) as f32 * 1e-3 - 1.0)
        .collect()
}

#[expect(
    clippy::print_stdout,
    reason = "the figures are what the program is for"
)]
fn report<K: KvElement>(name: &str, isa: Isa) {
    let time = |tokens: usize, queries: usize, batch: usize| {
        let caches: Vec<Cache<K>> = (0..LAYERS)
            .map(|layer| Cache::filled(isa, tokens * batch, layer))
            .collect();
        let tiles: Vec<QueryTile> = (0..batch)
            .flat_map(|sequence| {
                let tile = move |first: usize| QueryTile {
                    first_row: sequence * queries + first,
                    num_tokens: QUERY_TILE.min(queries - first),
                    first_position: tokens - queries + first,
                    first_block: sequence * tokens / KEY_BLOCK,
                };
                (0..queries).step_by(QUERY_TILE).map(tile)
            })
            .collect();
        let q = numbers(7, queries * batch * HEADS * HEAD_DIM);
        let mut out = vec![0.0; q.len()];
        let tables: Vec<u32> = (0..(tokens * batch / KEY_BLOCK) as u32).collect();
        let shape = AttentionShape {
            num_heads: HEADS,
            scale: 0.125,
            window: None,
            soft_cap: None,
        };
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            for cache in &caches {
                let layer = KvLayer {
                    geometry: cache.geometry,
                    keys: &cache.keys,
                    values: &cache.values,
                };
                attention(isa, &Serial, shape, &q, layer, &tiles, &tables, &mut out);
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        let cache = size_of_val(&caches[0].keys[..]) + size_of_val(&caches[0].values[..]);
        (best, (cache * LAYERS) as f64 / best * 1e-9)
    };
    let (seconds, _) = time(512, 512, 1);
    let products = 2 * 512 * 513 * HEADS * HEAD_DIM * LAYERS;
    println!(
        "{name:>5} {:>11} prefill 512: {:6.1} ms, {:6.1} GFLOP/s",
        isa.to_string(),
        seconds * 1e3,
        products as f64 / seconds * 1e-9
    );
    for (context, batch) in [
        (128, 32),
        (512, 8),
        (512, 32),
        (2048, 1),
        (2048, 8),
        (4096, 1),
    ] {
        let (seconds, rate) = time(context, 1, batch);
        println!(
            "{name:>5} {:>11} decode {batch:>2} × {context:>4}: {:6.2} ms, {rate:5.1} GB/s",
            isa.to_string(),
            seconds * 1e3
        );
    }
}
