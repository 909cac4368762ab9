//! The paged cache: one buffer; of each layer, records of a block's keys and values of all heads. Host blocks
//! are the records of all layers one after the other, in memory taken at first use; copies to and from them
//! keep the device's order, and nobody waits for them.

use backend::{
    BLOCK_SIZE, BackendError, BlockCopy, BlockId, KvCacheSpec, KvDtype, KvTypes, Result,
};

use crate::device::{Arg, Device};

/// Features of the widest head that the attention kernels take.
const MAX_HEAD_DIM: usize = 256;

/// Kernels of one pair of types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvKernels {
    pub store: &'static str,
    pub attention: &'static str,
    pub partial: &'static str,
}

impl KvKernels {
    fn of(types: KvTypes) -> Result<Self> {
        let (store, attention, partial) = match (types.keys, types.values) {
            (KvDtype::F32, KvDtype::F32) => (
                "rope_store_kv_f32",
                "attention_f32",
                "attention_f32_partial",
            ),
            (KvDtype::Bf16, KvDtype::Bf16) => (
                "rope_store_kv_bf16",
                "attention_bf16",
                "attention_bf16_partial",
            ),
            (KvDtype::Int8, KvDtype::Int8) => (
                "rope_store_kv_int8",
                "attention_int8",
                "attention_int8_partial",
            ),
            (KvDtype::Bf16, KvDtype::Int8) => (
                "rope_store_kv_bf16_int8",
                "attention_bf16_int8",
                "attention_bf16_int8_partial",
            ),
            (keys, values) => {
                return Err(BackendError::Unsupported(format!(
                    "keys in {keys} with values in {values}"
                )));
            }
        };
        Ok(Self {
            store,
            attention,
            partial,
        })
    }
}

/// Keys and values of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvLayer {
    /// First byte of its records.
    pub offset: usize,
    /// Bytes of one block.
    pub record_bytes: usize,
    pub kernels: KvKernels,
}

/// Keys and values of all layers.
pub struct CudaKvCache<D: Device> {
    pub(crate) memory: D::Buffer,
    pub(crate) layers: Vec<KvLayer>,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) num_blocks: usize,
    host: HostBlocks<D>,
}

/// Bytes that the host is asked for at once: pinning memory is slow.
const SLAB_BYTES: usize = 64 << 20;

/// Blocks on the host, in slabs that are taken when one of their blocks is first named.
struct HostBlocks<D: Device> {
    slabs: Vec<Option<D::HostBuffer>>,
    num_blocks: usize,
    /// Bytes of a block: the records of all layers.
    record_bytes: usize,
    /// Blocks of a slab.
    per_slab: usize,
}

impl<D: Device> HostBlocks<D> {
    fn new(num_blocks: usize, record_bytes: usize) -> Self {
        let per_slab = (SLAB_BYTES / record_bytes.max(1)).clamp(1, num_blocks.max(1));
        Self {
            slabs: (0..num_blocks.div_ceil(per_slab)).map(|_| None).collect(),
            num_blocks,
            record_bytes,
            per_slab,
        }
    }

