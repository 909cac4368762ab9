//! NVIDIA GPUs: what was found, what would run on them and why, and the backend that runs. Without the
//! `cuda` feature a machine has none.

use anyhow::{Result, bail};
use model::{CausalLm, Checkpoint, LoadOptions};

use crate::args::QuantizationArg;
use crate::config::DeviceConfig;

/// A GPU with the precision chosen for it.
#[derive(Debug, Clone)]
pub struct CudaTarget {
    #[cfg(feature = "cuda")]
    gpu: backend_cuda::driver::Found,
    #[cfg(feature = "cuda")]
    memory: backend_cuda::device::Memory,
    #[cfg(feature = "cuda")]
    choice: backend_cuda::choice::Choice,
    /// Where the times of kernels are kept; none where they are not measured.
    #[cfg(feature = "cuda")]
    tuning: Option<crate::tuning::Kept>,
    /// The kernels and the part, for people.
    pub found: String,
    /// Bytes of weights, as far as they are known before they are read.
    #[cfg(feature = "cuda")]
    weight_bytes: u64,
}

/// Built-in targets, for metrics and `/version`.
pub const FEATURES: &str = if cfg!(feature = "cuda") {
    "cpu,cuda"
} else {
    "cpu"
};

#[cfg(feature = "cuda")]
mod found {
    use backend_cuda::choice::{Needs, Wish, decide, kv_cache_bytes};
    use backend_cuda::driver::{Found, Gpu, find};
    use backend_cuda::tuning::Tuning;
    use backend_cuda::{CudaBackend, Precision, images, probe};

    use super::*;
    use crate::args::KernelTuningArg;
    use crate::tuning::Kept;

    /// Buffers of the largest step, and the cache of one sequence.
    const STEP_BYTES: u64 = 1 << 30;
    /// Scales and the tables that stay in 16 bits come on top of one byte for each weight, a scale for
    /// each 32 weights in blocks.
    fn int8_extra(precision: Precision, weights: u64) -> u64 {
        match precision {
            Precision::Int8Blocks => weights / 16 + weights / 8,
            _ => weights / 16,
        }
    }

    /// One line for every GPU, or why there is none.
    pub fn describe() -> String {
        let gpus = match find() {
            Ok(gpus) => gpus,
            Err(reason) => return format!("cuda: {reason}\n"),
        };
        let line = |gpu: &Found| {
            let images = images::choose_built_in(gpu.properties.capability, gpu.driver);
            let (kernels, tuning) = match images {
                Ok(images) => (format!("kernels {images}"), Kept::of(gpu).describe()),
                Err(reason) => (format!("not used: {reason}"), String::new()),
            };
            format!("cuda {}: {}, {kernels}\n{tuning}", gpu.ordinal, words(gpu))
        };
        gpus.iter().map(line).collect()
    }

    fn words(gpu: &Found) -> String {
        let (major, minor) = gpu.properties.capability;
        format!(
            "{}, compute capability {major}.{minor}, {} multiprocessors, {}, driver for CUDA {}.{}",
            gpu.properties.name,
            gpu.properties.multiprocessors,
            crate::banner::bytes(gpu.total_memory),
            gpu.driver / 1000,
            gpu.driver % 1000 / 10
        )
    }

    /// What is asked for. `automatic` is the CPU's form of 8 bits, which a GPU takes too, so that a model
    /// answers alike on both.
    fn wish(quantization: QuantizationArg, automatic: backend_cpu::Precision) -> Result<Wish> {
        let automatic = match automatic {
            backend_cpu::Precision::Int8Blocks => Precision::Int8Blocks,
            _ => Precision::Int8Guarded,
        };
        Ok(match quantization {
            QuantizationArg::Auto => Wish::Auto(automatic),
            QuantizationArg::Int8 => Wish::Exactly(Precision::Int8),
            QuantizationArg::Int8Fast => Wish::Exactly(Precision::Int8Fast),
            QuantizationArg::F16 => Wish::Exactly(Precision::F16),
            QuantizationArg::W8A16 => Wish::Exactly(Precision::W8A16),
            QuantizationArg::Bf16 => Wish::Exactly(Precision::Bf16),
            QuantizationArg::F32 => bail!(
                "the CUDA target has no 32-bit products; --quantization f16 is the most exact it has"
            ),
        })
    }

    /// Whether there is a GPU with kernels for it, without asking it anything.
    ///
    /// # Errors
    /// Why no GPU computes.
    pub fn check(quantization: QuantizationArg) -> Result<()> {
        wish(quantization, backend_cpu::Precision::Int8Guarded)?;
        let mut reasons = Vec::new();
        for gpu in find().map_err(anyhow::Error::msg)? {
            match images::choose_built_in(gpu.properties.capability, gpu.driver) {
                Ok(_) => return Ok(()),
                Err(reason) => reasons.push(format!("{}: {reason}", gpu.properties.name)),
            }
        }
        bail!("{}", reasons.join("; "))
    }

