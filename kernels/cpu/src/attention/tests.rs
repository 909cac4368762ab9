use half::bf16;
use quant::{Granularity, quantise_row};

use super::*;
use crate::test_data::{random, same_bits};
use crate::{AlignedBuf, Int8Word, Serial, TaskRunner, store_keys, store_values};

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
    case([6, 2, 33, 601], Some(40), None),
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

struct Cache<K: KvElement, V: KvElement> {
    geometry: KvGeometry,
    keys: AlignedBuf<K>,
    values: AlignedBuf<V>,
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
    fn cache<K: KvElement, V: KvElement>(&self, isa: Isa, k: &[f32], v: &[f32]) -> Cache<K, V> {
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
        let len = geometry.keys_len::<K>().expect("small");
        let mut keys = AlignedBuf::zeroed(len).expect("memory");
        let len = geometry.values_len::<V>().expect("small");
        let mut values = AlignedBuf::zeroed(len).expect("memory");
        let all_slots: Vec<usize> = (0..num_blocks * KEY_BLOCK).collect();
        let nan = vec![f32::NAN; all_slots.len() * self.kv_heads * self.head_dim];
        for (k, v, slots) in [(&nan[..], &nan[..], &all_slots), (k, v, &slots)] {
            store_keys(isa, &Serial, geometry, &mut keys, k, slots);
            store_values(isa, &Serial, geometry, &mut values, v, slots);
        }
        Cache {
            geometry,
            keys,
            values,
            blocks,
        }
    }

    /// Attention of the tokens `range`, in tiles of at most `tile` tokens.
    fn run<K: KvElement, V: KvElement>(
        &self,
        isa: Isa,
        q: &[f32],
        cache: &Cache<K, V>,
        range: std::ops::Range<usize>,
        tile: usize,
    ) -> Vec<f32> {
        self.run_on(&Serial, isa, q, cache, range, tile)
    }