    /// Takes the memory that a block lies in.
    fn take(&mut self, device: &D, index: usize) -> Result<()> {
        let bytes = self.per_slab * self.record_bytes;
        match self.slabs.get_mut(index / self.per_slab) {
            Some(slab @ None) => {
                *slab = Some(device.host_alloc(bytes, "keys and values on the host")?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A block whose memory was taken.
    fn at(&self, index: usize) -> Result<(&D::HostBuffer, usize)> {
        match self.slabs.get(index / self.per_slab) {
            Some(Some(slab)) => Ok((slab, index % self.per_slab * self.record_bytes)),
            _ => Err(BackendError::Shape(format!("host block {index}"))),
        }
    }
}

/// Bytes of one head's keys of a block: words of 32 tokens, and their scales (`kv_cache.cuh`).
fn key_bytes(dtype: KvDtype, head_dim: usize) -> usize {
    let words = match dtype {
        KvDtype::F32 => head_dim,
        KvDtype::Bf16 => head_dim.div_ceil(2),
        KvDtype::Int8 => head_dim.div_ceil(4) + 1,
    };
    4 * words * BLOCK_SIZE
}

impl<D: Device> CudaKvCache<D> {
    /// Allocates the cache, zeroed.
    pub(crate) fn new(device: &D, spec: &KvCacheSpec) -> Result<Self> {
        let KvCacheSpec {
            num_kv_heads,
            head_dim,
            num_blocks,
            num_host_blocks,
            layers: ref types,
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
        let (mut layers, mut bytes) = (Vec::with_capacity(types.len()), 0usize);
        for types in types {
            let head =
                key_bytes(types.keys, head_dim) + types.values.head_bytes(head_dim) * BLOCK_SIZE;
            let layer = KvLayer {
                offset: bytes,
                record_bytes: num_kv_heads.saturating_mul(head),
                kernels: KvKernels::of(*types)?,
            };
            bytes = bytes.saturating_add(layer.record_bytes.saturating_mul(num_blocks));
            layers.push(layer);
        }
        let record_bytes = layers.iter().map(|layer| layer.record_bytes).sum();
        Ok(Self {
            memory: device.alloc_zeroed(bytes, "the KV cache")?,
            layers,
            num_kv_heads,
            head_dim,
            num_blocks,
            host: HostBlocks::new(num_host_blocks, record_bytes),
        })
    }

    /// Fails for a block that is neither the device's nor the host's.
    pub(crate) fn check_copy(&self, copy: BlockCopy) -> Result<()> {
        let num_blocks = self.num_blocks + self.host.num_blocks;
        if (copy.from.max(copy.to) as usize) < num_blocks {
            return Ok(());
        }
        Err(BackendError::Shape(format!(
            "{copy:?} of {num_blocks} blocks"
        )))
    }

    /// Whether both blocks are the device's.
    pub(crate) fn is_on_device(&self, copy: BlockCopy) -> bool {
        (copy.from.max(copy.to) as usize) < self.num_blocks
    }

    /// Asks for a copy from or to the host, behind everything that the device was asked for before. The blocks
    /// exist.
    pub(crate) fn copy_over_host(&mut self, device: &D, copy: BlockCopy) -> Result<()> {
        let on_host = |block: BlockId| (block as usize).checked_sub(self.num_blocks);
        let (from, to) = (on_host(copy.from), on_host(copy.to));
        for index in [from, to].into_iter().flatten() {
            self.host.take(device, index)?;
        }
        match (from, to) {
            (Some(from), Some(to)) => {
                let (from, to) = (self.host.at(from)?, self.host.at(to)?);
                device.copy_on_host(from, to, self.host.record_bytes)
            }
            (Some(from), None) => self.visit(copy.to, |at, start, bytes| {
                let (memory, record) = self.host.at(from)?;
                device.swap_in((memory, record + start), (&self.memory, at), bytes)
            }),
            (None, Some(to)) => self.visit(copy.from, |at, start, bytes| {
                let (memory, record) = self.host.at(to)?;
                device.swap_out((&self.memory, at), (memory, record + start), bytes)
            }),
            (None, None) => Ok(()),
        }
    }

    /// Calls for each layer with where a device block's record lies there, where in a host block, and its size.
    fn visit(
        &self,
        block: BlockId,
        mut copy: impl FnMut(usize, usize, usize) -> Result<()>,
    ) -> Result<()> {
        let mut start = 0;
        for layer in &self.layers {
            let at = layer.offset + block as usize * layer.record_bytes;
            copy(at, start, layer.record_bytes)?;
            start += layer.record_bytes;
        }
        Ok(())
    }

    /// One layer, and where it lies as a kernel's argument.
    pub(crate) fn layer(&self, index: usize) -> Result<(KvLayer, Arg<'_, D::Buffer>)> {
        let Some(layer) = self.layers.get(index) else {
            return Err(BackendError::Shape(format!(
                "layer {index} of {}",
                self.layers.len()
            )));
        };
        Ok((*layer, Arg::Buffer(&self.memory, layer.offset)))
    }

    /// Neighbouring layers whose records have one size.
    pub(crate) fn alike(&self) -> impl Iterator<Item = &[KvLayer]> {
        self.layers
            .chunk_by(|a, b| a.record_bytes == b.record_bytes)
    }
}
