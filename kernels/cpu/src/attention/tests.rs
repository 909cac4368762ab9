use half::bf16;

use super::*;
use crate::test_data::{random, same_bits};
use crate::{Serial, store_keys, store_values};

/// One sequence in a cache whose other slots hold NaN.
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    len: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
}

const CASES: &[Case] = &[
    case([1, 1, 1, 1], None, None),
    case([3, 1, 24, 33], None, None),
    case([9, 3, 64, 70], None, None),
    case([4, 4, 20, 40], Some(9), None),
    case([8, 1, 16, 530], None, None),
    case([2, 2, 80, 300], Some(270), Some(2.0)),
    case([7, 1, 128, 260], None, Some(30.0)),
    case([1, 1, 256, 65], Some(1), None),
];

const fn case(sizes: [usize; 4], window: Option<usize>, soft_cap: Option<f32>) -> Case {
    let [heads, kv_heads, head_dim, len] = sizes;
    Case {
        heads,
        kv_heads,
        head_dim,
        len,
        window,
        soft_cap,
    }
}

struct Cache<T> {
    geometry: KvGeometry,
    keys: Vec<T>,
    values: Vec<T>,
    blocks: Vec<u32>,
}

impl Case {
    fn shape(&self) -> AttentionShape {
        AttentionShape {
            num_heads: self.heads,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            soft_cap: self.soft_cap,
        }
    }

    fn inputs(&self) -> [Vec<f32>; 3] {
        let kv = self.len * self.kv_heads * self.head_dim;
        let q = random(1, self.len * self.heads * self.head_dim);
        let q = q.into_iter().map(|x| 3.0 * x).collect();
        [q, random(2, kv), random(3, kv)]
    }

    /// Stores the sequence in blocks that lie in falling order, among garbage.
    fn cache<T: KvElement>(&self, k: &[f32], v: &[f32]) -> Cache<T> {
        let num_blocks = self.len.div_ceil(KEY_BLOCK) + 2;
        let geometry = KvGeometry {
            num_kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            num_blocks,
        };
        let blocks: Vec<u32> = (1..num_blocks as u32 - 1).rev().collect();
        let slots: Vec<usize> = (0..self.len)
            .map(|i| blocks[i / KEY_BLOCK] as usize * KEY_BLOCK + i % KEY_BLOCK)
            .collect();
        let nan = T::from_f32(f32::NAN);
        let mut keys = vec![nan; geometry.keys_len().expect("small")];
        let mut values = vec![nan; geometry.values_len().expect("small")];
        store_keys(&Serial, geometry, &mut keys, k, &slots);
        store_values(&Serial, geometry, &mut values, v, &slots);
        Cache {
            geometry,
            keys,
            values,
            blocks,
        }
    }

    /// Attention of the tokens `range`, in tiles of at most `tile` tokens.
    fn run<T: KvElement>(
        &self,
        isa: Isa,
        q: &[f32],
        cache: &Cache<T>,
        range: std::ops::Range<usize>,
        tile: usize,
    ) -> Vec<f32> {
        let width = self.heads * self.head_dim;
        let tiles: Vec<QueryTile> = range
            .clone()
            .step_by(tile)
            .map(|first| QueryTile {
                first_row: first - range.start,
                num_tokens: tile.min(range.end - first),
                first_position: first,
                first_block: 0,
            })
            .collect();
        let q = &q[range.start * width..range.end * width];
        let mut out = vec![f32::NAN; q.len()];
        let layer = KvLayer {
            geometry: cache.geometry,
            keys: &cache.keys,
            values: &cache.values,
        };
        attention(
            isa,
            &Serial,
            self.shape(),
            q,
            layer,
            &tiles,
            &cache.blocks,
            &mut out,
        );
        out
    }

