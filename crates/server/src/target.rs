//! Which target computes, in which precision, and why.

use anyhow::{Result, bail};
use backend::{KvDtype, ReferenceBackend};
use backend_cpu::{CpuBackend, CpuConfig, CpuDescription, Precision};
use model::{CausalLm, Checkpoint, LoadOptions};

use crate::args::{DeviceArg, KvCacheDtypeArg, QuantizationArg};
use crate::config::DeviceConfig;
use crate::cuda::{self, CudaTarget};

/// The share of free memory that cached keys and values take on the CPU when nothing is asked for: the
/// weights and other programs need the rest.
const KV_SHARE: u64 = 4;

/// Host memory that preempted sequences of a GPU may take, as vLLM's `--swap-space` had it, and the share of what
/// is available.
const SWAP_BYTES: u64 = 4 << 30;
const SWAP_SHARE: u64 = 4;

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
    /// Why that precision, for people.
    pub why: String,
    /// The same as a word for metrics.
    pub reason: &'static str,
}

#[derive(Debug, Clone)]
enum Kind {
    Cpu(CpuConfig),
    Cuda(Box<CudaTarget>),
    Reference,
}

impl Target {
    /// Chooses by flags and machine.
    ///
    /// # Errors
    /// When flags contradict each other, or the machine lacks what they ask for.
    pub fn choose(config: &DeviceConfig) -> Result<Self> {
        match config.device {
            // No CPU has it, so that only a GPU can be meant.
            DeviceArg::Auto if config.needs_gpu() => Self::cuda(config, None),
            DeviceArg::Auto | DeviceArg::Cpu => Self::cpu(config),
            DeviceArg::Cuda => Self::cuda(config, None),
            DeviceArg::Reference => Self::reference(config),
        }
    }

