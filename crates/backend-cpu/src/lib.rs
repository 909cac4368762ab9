//! `CpuBackend`: its own buffers, our kernels, one worker team.
//!
//! A row of any result depends on that row's inputs only, bit for bit: not on the batch, on how a
//! prompt is cut into chunks, on the number of threads or on the level of instructions. The kernels
//! hold the orders that make it so; this crate holds memory, shapes and the division into tasks.

mod backend;
mod cores;
mod kv_cache;
mod linear;
mod sampler;
mod step;
mod team;
mod tensor;
#[cfg(test)]
mod tests;
mod twin;

use std::cell::RefCell;
use std::fmt;
use std::num::NonZeroUsize;

use kernels_cpu::Bf16Rows;
pub use kernels_cpu::{Int8Level, Isa};

use ::backend::{BackendError, LinearRole, Result};
pub use kv_cache::CpuKvCache;
pub use linear::{CpuLinear, WeightSummary};
use quant::{BLOCK, GROUP, Granularity};
pub use step::CpuStep;
use team::Team;
pub use tensor::CpuTensor;
use tensor::Pool;

/// In what weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As accurate as 32 bits: a checkpoint in bfloat16 stays so, because widening it is exact.
    #[default]
    F32,
    /// Weights and what they are multiplied with are rounded to bfloat16; sums are in 32 bits.
    Bf16,
    /// 8-bit weights with a scale per output, and 8-bit activations with a scale per token and group
    /// of 128 features.
    Int8,
    /// As [`Self::Int8`], with one scale per token; the head keeps groups.
    Int8Fast,
    /// As [`Self::Int8`], with scales for groups of weights too in the matrices that lose too much with
    /// one for each output.
    Int8Guarded,
    /// Weights and activations in 8 bits with a scale for each 32 inputs: what models need that are too
    /// small for wider groups.
    Int8Blocks,
}

impl Precision {
    /// What flags and messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int8Fast => "int8-fast",
            Self::Int8Guarded => "int8-guarded",
            Self::Int8Blocks => "int8-blocks",
        }
    }

    /// Whether weights have 8 bits.
    pub fn is_int8(self) -> bool {
        self.granularity(LinearRole::Projection).is_some()
    }

    /// How activations are quantised for a matrix, where they are.
    fn granularity(self, role: LinearRole) -> Option<Granularity> {
        match (self, role) {
            (Self::F32 | Self::Bf16, _) | (_, LinearRole::Router) => None,
            (Self::Int8Fast, LinearRole::Projection) => Some(Granularity::Row),
            (Self::Int8Blocks, _) => Some(Granularity::Groups(BLOCK)),
            (Self::Int8 | Self::Int8Guarded, _) | (Self::Int8Fast, LinearRole::Head) => {
                Some(Granularity::Groups(GROUP))
            }
        }
    }
}

/// How the target runs.
#[derive(Debug, Clone, Default)]
pub struct CpuConfig {
    /// Threads of a step, the calling one included; the physical cores this process may use if none.
    pub threads: Option<NonZeroUsize>,
    /// In what weights are kept.
    pub precision: Precision,
    /// The level of instructions; the highest of this machine if none.
    pub isa: Option<Isa>,
}

/// The CPU target. It lives on one thread, which is the first of its workers.
#[derive(Debug)]
pub struct CpuBackend {
    isa: Isa,
    int8: Int8Level,
    precision: Precision,
    team: Team,
    pool: Pool,
    /// Activations rounded for the product that is being computed.
    rounded: RefCell<Bf16Rows>,
    weights: WeightSummary,
    /// The last step's columns, for the next one.
    spare_step: Option<CpuStep>,
}

/// What the target found and what it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuDescription {
    /// The processor's own name.
    pub model: String,
    /// Physical cores this process may use.
    pub physical_cores: usize,
    /// Threads of a step.
    pub threads: usize,
    /// The level of instructions in use.
    pub isa: Isa,
    /// The highest level of this machine.
    pub detected_isa: Isa,
    /// The instructions that 8-bit products use.
    pub int8: Int8Level,
    /// In what weights are kept.
    pub precision: Precision,
}

impl CpuBackend {
    /// Starts the worker team.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when this machine lacks the level asked for,
    /// [`BackendError::Device`] when a thread cannot be started.
    pub fn new(config: CpuConfig) -> Result<Self> {
        let CpuDescription { isa, threads, .. } = CpuDescription::of(&config)?;
        let team = Team::new(threads).map_err(|error| {
            BackendError::Device(format!("cannot start {threads} threads: {error}"))
        })?;
        Ok(Self {
            isa,
            int8: Int8Level::of(isa),
            precision: config.precision,
            team,
            pool: Pool::default(),
            rounded: RefCell::default(),
            weights: WeightSummary::default(),
            spare_step: None,
        })
    }

    /// In what the matrices loaded so far are held.
    pub fn weights(&self) -> WeightSummary {
        self.weights
    }
}

impl CpuDescription {
    /// What a target with this configuration will be; nothing is started.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when this machine lacks the level asked for.
    pub fn of(config: &CpuConfig) -> Result<Self> {
        let isa = config.isa.unwrap_or_else(Isa::detect);
        if !isa.is_supported() {
            return Err(BackendError::Unsupported(format!("instruction set {isa}")));
        }
        let physical_cores = cores::physical_cores();
        Ok(Self {
            model: cores::model_name(),
            physical_cores,
            threads: config.threads.map_or(physical_cores, NonZeroUsize::get),
            isa,
            detected_isa: Isa::detect(),
            int8: Int8Level::of(isa),
            precision: config.precision,
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Display for CpuDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        write!(
            f,
            "{}, {} physical core{}; {} thread{}, {} kernels, {} for 8 bits",
            self.model,
            self.physical_cores,
            plural(self.physical_cores),
            self.threads,
            plural(self.threads),
            self.isa,
            self.int8,
        )?;
        if self.isa != self.detected_isa {
            write!(f, " (forced; {} is there)", self.detected_isa)?;
        }
        Ok(())
    }
}