    /// Softmax attention in double precision.
    fn exact(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
        let (dim, shape) = (self.head_dim, self.shape());
        let mut out = Vec::new();
        for i in 0..self.len {
            for h in 0..self.heads {
                let kv_head = h * self.kv_heads / self.heads;
                let q = &q[(i * self.heads + h) * dim..][..dim];
                let first = (i + 1).saturating_sub(self.window.unwrap_or(usize::MAX));
                let at = |j: usize| (j * self.kv_heads + kv_head) * dim;
                let dot = |j: usize| -> f64 {
                    let k = &k[at(j)..at(j) + dim];
                    let dot = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k));
                    let score = dot.sum::<f64>() * f64::from(shape.scale);
                    shape.soft_cap.map_or(score, |cap| {
                        f64::from(cap) * (score / f64::from(cap)).tanh()
                    })
                };
                let scores: Vec<f64> = (first..=i).map(dot).collect();
                let max = scores.iter().copied().fold(f64::MIN, f64::max);
                let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                out.extend((0..dim).map(|d| {
                    let weighted = (first..=i)
                        .zip(&scores)
                        .map(|(j, s)| (s - max).exp() * f64::from(v[at(j) + d]));
                    weighted.sum::<f64>() / total
                }));
            }
        }
        out
    }
}

#[test]
fn attention_is_accurate() {
    for case in CASES {
        let [q, k, v] = case.inputs();
        let cache = case.cache::<f32>(&k, &v);
        let found = case.run(Isa::detect(), &q, &cache, 0..case.len, QUERY_TILE);
        for (i, (y, want)) in found.iter().zip(case.exact(&q, &k, &v)).enumerate() {
            let error = (f64::from(*y) - want).abs();
            assert!(
                error < 3e-6,
                "length {}: element {i} off by {error:e}",
                case.len
            );
        }
    }
}

/// Whole prompt, odd chunks and one token at a time, on every level, for both element types.
#[test]
fn a_row_has_the_same_bits_in_every_chunking_and_on_every_level() {
    fn check<T: KvElement>(case: &Case, what: &str) {
        let [q, k, v] = case.inputs();
        let cache = case.cache::<T>(&k, &v);
        let expected = case.run(Isa::Scalar, &q, &cache, 0..case.len, 1);
        assert!(expected.iter().all(|y| y.is_finite()));
        for isa in Isa::supported() {
            let what = format!("{what}, length {}, {isa}", case.len);
            for tile in [1, 3, QUERY_TILE] {
                let found = case.run(isa, &q, &cache, 0..case.len, tile);
                same_bits(&found, &expected, &format!("{what}, tiles of {tile}"));
            }
            let middle = case.len / 3;
            let mut chunks = case.run(isa, &q, &cache, 0..middle, 5);
            chunks.extend(case.run(isa, &q, &cache, middle..case.len, 8));
            same_bits(&chunks, &expected, &format!("{what}, chunks"));
        }
    }
    for case in CASES {
        check::<f32>(case, "f32");
        check::<bf16>(case, "bf16");
    }
}

#[test]
fn visible_nan_is_not_hidden() {
    let case = &CASES[1];
    let [q, mut k, v] = case.inputs();
    k[10 * case.head_dim] = f32::NAN;
    let cache = case.cache::<f32>(&k, &v);
    for isa in Isa::supported() {
        let found = case.run(isa, &q, &cache, 0..case.len, 4);
        for (token, row) in found.chunks_exact(case.heads * case.head_dim).enumerate() {
            assert_eq!(
                row.iter().all(|y| y.is_nan()),
                token >= 10,
                "{isa}, token {token}"
            );
            assert_eq!(
                row.iter().any(|y| y.is_nan()),
                token >= 10,
                "{isa}, token {token}"
            );
        }
    }
}

#[test]
fn copied_blocks_are_equal() {
    let case = &CASES[2];
    let [q, k, v] = case.inputs();
    let mut cache = case.cache::<bf16>(&k, &v);
    let expected = case.run(Isa::detect(), &q, &cache, 0..case.len, 8);
    let geometry = cache.geometry;
    let from = cache.blocks[1] as usize;
    let key_len = geometry.key_block_len();
    crate::copy_block(geometry, &mut cache.keys, key_len, from, 0);
    crate::copy_block(
        geometry,
        &mut cache.values,
        geometry.value_block_len(),
        from,
        0,
    );
    cache.blocks[1] = 0;
    let found = case.run(Isa::detect(), &q, &cache, 0..case.len, 8);
    same_bits(&found, &expected, "after the copy");
}
