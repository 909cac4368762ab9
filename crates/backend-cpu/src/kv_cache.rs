//! The paged cache: memory of all layers in their element types, and which kernel serves them.

use backend::{BackendError, BlockCopy, KvCacheSpec, KvDtype, KvTypes, Result};
use half::bf16;
use kernels_cpu::{
    AlignedBuf, AttentionShape, Int8Word, Isa, KEY_BLOCK, KvElement, KvGeometry, KvLayer,
    MAX_HEAD_DIM, TaskRunner, attention, copy_block, store_keys, store_values,
};

use crate::step::CpuStep;
use crate::tensor::zeroed;

const _: () = assert!(
    KEY_BLOCK == backend::BLOCK_SIZE,
    "one block size everywhere"
);

/// Keys and values of all layers. Memory is taken from zero pages: a block costs memory once used.
#[derive(Debug)]
pub struct CpuKvCache {
    pub(crate) geometry: KvGeometry,
    layers: Vec<Layer>,
}

/// One layer, in one of the pairs of types that loaders ask for.
#[derive(Debug)]
enum Layer {
    F32(Pair<f32, f32>),
    Bf16(Pair<bf16, bf16>),
    Int8(Pair<Int8Word, Int8Word>),
    /// Keys whose biases leave 8 bits too little, beside 8-bit values.
    WideKeys(Pair<bf16, Int8Word>),
}

/// Keys and values of one layer.
#[derive(Debug)]
struct Pair<K: KvElement, V: KvElement> {
    keys: AlignedBuf<K>,
    values: AlignedBuf<V>,
}

/// Calls a method of the pair, whatever its types.
macro_rules! with_pair {
    ($layer:expr, $pair:ident => $body:expr) => {
        match $layer {
            Layer::F32($pair) => $body,
            Layer::Bf16($pair) => $body,
            Layer::Int8($pair) => $body,
            Layer::WideKeys($pair) => $body,
        }
    };
}

/// The queries of one attention and where its results go.
pub(crate) struct Queries<'a> {
    pub(crate) shape: AttentionShape,
    pub(crate) q: &'a [f32],
    pub(crate) out: &'a mut [f32],
    pub(crate) step: &'a CpuStep,
}

impl CpuKvCache {
    /// Allocates the cache, zeroed.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] for heads wider than the kernel's and for pairs of types that it
    /// lacks, [`BackendError::Shape`] for an
    /// empty dimension, [`BackendError::OutOfMemory`].
    pub(crate) fn new(spec: &KvCacheSpec) -> Result<Self> {
        let KvCacheSpec {
            num_kv_heads,
            head_dim,
            num_blocks,
            num_host_blocks,
            ..
        } = *spec;
        if num_kv_heads == 0 || head_dim == 0 || num_blocks == 0 {
            return Err(BackendError::Shape(format!(
                "a cache of {num_kv_heads} heads of {head_dim} in {num_blocks} blocks"
            )));
        }
        if head_dim > MAX_HEAD_DIM {
            return Err(BackendError::Unsupported(format!(
                "a head of {head_dim} features (at most {MAX_HEAD_DIM})"
            )));
        }
        let geometry = KvGeometry {
            num_kv_heads,
            head_dim,
            // All memory is the host's.
            num_blocks: num_blocks.saturating_add(num_host_blocks),
        };
        let layers = spec.layers.iter().map(|types| layer(geometry, *types));
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { geometry, layers })
    }

    /// Fails for a layer that does not exist.
    pub(crate) fn check_layer(&self, layer: usize) -> Result<()> {
        let num_layers = self.layers.len();
        if layer < num_layers {
            return Ok(());
        }
        Err(BackendError::Shape(format!(
            "layer {layer} of {num_layers}"
        )))
    }

    /// Copies whole blocks in order, in every layer.
    pub(crate) fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        for layer in &mut self.layers {
            with_pair!(layer, pair => pair.copy(self.geometry, copies));
        }
    }

    /// Writes keys and values to their slots. The layer exists.
    pub(crate) fn store(
        &mut self,
        isa: Isa,
        runner: &dyn TaskRunner,
        layer: usize,
        (k, v): (&[f32], &[f32]),
        slots: &[usize],
    ) {
        let geometry = self.geometry;
        with_pair!(&mut self.layers[layer], pair => {
            store_keys(isa, runner, geometry, &mut pair.keys, k, slots);
            store_values(isa, runner, geometry, &mut pair.values, v, slots);
        });
    }

    /// Attention over one layer, which exists.
    pub(crate) fn attend(&self, isa: Isa, runner: &dyn TaskRunner, layer: usize, queries: Queries) {
        with_pair!(&self.layers[layer], pair => pair.attend(isa, runner, self.geometry, queries));
    }
}

fn layer(geometry: KvGeometry, types: KvTypes) -> Result<Layer> {
    Ok(match (types.keys, types.values) {
        (KvDtype::F32, KvDtype::F32) => Layer::F32(Pair::new(geometry)?),
        (KvDtype::Bf16, KvDtype::Bf16) => Layer::Bf16(Pair::new(geometry)?),
        (KvDtype::Int8, KvDtype::Int8) => Layer::Int8(Pair::new(geometry)?),
        (KvDtype::Bf16, KvDtype::Int8) => Layer::WideKeys(Pair::new(geometry)?),
        (keys, values) => {
            return Err(BackendError::Unsupported(format!(
                "a cache of {keys} keys and {values} values"
            )));
        }
    })
}

impl<K: KvElement, V: KvElement> Pair<K, V> {
    fn new(geometry: KvGeometry) -> Result<Self> {
        const PURPOSE: &str = "the KV cache";
        Ok(Self {
            keys: zeroed(geometry.keys_len::<K>().unwrap_or(usize::MAX), PURPOSE)?,
            values: zeroed(geometry.values_len::<V>().unwrap_or(usize::MAX), PURPOSE)?,
        })
    }

    fn copy(&mut self, geometry: KvGeometry, copies: &[BlockCopy]) {
        let (key_len, value_len) = (K::key_block_len(geometry), V::value_block_len(geometry));
        for copy in copies {
            let (from, to) = (copy.from as usize, copy.to as usize);
            copy_block(geometry, &mut self.keys, key_len, from, to);
            copy_block(geometry, &mut self.values, value_len, from, to);
        }
    }

    fn attend(&self, isa: Isa, runner: &dyn TaskRunner, geometry: KvGeometry, queries: Queries) {
        let layer = KvLayer {
            geometry,
            keys: &self.keys,
            values: &self.values,
        };
        let Queries {
            shape,
            q,
            out,
            step,
        } = queries;
        attention(
            isa,
            runner,
            shape,
            q,
            layer,
            &step.tiles,
            &step.block_tables,
            out,
        );
    }
}
