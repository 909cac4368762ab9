//! Attention over the paged cache, against the reference; and the runner that the cache's own
//! promises are checked with.

use std::collections::BTreeMap;

use super::compare::{assert_close, row_scales};
use super::scene::{MIXED, Scene, Span, features, history, span};
use super::{TestBackend, Tolerances};
use crate::{AttentionSpec, KvCacheSpec, KvDtype, KvTypes, ReferenceBackend};

/// Layers of the suite's caches; attention reads the last.
pub(super) const NUM_LAYERS: usize = 2;
const SEED_Q: u64 = 21;
const SEED_K: u64 = 22;
const SEED_V: u64 = 23;

/// One layer's attention and the cache below it.
#[derive(Debug, Clone)]
pub(super) struct AttentionCase {
    pub spec: AttentionSpec,
    pub types: KvTypes,
}

/// Attention output by sequence and position.
pub(super) type Outputs = BTreeMap<(usize, usize), Vec<f32>>;

impl AttentionCase {
    /// Plain attention of `num_heads` over `num_kv_heads`.
    pub fn new(num_heads: usize, num_kv_heads: usize, head_dim: usize, types: KvTypes) -> Self {
        Self {
            spec: AttentionSpec {
                num_heads,
                num_kv_heads,
                head_dim,
                // Sharper than the usual 1/√d, so that weights differ.
                scale: 2.0 * (head_dim as f32).powf(-0.5),
                window: None,
                soft_cap: None,
            },
            types,
        }
    }

    pub fn kv_width(&self) -> usize {
        self.spec.num_kv_heads * self.spec.head_dim
    }

    pub fn q_width(&self) -> usize {
        self.spec.num_heads * self.spec.head_dim
    }

    pub fn alloc<B: TestBackend>(&self, backend: &mut B, num_blocks: usize) -> B::KvCache {
        self.alloc_with_host(backend, num_blocks, 0)
    }

    pub fn alloc_with_host<B: TestBackend>(
        &self,
        backend: &mut B,
        num_blocks: usize,
        num_host_blocks: usize,
    ) -> B::KvCache {
        let spec = KvCacheSpec {
            num_kv_heads: self.spec.num_kv_heads,
            head_dim: self.spec.head_dim,
            num_blocks,
            num_host_blocks,
            layers: vec![self.types; NUM_LAYERS],
        };
        backend.alloc_kv_cache(&spec).expect("the cache is small")
    }

    /// Begins a step and stores its keys and values, different ones in every layer.
    pub fn store<B: TestBackend>(
        &self,
        backend: &mut B,
        cache: &mut B::KvCache,
        scene: &Scene,
        spans: &[Span],
    ) -> B::Step {
        let step = backend
            .begin_step(&scene.batch(spans))
            .expect("the batch is valid");
        for layer in 0..NUM_LAYERS {
            let mut kv = |seed| {
                let data = features(seed + 100 * layer as u64, spans, self.kv_width());
                backend.upload(num_tokens(spans), self.kv_width(), &data)
            };
            let (k, v) = (kv(SEED_K), kv(SEED_V));
            backend
                .store_kv(cache, layer, &k, &v, &step)
                .expect("the shapes fit");
        }
        step
    }

    /// Computes one step: stores, then attends in the last layer.
    pub fn step<B: TestBackend>(
        &self,
        backend: &mut B,
        cache: &mut B::KvCache,
        scene: &Scene,
        spans: &[Span],
    ) -> Outputs {
        let step = self.store(backend, cache, scene, spans);
        let (rows, width) = (num_tokens(spans), self.q_width());
        let q = backend.upload(rows, width, &features(SEED_Q, spans, width));
        let out = backend
            .attention(&q, cache, NUM_LAYERS - 1, &self.spec, &step)
            .expect("the shapes fit");
        let out = backend.read(&out);
        assert_eq!(out.len(), rows * width, "elements of {self:?}");
        let places = spans
            .iter()
            .flat_map(|s| (s.start..s.end).map(move |position| (s.sequence, position)));
        places.zip(out.chunks(width).map(<[f32]>::to_vec)).collect()
    }

