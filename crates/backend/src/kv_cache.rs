//! The shape of the paged cache.

use crate::BLOCK_SIZE;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// 32-bit floats.
    F32,
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// 8 bits with one 32-bit scale per token and head, in the arithmetic of `quant`.
    Int8,
}

impl std::fmt::Display for KvDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl KvDtype {
    /// Bytes of one token's keys, or values, of one head: the numbers and their scale.
    pub fn head_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::Bf16 => 2 * head_dim,
            Self::Int8 => head_dim + size_of::<f32>(),
        }
    }
}

/// Element types of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvTypes {
    /// Of keys.
    pub keys: KvDtype,
    /// Of values.
    pub values: KvDtype,
}

impl KvTypes {
    /// The same for both.
    pub fn both(dtype: KvDtype) -> Self {
        Self {
            keys: dtype,
            values: dtype,
        }
    }
}

/// What a target allocates for keys and values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvCacheSpec {
    /// Key/value heads of each layer.
    pub num_kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// Blocks of [`BLOCK_SIZE`] tokens shared by all sequences.
    pub num_blocks: usize,
    /// Blocks in host memory that preempted sequences are moved to. Their ids follow those of the others;
    /// only [`crate::Backend::copy_blocks`] may name them.
    pub num_host_blocks: usize,
    /// Element types of each decoder layer.
    pub layers: Vec<KvTypes>,
}

impl KvCacheSpec {
    /// Bytes of one block over all layers, keys and values together.
    pub fn block_bytes(&self) -> usize {
        let heads = self.num_kv_heads * BLOCK_SIZE;
        let bytes = |dtype: KvDtype| heads * dtype.head_bytes(self.head_dim);
        let layers = self.layers.iter();
        layers.map(|l| bytes(l.keys) + bytes(l.values)).sum()
    }
}