    fn run_on<K: KvElement, V: KvElement>(
        &self,
        runner: &dyn TaskRunner,
        isa: Isa,
        q: &[f32],
        cache: &Cache<K, V>,
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
            runner,
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
        let cache = case.cache::<f32, f32>(Isa::detect(), &k, &v);
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

/// Rounds numbers, heads of so many features, and widens them again.
type Round = fn(&[f32], usize) -> Vec<f32>;

/// Rounds each head of each row to 8 bits and back.
fn in_8_bits(x: &[f32], head_dim: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for head in x.chunks_exact(head_dim) {
        let (mut values, mut scale) = (vec![0; head_dim], [0.0]);
        assert_eq!(
            quantise_row(head, Granularity::Row, &mut values, &mut scale),
            0
        );
        out.extend(values.iter().map(|q| f32::from(*q) * scale[0]));
    }
    out
}

fn in_16_bits(x: &[f32], _head_dim: usize) -> Vec<f32> {
    x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect()
}

/// Attention in fewer bits is exact attention over what the rounding of queries, keys and values
/// leaves, but for the rounding of weights to 16 bits: each by at most 2⁻⁸ of itself, up and down alike.
#[test]
fn attention_in_fewer_bits_is_attention_over_rounded_numbers() {
    fn check<K: KvElement, V: KvElement>(round: [Round; 2]) {
        for case in CASES {
            let [q, k, v] = case.inputs();
            let cache = case.cache::<K, V>(Isa::detect(), &k, &v);
            let found = case.run(Isa::detect(), &q, &cache, 0..case.len, QUERY_TILE);
            let [q, k] = [q, k].map(|x| round[0](&x, case.head_dim));
            let v = round[1](&v, case.head_dim);
            let (mut worst, mut sum) = (0.0f64, 0.0);
            for (y, want) in found.iter().zip(case.exact(&q, &k, &v)) {
                let error = (f64::from(*y) - want).abs();
                (worst, sum) = (worst.max(error), sum + error);
            }
            let mean = sum / found.len() as f64;
            let length = case.len;
            assert!(worst < 2f64.powi(-8), "length {length}: off by {worst:e}");
            assert!(mean < 1e-3, "length {length}: off by {mean:e} on average");
        }
    }
    check::<bf16, bf16>([in_16_bits; 2]);
    check::<Int8Word, Int8Word>([in_8_bits; 2]);
    check::<bf16, Int8Word>([in_16_bits, in_8_bits]);
}

/// Runs tasks in falling order and claims to have many threads.
struct Backwards;

// SAFETY: the loop visits every index once, on this thread.
unsafe impl TaskRunner for Backwards {
    fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        for index in (0..num_tasks).rev() {
            task(index);
        }
    }

    fn threads(&self) -> usize {
        1000
    }
}

/// Splits as tasks of their own, in any order.
#[test]
fn a_row_has_the_same_bits_when_its_splits_are_divided() {
    fn check<K: KvElement, V: KvElement>(case: &Case) {
        let [q, k, v] = case.inputs();
        for isa in Isa::supported() {
            let cache = case.cache::<K, V>(isa, &k, &v);
            let tiles = [(0..case.len, 5), (case.len - 1..case.len, 1)];
            for (range, tile) in tiles {
                let expected = case.run(isa, &q, &cache, range.clone(), tile);
                let found = case.run_on(&Backwards, isa, &q, &cache, range, tile);
                same_bits(&found, &expected, &format!("length {}, {isa}", case.len));
            }
        }
    }
    for case in CASES {
        check::<f32, f32>(case);
        check::<bf16, bf16>(case);
        check::<Int8Word, Int8Word>(case);
    }
}

/// Whole prompt, odd chunks and one token at a time, on every level, for every type of cache.
#[test]
fn a_row_has_the_same_bits_in_every_chunking_and_on_every_level() {
    fn check<K: KvElement, V: KvElement>(case: &Case, what: &str) {
        let [q, k, v] = case.inputs();
        let cache = case.cache::<K, V>(Isa::Scalar, &k, &v);
        let expected = case.run(Isa::Scalar, &q, &cache, 0..case.len, 1);
        assert!(expected.iter().all(|y| y.is_finite()));
        for isa in Isa::supported() {
            let what = format!("{what}, length {}, {isa}", case.len);
            let cache = case.cache::<K, V>(isa, &k, &v);
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
        check::<f32, f32>(case, "f32");
        check::<bf16, bf16>(case, "bf16");
        check::<Int8Word, Int8Word>(case, "int8");
        check::<bf16, Int8Word>(case, "bf16 keys, int8 values");
    }
}

/// One token with NaN in its keys, or in its values, shows in every row that sees it and in no other.
#[test]
fn visible_nan_is_not_hidden() {
    fn check<K: KvElement, V: KvElement>() {
        let case = &CASES[1];
        for poisoned in [0, 1] {
            let [q, mut k, mut v] = case.inputs();
            let x = if poisoned == 0 { &mut k } else { &mut v };
            x[10 * case.head_dim..11 * case.head_dim].fill(f32::NAN);
            for isa in Isa::supported() {
                let cache = case.cache::<K, V>(isa, &k, &v);
                let found = case.run(isa, &q, &cache, 0..case.len, 4);
                for (token, row) in found.chunks_exact(case.heads * case.head_dim).enumerate() {
                    let context = format!("{isa}, token {token}");
                    assert_eq!(row.iter().all(|y| y.is_nan()), token >= 10, "{context}");
                    assert_eq!(row.iter().any(|y| y.is_nan()), token >= 10, "{context}");
                }
            }
        }
    }
    check::<f32, f32>();
    check::<bf16, bf16>();
    check::<Int8Word, Int8Word>();
    check::<bf16, Int8Word>();
}

#[test]
fn copied_blocks_are_equal() {
    fn check<K: KvElement, V: KvElement>() {
        let case = &CASES[2];
        let [q, k, v] = case.inputs();
        let isa = Isa::detect();
        let mut cache = case.cache::<K, V>(isa, &k, &v);
        let expected = case.run(isa, &q, &cache, 0..case.len, 8);
        let geometry = cache.geometry;
        let from = cache.blocks[1] as usize;
        let (key_len, value_len) = (K::key_block_len(geometry), V::value_block_len(geometry));
        crate::copy_block(geometry, &mut cache.keys, key_len, from, 0);
        crate::copy_block(geometry, &mut cache.values, value_len, from, 0);
        // What is written to the old block afterwards, scales included, does not show in the copy.
        let slots: Vec<usize> = (from * KEY_BLOCK..(from + 1) * KEY_BLOCK).collect();
        let other = random(9, slots.len() * case.kv_heads * case.head_dim);
        let other: Vec<f32> = other.into_iter().map(|x| 40.0 * x).collect();
        store_keys(isa, &Serial, geometry, &mut cache.keys, &other, &slots);
        store_values(isa, &Serial, geometry, &mut cache.values, &other, &slots);
        cache.blocks[1] = 0;
        let found = case.run(isa, &q, &cache, 0..case.len, 8);
        same_bits(&found, &expected, "after the copy");
    }
    check::<f32, f32>();
    check::<bf16, bf16>();
    check::<Int8Word, Int8Word>();
}