    /// Whether flags and machine can be met, as far as that is told without asking a GPU for answers and
    /// times.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn check(config: &DeviceConfig) -> Result<()> {
        match config.device {
            DeviceArg::Cuda => cuda::check(config.quantization),
            DeviceArg::Auto if config.needs_gpu() => cuda::check(config.quantization),
            _ => Self::choose(config).map(drop),
        }
    }

    /// As [`Self::choose`], once the checkpoint is known, on which `auto` depends.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn choose_for(config: &DeviceConfig, checkpoint: &Checkpoint) -> Result<Self> {
        match config.device {
            DeviceArg::Reference => Self::reference(config),
            DeviceArg::Cuda => Self::cuda(config, Some(checkpoint)),
            DeviceArg::Auto if !config.needs_cpu() => {
                Self::cuda(config, Some(checkpoint)).or_else(|reason| {
                    tracing::info!("no GPU computes: {reason:#}");
                    Self::cpu_for(config, checkpoint)
                })
            }
            DeviceArg::Auto | DeviceArg::Cpu => Self::cpu_for(config, checkpoint),
        }
    }

    fn cpu_for(config: &DeviceConfig, checkpoint: &Checkpoint) -> Result<Self> {
        match config.quantization {
            QuantizationArg::Auto => Self::on_cpu(config, automatic(checkpoint)),
            _ => Self::cpu(config),
        }
    }

    fn cpu(config: &DeviceConfig) -> Result<Self> {
        let choice = match config.quantization {
            QuantizationArg::Auto => (
                Precision::Int8Guarded,
                "activations are scaled per token and 128 features; models below 10^9 weights get blocks of 32",
            ),
            QuantizationArg::F16 => bail!(
                "--quantization f16 is for GPUs; the CPU computes in int8, int8-fast, bf16 and f32"
            ),
            QuantizationArg::W8A16 => bail!(
                "--quantization w8a16 is for GPUs; the CPU computes in int8, int8-fast, bf16 and f32"
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
        Self::on_cpu(config, choice)
    }

    fn on_cpu(config: &DeviceConfig, (precision, why): (Precision, &'static str)) -> Result<Self> {
        let cpu = CpuConfig {
            threads: config.threads,
            precision,
            isa: None,
        };
        let found = CpuDescription::of(&cpu)?;
        let kernels = match precision.is_int8() {
            false => found.isa.to_string(),
            true => format!("{} with {} for int8", found.isa, found.int8),
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
            why: why.to_owned(),
            reason: match config.quantization {
                QuantizationArg::Auto => "auto",
                _ => "asked",
            },
            kind: Kind::Cpu(cpu),
        })
    }

    fn cuda(config: &DeviceConfig, checkpoint: Option<&Checkpoint>) -> Result<Self> {
        let kv_dtype = match config.kv_cache_dtype {
            KvCacheDtypeArg::F32 => KvDtype::F32,
            KvCacheDtypeArg::Bf16 | KvCacheDtypeArg::Auto => KvDtype::Bf16,
            KvCacheDtypeArg::Int8 => KvDtype::Int8,
        };
        let (automatic, form) = checkpoint.map_or(LARGE, automatic);
        let target = cuda::choose(config, automatic, checkpoint)?;
        let why = match config.quantization {
            QuantizationArg::Auto if target.has_int8_products() => {
                format!("{form}; {}", target.why())
            }
            _ => target.why().to_owned(),
        };
        Ok(Self {
            kv_dtype,
            device: "cuda",
            threads: 1,
            found: target.found.clone(),
            precision: target.precision(),
            why,
            reason: target.reason(),
            kind: Kind::Cuda(Box::new(target)),
        })
    }

    fn reference(config: &DeviceConfig) -> Result<Self> {
        if !matches!(
            config.quantization,
            QuantizationArg::Auto | QuantizationArg::F32 | QuantizationArg::F16
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
            why: "the only one it has".to_owned(),
            reason: "only",
        })
    }

    /// The fewest bytes that a weight takes: bfloat16 checkpoints are not widened.
    pub fn min_weight_bytes(&self) -> u64 {
        match &self.kind {
            Kind::Cpu(config) if config.precision.is_int8() => 1,
            Kind::Cpu(_) => 2,
            Kind::Cuda(target) => 1 + u64::from(!target.is_int8()),
            Kind::Reference => 4,
        }
    }

    /// Bytes for keys and values when none are asked for: a share of the GPU's memory, or of what
    /// `available` bytes the machine has.
    ///
    /// # Errors
    /// The figures, when a GPU has nothing left.
    pub fn kv_cache_bytes(&self, utilization: f64, available: u64) -> Result<u64> {
        match &self.kind {
            Kind::Cuda(target) => target.kv_cache_bytes(utilization),
            Kind::Cpu(_) | Kind::Reference => Ok(available / KV_SHARE),
        }
    }

    /// Bytes of host memory for preempted sequences when none are asked for, of `available`. A CPU's cache
    /// lies there already.
    pub fn swap_bytes(&self, available: u64) -> u64 {
        match &self.kind {
            Kind::Cuda(_) => SWAP_BYTES.min(available / SWAP_SHARE),
            Kind::Cpu(_) | Kind::Reference => 0,
        }
    }

    /// Whether weights lie in the machine's own memory.
    pub fn is_on_host(&self) -> bool {
        !matches!(self.kind, Kind::Cuda(_))
    }

    /// Whether weights have 8 bits.
    pub fn is_int8(&self) -> bool {
        match &self.kind {
            Kind::Cpu(config) => config.precision.is_int8(),
            Kind::Cuda(target) => target.is_int8(),
            Kind::Reference => false,
        }
    }

    /// Whether products multiply 8-bit integers.
    pub fn has_int8_products(&self) -> bool {
        match &self.kind {
            Kind::Cuda(target) => target.has_int8_products(),
            _ => self.is_int8(),
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
                let decoder = model::load(checkpoint, backend, options, report)?;
                tracing::info!(
                    precision = self.precision,
                    "{}",
                    decoder.backend().weights()
                );
                Box::new(decoder)
            }
            Kind::Cuda(target) => target.load(checkpoint, options, report)?,
            Kind::Reference => {
                Box::new(model::load(checkpoint, ReferenceBackend, options, report)?)
            }
        })
    }
}

/// Weights from which on groups of 128 features cost little in quality; smaller models need finer ones.
const LARGE_MODEL: u64 = 1_000_000_000;

/// What large models get.
const LARGE: (Precision, &str) = (
    Precision::Int8Guarded,
    "a large model: activations are scaled per token and 128 features, weights per output or, where outliers ask for it, per 128 features",
);

/// The fastest precision that keeps a model close to its 32-bit form, and why. Integers that a
/// checkpoint stores are kept in each of them.
fn automatic(checkpoint: &Checkpoint) -> (Precision, &'static str) {
    if checkpoint.has_blocks() {
        return (
            Precision::Int8Blocks,
            "the blocks of 32 that the checkpoint stores; activations are scaled alike",
        );
    }
    match (checkpoint.num_weights() < LARGE_MODEL, checkpoint.is_int8()) {
        (true, true) => (
            Precision::Int8Blocks,
            "as the checkpoint is stored; a small model: activations are scaled per token and 32 features",
        ),
        (true, false) => (
            Precision::Int8Blocks,
            "a small model: weights and activations are scaled per 32 features",
        ),
        (false, true) => (
            Precision::Int8Guarded,
            "as the checkpoint is stored; activations are scaled per token and 128 features",
        ),
        (false, false) => LARGE,
    }
}
