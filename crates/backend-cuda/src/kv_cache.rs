//! The paged cache: one buffer, `[layer][block]` records of keys and values of all heads.

use backend::{BLOCK_SIZE, BackendError, KvCacheSpec, KvDtype, KvTypes, Result};

use crate::device::{Arg, Device};

/// Features of the widest head that the attention kernels take.
const MAX_HEAD_DIM: usize = 256;

/// Element type that the kernels read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvElement {
    F32,
    Bf16,
}

impl KvElement {
    /// The one type of all keys and values.
    fn of(layers: &[KvTypes]) -> Result<Self> {
        let same = layers.windows(2).all(|pair| pair[0] == pair[1]);
        match layers.first() {
            Some(first) if same && *first == KvTypes::both(KvDtype::Bf16) => Ok(Self::Bf16),
            None => Ok(Self::F32),
            Some(first) if same && *first == KvTypes::both(KvDtype::F32) => Ok(Self::F32),
            Some(_) => Err(BackendError::Unsupported(
                "a KV cache of 8 bits or of several types".into(),
            )),
        }
    }

    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Keys and values of all layers.
pub struct CudaKvCache<D: Device> {
    pub(crate) memory: D::Buffer,
    pub(crate) num_layers: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) num_blocks: usize,
    pub(crate) element: KvElement,
}

impl<D: Device> CudaKvCache<D> {
    /// Allocates the cache, zeroed.
    pub(crate) fn new(device: &D, spec: &KvCacheSpec) -> Result<Self> {
        let KvCacheSpec {
            num_kv_heads,
            head_dim,
            num_blocks,
            ref layers,
        } = *spec;
        let (num_layers, element) = (layers.len(), KvElement::of(layers)?);
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
        let bytes = [num_layers, num_blocks, num_kv_heads]
            .iter()
            .try_fold(2 * head_dim * BLOCK_SIZE * element.size(), |n, by| {
                n.checked_mul(*by)
            })
            .unwrap_or(usize::MAX);
        Ok(Self {
            memory: device.alloc_zeroed(bytes, "the KV cache")?,
            num_layers,
            num_kv_heads,
            head_dim,
            num_blocks,
            element,
        })
    }

    /// Bytes of one block of one layer.
    pub(crate) fn record_bytes(&self) -> usize {
        2 * self.num_kv_heads * self.head_dim * BLOCK_SIZE * self.element.size()
    }

    /// One layer as a kernel's argument.
    pub(crate) fn layer(&self, layer: usize) -> Result<Arg<'_, D::Buffer>> {
        if layer >= self.num_layers {
            return Err(BackendError::Shape(format!(
                "layer {layer} of {}",
                self.num_layers
            )));
        }
        let at = layer * self.num_blocks * self.record_bytes();
        Ok(Arg::Buffer(&self.memory, at))
    }
}
