//! `CudaBackend`: our CUDA kernels over a small device trait.
//!
//! The 8-bit arithmetic, norms, activations and attention follow the orders of the CPU target, so a row
//! has the same bits on both, whatever the batch, the chunking or the tile. This crate holds memory,
//! shapes and the choice of kernels; what runs them is a [`device::Device`], which tests replace by an
//! emulator.

mod attention;
mod backend;
pub mod choice;
mod conformance;
pub mod device;
pub mod driver;
mod graphs;
pub mod images;
mod kv_cache;
mod linear;
mod pack;
pub mod probe;
mod rows;
mod sampler;
mod step;
mod tensor;
pub mod tuning;

use ::backend::LinearRole;
use quant::{BLOCK, GROUP, Granularity};

use graphs::Graphs;
use linear::Products;
use tuning::{Part, Tuned, Tuner, Tuning, Ways};

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
    /// As [`Self::Int8`], with scales for groups of weights too in the matrices that lose too much with
    /// one for each output.
    Int8Guarded,
    /// Weights and activations in 8 bits with a scale for each 32 inputs.
    Int8Blocks,
    /// Weights as in [`Self::Int8Guarded`], activations in half precision: takes the memory of the one and the
    /// products of the other.
    W8A16,
    /// Half precision, accumulated in 32 bits.
    F16,
    /// bfloat16, accumulated in 32 bits; needs compute capability 8.0.
    Bf16,
}

impl Precision {
    /// Its name in flags, messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int8Fast => "int8-fast",
            Self::Int8Guarded => "int8-guarded",
            Self::Int8Blocks => "int8-blocks",
            Self::W8A16 => "w8a16",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// Whether weights have 8 bits.
    pub fn is_int8(self) -> bool {
        !matches!(self, Self::F16 | Self::Bf16)
    }

    /// Whether products multiply 8-bit integers.
    pub fn has_int8_products(self) -> bool {
        self.activations(LinearRole::Projection).is_some()
    }

    /// Which activations of a product share a scale, where they have 8 bits and weights leave the choice.
    fn activations(self, role: LinearRole) -> Option<Granularity> {
        match (self, role) {
            (Self::W8A16 | Self::F16 | Self::Bf16, _) | (_, LinearRole::Router) => None,
            (Self::Int8Fast, LinearRole::Projection) => Some(Granularity::Row),
            (Self::Int8Blocks, _) => Some(Granularity::Groups(BLOCK)),
            (Self::Int8 | Self::Int8Guarded | Self::Int8Fast, _) => {
                Some(Granularity::Groups(GROUP))
            }
        }
    }
}

/// The CUDA target on one device.
pub struct CudaBackend<D: Device> {
    device: D,
    precision: Precision,
    products: Products<D>,
    graphs: Option<Graphs<D>>,
    tuner: Option<Tuner<D>>,
    tuned: Option<Tuned>,
}

impl<D: Device> CudaBackend<D> {
    /// A backend that computes in `precision`.
    pub fn new(device: D, precision: Precision) -> Self {
        Self {
            products: Products::new(device.properties().warpgroups),
            device,
            precision,
            graphs: None,
            tuner: None,
            tuned: None,
        }
    }

    /// From now on loads weights in `precision` and produces the operands of its products.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Whether products of warpgroups are used where the device has their kernels.
    pub fn with_warpgroups(mut self, wished: bool) -> Self {
        self.products.warpgroups = wished && self.device.properties().warpgroups;
        self
    }

    /// Measures the ways of the products of all matrices that are loaded from now on, when the first cache is asked
    /// for: weights are there then, and nothing is captured yet. Without this the table decides.
    pub fn with_tuning(mut self, tuning: Tuning) -> Self {
        self.tuner = Some(Tuner::new(tuning));
        self
    }

    /// What was measured.
    pub fn tuned(&self) -> Option<&Tuned> {
        self.tuned.as_ref()
    }

    /// From now on products go these ways, whatever the table says.
    pub fn with_ways(mut self, ways: Ways) -> Self {
        self.products.tuned = ways;
        self
    }

    /// What of the device decides about ways.
    pub fn part(&self) -> Part {
        self.products.part(&self.device)
    }

    /// Captures decode steps and replays them. Between the beginning of a step and its sample nothing may
    /// read results: they do not exist before the sample of a step that is being captured.
    pub fn with_graphs(mut self) -> Self {
        self.graphs = Some(Graphs::new());
        self
    }

    /// What it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }
}