    /// The first GPU that has kernels, asked and decided upon.
    ///
    /// # Errors
    /// Why no GPU computes.
    pub fn choose(
        config: &DeviceConfig,
        automatic: backend_cpu::Precision,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<CudaTarget> {
        let wish = wish(config.quantization, automatic)?;
        let mut reasons = Vec::new();
        for gpu in find().map_err(anyhow::Error::msg)? {
            let images = match images::choose_built_in(gpu.properties.capability, gpu.driver) {
                Ok(images) => images,
                Err(reason) => {
                    reasons.push(format!("{}: {reason}", gpu.properties.name));
                    continue;
                }
            };
            let device = Gpu::open(&gpu)?;
            // Who asks for a form gets it, whatever it costs.
            let largest = match wish {
                Wish::Auto(_) => checkpoint.and_then(Checkpoint::largest_matrix),
                Wish::Exactly(_) => None,
            };
            let (mut findings, _device) = probe::ask(device, largest)?;
            tracing::info!(
                "known answers of every product in {:.0} ms",
                findings.answered_in.as_secs_f64() * 1e3
            );
            findings.needs = checkpoint.map(|checkpoint| {
                let weights = checkpoint.num_weights();
                let form = match wish {
                    Wish::Auto(precision) | Wish::Exactly(precision) => precision,
                };
                Needs {
                    int8: weights + int8_extra(form, weights),
                    f16: 2 * weights,
                    rest: STEP_BYTES,
                }
            });
            match decide(wish, &findings) {
                Ok(choice) => {
                    let needs = findings.needs.map(|needs| {
                        let is_int8 = choice.precision.is_int8();
                        if is_int8 { needs.int8 } else { needs.f16 }
                    });
                    return Ok(CudaTarget {
                        found: format!("{}, kernels {images}", words(&gpu)),
                        weight_bytes: needs.unwrap_or(0),
                        tuning: (config.kernel_tuning == KernelTuningArg::Auto)
                            .then(|| Kept::of(&gpu)),
                        gpu,
                        memory: findings.memory,
                        choice,
                    });
                }
                Err(reason) => reasons.push(format!("{}: {reason}", gpu.properties.name)),
            }
        }
        bail!("{}", reasons.join("; "))
    }

    /// Says what was measured while a model was loaded, and keeps it.
    fn keep_times(backend: &CudaBackend<Gpu>, kept: &Kept) {
        let Some(tuned) = backend.tuned() else { return };
        if tuned.num_measured > 0 {
            kept.keep(tuned);
        }
        tracing::info!(
            "kernels: {} products timed in {:.2} s, {} known, {} left to the table; {} faster than by the table",
            tuned.num_measured,
            tuned.now_took.as_secs_f64(),
            tuned.num_known,
            tuned.num_left,
            tuned.others(backend.part()).count()
        );
    }

    impl CudaTarget {
        /// Name of the precision.
        pub fn precision(&self) -> &'static str {
            self.choice.precision.name()
        }

        /// Whether weights have 8 bits.
        pub fn is_int8(&self) -> bool {
            self.choice.precision.is_int8()
        }

        /// Whether products multiply 8-bit integers.
        pub fn has_int8_products(&self) -> bool {
            self.choice.precision.has_int8_products()
        }

        /// A word for metrics.
        pub fn reason(&self) -> &'static str {
            self.choice.reason
        }

        /// A sentence for people.
        pub fn why(&self) -> &str {
            &self.choice.why
        }

        /// Bytes for keys and values.
        ///
        /// # Errors
        /// The figures, when nothing is left.
        pub fn kv_cache_bytes(&self, utilization: f64) -> Result<u64> {
            kv_cache_bytes(self.memory, utilization, self.weight_bytes, STEP_BYTES)
                .map_err(anyhow::Error::msg)
        }

        /// Loads a checkpoint on the thread that will compute.
        ///
        /// # Errors
        /// What the loader or the device say.
        pub fn load(
            &self,
            checkpoint: &Checkpoint,
            options: &LoadOptions,
            report: &mut dyn FnMut(usize, usize),
        ) -> Result<Box<dyn CausalLm>> {
            let mut found = self.gpu.clone();
            found.properties.warpgroups &= self.choice.warpgroups;
            let gpu = Gpu::open(&found)?;
            let mut backend = CudaBackend::new(gpu, self.choice.precision).with_graphs();
            let tuning = self.tuning.as_ref().filter(|_| self.has_int8_products());
            if let Some(kept) = tuning {
                backend = backend.with_tuning(Tuning::new(kept.known()));
            }
            let decoder = model::load(checkpoint, backend, options, report)?;
            if let Some(kept) = tuning {
                keep_times(decoder.backend(), kept);
            }
            Ok(Box::new(decoder))
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod found {
    use super::*;

    const NONE: &str = "this build has no CUDA target (feature `cuda`)";

    pub fn describe() -> String {
        format!("cuda: {NONE}\n")
    }

    pub fn check(_: QuantizationArg) -> Result<()> {
        bail!(NONE)
    }

    pub fn choose(
        _: &DeviceConfig,
        _: backend_cpu::Precision,
        _: Option<&Checkpoint>,
    ) -> Result<CudaTarget> {
        bail!(NONE)
    }

    impl CudaTarget {
        pub fn precision(&self) -> &'static str {
            "none"
        }

        pub fn is_int8(&self) -> bool {
            false
        }

        pub fn has_int8_products(&self) -> bool {
            false
        }

        pub fn reason(&self) -> &'static str {
            NONE
        }

        pub fn why(&self) -> &str {
            NONE
        }

        pub fn kv_cache_bytes(&self, _: f64) -> Result<u64> {
            bail!(NONE)
        }

        pub fn load(
            &self,
            _: &Checkpoint,
            _: &LoadOptions,
            _: &mut dyn FnMut(usize, usize),
        ) -> Result<Box<dyn CausalLm>> {
            bail!(NONE)
        }
    }
}

pub use found::{check, choose, describe};