    /// Stores what comes before the spans in one step and computes the spans in another.
    pub fn after_history<B: TestBackend>(
        &self,
        backend: &mut B,
        scene: &Scene,
        spans: &[Span],
    ) -> Outputs {
        let mut cache = self.alloc(backend, scene.num_blocks);
        let history = history(spans);
        if !history.is_empty() {
            self.store(backend, &mut cache, scene, &history);
        }
        self.step(backend, &mut cache, scene, spans)
    }

    /// Computes several steps over one new cache.
    pub fn run<B: TestBackend>(
        &self,
        backend: &mut B,
        scene: &Scene,
        steps: &[Vec<Span>],
    ) -> Outputs {
        let mut cache = self.alloc(backend, scene.num_blocks);
        steps
            .iter()
            .flat_map(|spans| self.step(backend, &mut cache, scene, spans))
            .collect()
    }
}

fn num_tokens(spans: &[Span]) -> usize {
    spans.iter().map(|s| s.end - s.start).sum()
}

/// Head layouts of the suite: one head, several, shared keys, odd and usual widths.
pub(super) const HEADS: &[(usize, usize, usize)] = &[
    (1, 1, 8),
    (3, 1, 2),
    (6, 2, 5),
    (4, 2, 16),
    (2, 2, 80),
    (9, 3, 64),
    (4, 1, 128),
];

/// The types that a layer's cache may have.
pub(super) const KV_TYPES: [KvTypes; 4] = [
    types(KvDtype::F32, KvDtype::F32),
    types(KvDtype::Bf16, KvDtype::Bf16),
    types(KvDtype::Int8, KvDtype::Int8),
    types(KvDtype::Bf16, KvDtype::Int8),
];

const fn types(keys: KvDtype, values: KvDtype) -> KvTypes {
    KvTypes { keys, values }
}

/// `store_kv` and `attention` for every layout of heads, window, cap and type of cache, over a fresh
/// prompt, single tokens, borders of blocks, a long context and all of them mixed.
pub fn attention_matches_reference<B: TestBackend>(target: &mut B, tolerances: &Tolerances) {
    const CAPS: &[(Option<usize>, Option<f32>)] = &[
        (None, None),
        (Some(1), None),
        (Some(5), None),
        (Some(33), Some(0.5)),
        (Some(1000), None),
        (None, Some(2.0)),
    ];
    let scenes: [&[Span]; 6] = [
        &[span(0, 0, 1)],
        &[span(0, 0, 33)],
        &[span(0, 31, 32)],
        &[span(0, 32, 33)],
        &[span(0, 290, 299)],
        MIXED,
    ];
    for (num_heads, num_kv_heads, head_dim) in HEADS {
        for types in KV_TYPES {
            if !target.keeps(types) {
                continue;
            }
            for (window, soft_cap) in CAPS {
                let mut case = AttentionCase::new(*num_heads, *num_kv_heads, *head_dim, types);
                case.spec.window = *window;
                case.spec.soft_cap = *soft_cap;
                for spans in scenes {
                    compare(target, tolerances, &case, spans);
                }
            }
        }
    }
}

fn compare<B: TestBackend>(
    target: &mut B,
    tolerances: &Tolerances,
    case: &AttentionCase,
    spans: &[Span],
) {
    let bound = match case.types.keys {
        KvDtype::F32 => tolerances.attention_f32,
        KvDtype::Bf16 => tolerances.attention_bf16,
        KvDtype::Int8 => tolerances.attention_int8,
    };
    let scene = Scene::new(spans, 7);
    let found = case.after_history(target, &scene, spans);
    let expected = case.after_history(&mut ReferenceBackend, &scene, spans);
    for (place, expected) in &expected {
        let scales = row_scales(expected, case.q_width());
        assert_close(&found[place], expected, &scales, bound, (case, place));
    }
}
