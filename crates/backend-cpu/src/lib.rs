//! `CpuBackend`: its own buffers, our kernels, one worker team.
//!
//! A row of any result depends on that row's inputs only, bit for bit: not on the batch, on how a
//! prompt is cut into chunks, on the number of threads or on the level of instructions. The kernels
//! hold the orders that make it so; this crate holds memory, shapes and the division into tasks.

mod backend;
mod cores;
mod kv_cache;
mod step;
mod team;
mod tensor;
#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroUsize;

pub use kernels_cpu::Isa;

use ::backend::{BackendError, Result};
pub use kv_cache::CpuKvCache;
pub use step::CpuStep;
use team::Team;
use tensor::Pool;
pub use tensor::{CpuLinear, CpuTensor};

/// In what weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As accurate as 32 bits: a checkpoint in bfloat16 stays so, because widening it is exact.
    #[default]
    F32,
    /// Rounded to bfloat16.
    Bf16,
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
    precision: Precision,
    team: Team,
    pool: Pool,
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
        let isa = config.isa.unwrap_or_else(Isa::detect);
        if !isa.is_supported() {
            return Err(BackendError::Unsupported(format!("instruction set {isa}")));
        }
        let threads = config
            .threads
            .map_or_else(cores::physical_cores, NonZeroUsize::get);
        let team = Team::new(threads).map_err(|error| {
            BackendError::Device(format!("cannot start {threads} threads: {error}"))
        })?;
        Ok(Self {
            isa,
            precision: config.precision,
            team,
            pool: Pool::default(),
            spare_step: None,
        })
    }

    /// What runs here, for people.
    pub fn describe(&self) -> CpuDescription {
        CpuDescription {
            model: cores::model_name(),
            physical_cores: cores::physical_cores(),
            threads: self.team.threads(),
            isa: self.isa,
            detected_isa: Isa::detect(),
            precision: self.precision,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

impl fmt::Display for CpuDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n: usize| if n == 1 { "" } else { "s" };
        write!(
            f,
            "{}, {} physical core{}; {} thread{}, {} kernels",
            self.model,
            self.physical_cores,
            plural(self.physical_cores),
            self.threads,
            plural(self.threads),
            self.isa,
        )?;
        if self.isa != self.detected_isa {
            write!(f, " (forced; {} is there)", self.detected_isa)?;
        }
        Ok(())
    }
}
