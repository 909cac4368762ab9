//! The paged cache: memory of all layers in either element type, and which kernel serves it.

use backend::{BackendError, BlockCopy, KvCacheSpec, KvDtype, Result};
use half::bf16;
use kernels_cpu::{
    AlignedBuf, AttentionShape, Isa, KEY_BLOCK, KvElement, KvGeometry, KvLayer, MAX_HEAD_DIM,
    TaskRunner, attention, copy_block, store_keys, store_values,
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
    layers: Layers,
}

#[derive(Debug)]
enum Layers {
    F32(Vec<Layer<f32>>),
    Bf16(Vec<Layer<bf16>>),
}

#[derive(Debug)]
struct Layer<T: KvElement> {
    keys: AlignedBuf<T>,
    values: AlignedBuf<T>,
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
    /// [`BackendError::Unsupported`] for heads wider than the kernel's, [`BackendError::Shape`] for an
    /// empty dimension, [`BackendError::OutOfMemory`].
    pub(crate) fn new(spec: &KvCacheSpec) -> Result<Self> {
        let KvCacheSpec {
            num_kv_heads,
            head_dim,
            num_blocks,
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
            num_blocks,
        };
        let layers = match spec.dtype {
            KvDtype::F32 => Layers::F32(allocate(geometry, spec.num_layers)?),
            KvDtype::Bf16 => Layers::Bf16(allocate(geometry, spec.num_layers)?),
        };
        Ok(Self { geometry, layers })
    }

    /// Fails for a layer that does not exist.
    pub(crate) fn check_layer(&self, layer: usize) -> Result<()> {
        let num_layers = match &self.layers {
            Layers::F32(layers) => layers.len(),
            Layers::Bf16(layers) => layers.len(),
        };
        if layer < num_layers {
            return Ok(());
        }
        Err(BackendError::Shape(format!(
            "layer {layer} of {num_layers}"
        )))
    }

    /// Copies whole blocks in order, in every layer.
    pub(crate) fn copy_blocks(&mut self, copies: &[BlockCopy]) {
        let geometry = self.geometry;
        match &mut self.layers {
            Layers::F32(layers) => layers.iter_mut().for_each(|l| l.copy(geometry, copies)),
            Layers::Bf16(layers) => layers.iter_mut().for_each(|l| l.copy(geometry, copies)),
        }
    }

    /// Writes keys and values to their slots. The layer exists.
    pub(crate) fn store(
        &mut self,
        runner: &dyn TaskRunner,
        layer: usize,
        k: &[f32],
        v: &[f32],
        slots: &[usize],
    ) {
        let geometry = self.geometry;
        match &mut self.layers {
            Layers::F32(layers) => layers[layer].store(runner, geometry, k, v, slots),
            Layers::Bf16(layers) => layers[layer].store(runner, geometry, k, v, slots),
        }
    }

    /// Attention over one layer, which exists.
    pub(crate) fn attend(&self, isa: Isa, runner: &dyn TaskRunner, layer: usize, queries: Queries) {
        match &self.layers {
            Layers::F32(layers) => layers[layer].attend(isa, runner, self.geometry, queries),
            Layers::Bf16(layers) => layers[layer].attend(isa, runner, self.geometry, queries),
        }
    }
}

fn allocate<T: KvElement>(geometry: KvGeometry, num_layers: usize) -> Result<Vec<Layer<T>>> {
    let memory = |len: Option<usize>| zeroed(len.unwrap_or(usize::MAX), "the KV cache");
    (0..num_layers)
        .map(|_| {
            Ok(Layer {
                keys: memory(geometry.keys_len())?,
                values: memory(geometry.values_len())?,
            })
        })
        .collect()
}

impl<T: KvElement> Layer<T> {
    fn copy(&mut self, geometry: KvGeometry, copies: &[BlockCopy]) {
        for copy in copies {
            let (from, to) = (copy.from as usize, copy.to as usize);
            copy_block(geometry, &mut self.keys, geometry.key_block_len(), from, to);
            let len = geometry.value_block_len();
            copy_block(geometry, &mut self.values, len, from, to);
        }
    }

    fn store(
        &mut self,
        runner: &dyn TaskRunner,
        geometry: KvGeometry,
        k: &[f32],
        v: &[f32],
        slots: &[usize],
    ) {
        store_keys(runner, geometry, &mut self.keys, k, slots);
        store_values(runner, geometry, &mut self.values, v, slots);
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
