//! `CudaBackend`: our CUDA kernels over a small device trait.
//!
//! The 8-bit arithmetic, norms, activations and attention follow the orders of the CPU target, so a row
//! has the same bits on both, whatever the batch, the chunking or the tile. This crate holds memory,
//! shapes and the choice of kernels; what runs them is a [`device::Device`], which tests replace by an
//! emulator.

mod backend;
pub mod device;
mod kv_cache;
mod linear;
mod pack;
mod step;
mod tensor;

use linear::Workspace;

pub use kv_cache::CudaKvCache;
pub use linear::CudaLinear;
pub use step::CudaStep;
pub use tensor::CudaTensor;

use device::Device;

/// In what weights and the operands of products are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 8 bits: a scale per output, and per token and group of 128 features.
    Int8,
    /// As [`Self::Int8`], with one scale per token; the head keeps groups.
    Int8Fast,
    /// Half precision, accumulated in 32 bits.
    F16,
    /// bfloat16, accumulated in 32 bits; needs compute capability 8.0.
    Bf16,
}

/// The CUDA target on one device.
pub struct CudaBackend<D: Device> {
    device: D,
    precision: Precision,
    workspace: Option<Workspace<D>>,
}

impl<D: Device> CudaBackend<D> {
    /// A backend that computes in `precision`.
    pub fn new(device: D, precision: Precision) -> Self {
        Self {
            device,
            precision,
            workspace: None,
        }
    }

    /// What it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }
}
