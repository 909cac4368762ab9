//! The shape of the paged cache.

use crate::BLOCK_SIZE;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
}

impl std::fmt::Display for KvDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl KvDtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// What a target allocates for keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvCacheSpec {
    /// Decoder layers.
    pub num_layers: usize,
    /// Key/value heads of each layer.
    pub num_kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// Blocks of [`BLOCK_SIZE`] tokens shared by all sequences.
    pub num_blocks: usize,
    /// Element type.
    pub dtype: KvDtype,
}

impl KvCacheSpec {
    /// Bytes of one block over all layers, keys and values together.
    pub fn block_bytes(&self) -> usize {
        2 * self.num_layers * self.num_kv_heads * self.head_dim * BLOCK_SIZE * self.dtype.size()
    }
}
