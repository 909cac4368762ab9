//! Which target computes, in which precision, and why.

use anyhow::{Result, bail};
use backend::{KvDtype, ReferenceBackend};
use backend_cpu::{CpuBackend, CpuConfig, CpuDescription, Precision};
use model::{CausalLm, Checkpoint, LoadOptions};

use crate::args::{DeviceArg, KvCacheDtypeArg, QuantizationArg};
use crate::config::DeviceConfig;

/// A choice of target with its explanation.
#[derive(Debug, Clone)]
pub struct Target {
    kind: Kind,
    /// Type of cached keys and values.
    pub kv_dtype: KvDtype,
    /// Name of the kind of device, for metrics and fingerprints.
    pub device: &'static str,
    /// What was found, for people.
    pub found: String,
    /// Threads that compute.
    pub threads: usize,
    /// Precision of the weights.
    pub precision: &'static str,
    /// Why that precision.
    pub why: &'static str,
}

#[derive(Debug, Clone)]
enum Kind {
    Cpu(CpuConfig),
    Reference,
}

impl Target {
    /// Chooses by flags and machine.
    ///
    /// # Errors
    /// When flags contradict each other, or the machine lacks what they ask for.
    pub fn choose(config: &DeviceConfig) -> Result<Self> {
        match config.device {
            DeviceArg::Auto | DeviceArg::Cpu => Self::cpu(config),
            DeviceArg::Reference => Self::reference(config),
        }
    }

    /// As [`Self::choose`], once the checkpoint is known: integers stay integers unless something else
    /// is asked for.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn choose_for(config: &DeviceConfig, checkpoint: &Checkpoint) -> Result<Self> {
        let automatic = config.quantization == QuantizationArg::Auto;
        if !automatic || config.device == DeviceArg::Reference || !checkpoint.is_int8() {
            return Self::choose(config);
        }
        let mut target = Self::choose(&DeviceConfig {
            quantization: QuantizationArg::Int8,
            ..config.clone()
        })?;
        target.why =
            "as the checkpoint is stored; activations are scaled per token and 128 features";
        Ok(target)
    }

    fn cpu(config: &DeviceConfig) -> Result<Self> {
        let (precision, why) = match config.quantization {
            QuantizationArg::Auto => (
                Precision::F32,
                "as exact as the checkpoint: bfloat16 weights stay bfloat16",
            ),
            QuantizationArg::F32 => (Precision::F32, "asked for; bfloat16 weights stay bfloat16"),
            QuantizationArg::Bf16 => (Precision::Bf16, "asked for"),
            QuantizationArg::Int8 => (
                Precision::Int8,
                "asked for; activations are scaled per token and 128 features",
            ),
            QuantizationArg::Int8Fast => (
                Precision::Int8Fast,
                "asked for; activations are scaled per token, which is less accurate than int8",
            ),
        };
        let cpu = CpuConfig {
            threads: config.threads,
            precision,
            isa: None,
        };
        let found = CpuDescription::of(&cpu)?;
        let kernels = match precision {
            Precision::F32 | Precision::Bf16 => found.isa.to_string(),
            Precision::Int8 | Precision::Int8Fast => {
                format!("{} with {} for int8", found.isa, found.int8)
            }
        };
        Ok(Self {
            kv_dtype: match (config.kv_cache_dtype, precision) {
                (KvCacheDtypeArg::F32, _) | (KvCacheDtypeArg::Auto, Precision::F32) => KvDtype::F32,
                (KvCacheDtypeArg::Bf16 | KvCacheDtypeArg::Auto, _) => KvDtype::Bf16,
                (KvCacheDtypeArg::Int8, _) => KvDtype::Int8,
            },
            device: "cpu",
            threads: found.threads,
            found: format!(
                "{}, {kernels}, {} threads on {} physical cores",
                found.model, found.threads, found.physical_cores
            ),
            precision: precision.name(),
            why,
            kind: Kind::Cpu(cpu),
        })
    }

    fn reference(config: &DeviceConfig) -> Result<Self> {
        if !matches!(
            config.quantization,
            QuantizationArg::Auto | QuantizationArg::F32
        ) {
            bail!("--device reference computes in f32 only; --quantization asks for another form");
        }
        Ok(Self {
            kind: Kind::Reference,
            kv_dtype: match config.kv_cache_dtype {
                KvCacheDtypeArg::Auto | KvCacheDtypeArg::F32 => KvDtype::F32,
                KvCacheDtypeArg::Bf16 => KvDtype::Bf16,
                KvCacheDtypeArg::Int8 => KvDtype::Int8,
            },
            device: "reference",
            threads: 1,
            found: "plain loops on one thread, the yardstick of the tests".to_owned(),
            precision: "f32",
            why: "the only one it has",
        })
    }

    /// The fewest bytes that a weight takes: bfloat16 checkpoints are not widened.
    pub fn min_weight_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Cpu(config) => match config.precision {
                Precision::Int8 | Precision::Int8Fast => 1,
                Precision::Bf16 | Precision::F32 => 2,
            },
            Kind::Reference => 4,
        }
    }

    /// Whether weights have 8 bits.
    pub fn is_int8(&self) -> bool {
        match &self.kind {
            Kind::Cpu(config) => matches!(config.precision, Precision::Int8 | Precision::Int8Fast),
            Kind::Reference => false,
        }
    }

    /// Loads a checkpoint; called on the thread that will compute.
    ///
    /// # Errors
    /// What the loader or the target say.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        options: &LoadOptions,
        report: &mut dyn FnMut(usize, usize),
    ) -> Result<Box<dyn CausalLm>> {
        Ok(match &self.kind {
            Kind::Cpu(config) => {
                let backend = CpuBackend::new(config.clone())?;
                Box::new(model::load(checkpoint, backend, options, report)?)
            }
            Kind::Reference => {
                Box::new(model::load(checkpoint, ReferenceBackend, options, report)?)
            }
        })
    }
}
