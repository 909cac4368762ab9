//! From a model's name to an engine that runs it: download, open, size the cache, load.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use engine::{Engine, EngineHandle, EngineStatus};
use gateway::{Gateway, ServedModel};
use metrics::Metrics;
use model::{Checkpoint, LoadOptions, hub};

use crate::banner::bytes;
use crate::config::Config;
use crate::embeddings;
use crate::model_source::ModelSource;
use crate::progress::Progress;
use crate::target::Target;

/// How often loading is looked after.
pub const TURN: Duration = Duration::from_millis(2);

/// A model being served.
pub struct Loaded {
    /// The engine.
    pub engine: EngineHandle,
    /// Its thread, which ends after a drain or a failure of the device.
    pub thread: JoinHandle<Result<()>>,
    /// What computes.
    pub target: Target,
    /// Container and stored types.
    pub format: String,
    /// The embedding model served beside it, for people.
    pub beside: Option<String>,
}

/// Loads the configured model and hands it to the gateway. Blocks; belongs on a thread of its own.
///
/// # Errors
/// Whatever is missing, malformed, unsupported or too large, with its name.
pub fn load(config: &Config, gateway: &Gateway, metrics: &Metrics) -> Result<Loaded> {
    let beside = match &config.embedding_model {
        Some(source) => Some(embeddings::load_beside(config, source, metrics)?),
        None => None,
    };
    let checkpoint = open(config)?;
    let target = Target::choose_for(&config.device, &checkpoint)?;
    if target.is_int8() && checkpoint.is_requantised() {
        tracing::info!(
            format = checkpoint.description(),
            "its blocks are rounded once more, to 8 bits, which adds to the error that their own bits have; a Q8_0 file is kept as it is"
        );
    }
    let (text, format) = (
        checkpoint.text().clone(),
        checkpoint.description().to_owned(),
    );
    let available = available_memory();
    if target.is_on_host() {
        check_weights(checkpoint.num_weights(), &target, available)?;
    }
    tracing::info!(
        device = target.device,
        quantization = target.precision,
        reason = target.reason,
        "{}: {}",
        target.found,
        target.why
    );
    let options = LoadOptions {
        max_model_len: config.max_model_len,
        kv_cache_bytes: match config.kv_cache_memory {
            Some(bytes) => bytes,
            None => target.kv_cache_bytes(config.gpu_memory_utilization, available)?,
        },
        swap_bytes: config
            .swap_bytes
            .unwrap_or_else(|| target.swap_bytes(available)),
        max_num_seqs: config.engine.max_num_seqs,
        kv_dtype: target.kv_dtype,
    };
    let (engine, thread) = {
        let (target, gateway) = (target.clone(), gateway.clone());
        Engine::spawn(config.engine.clone(), metrics.clone(), move || {
            let mut progress = Progress::new("loading", false);
            target.load(&checkpoint, &options, &mut |done, total| {
                progress.set(done as u64, total as u64);
                gateway.set_load_progress(done as f32 / total.max(1) as f32);
            })
        })
    };
    gateway.set_engine(engine.clone());
    let beside = beside.map(|loaded| loaded.serve(gateway)).transpose()?;
    while engine.status() == EngineStatus::Loading && !thread.is_finished() {
        std::thread::sleep(TURN);
    }
    let Some(info) = engine.info() else {
        return match thread.join() {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) => bail!("the engine ended while loading"),
            Err(_) => bail!("the engine panicked while loading"),
        };
    };
    metrics.set_cache_config(
        backend::BLOCK_SIZE,
        info.num_blocks,
        &target.kv_dtype.to_string(),
    );
    gateway.set_model(ServedModel {
        engine: engine.clone(),
        text,
        root: config.model.to_string(),
        fingerprint: vec![
            config.model.to_string(),
            format.clone(),
            target.precision.to_owned(),
            env!("CARGO_PKG_VERSION").to_owned(),
            target.device.to_owned(),
        ],
    })?;
    Ok(Loaded {
        engine,
        thread,
        target,
        format,
        beside,
    })
}

/// Opens the configured checkpoint, downloading it where it is on the hub.
///
/// # Errors
/// Whatever is missing or malformed, with its name.
pub fn open(config: &Config) -> Result<Checkpoint> {
    match fetch(config, &config.model)? {
        None => Ok(Checkpoint::from_memory(bundled::files())?),
        Some(path) => {
            let what = match &config.model {
                ModelSource::Hub(name) => name.clone(),
                _ => path.display().to_string(),
            };
            Checkpoint::open(&path).with_context(|| format!("cannot open {what}"))
        }
    }
}

/// Where a model lies, downloaded where it is on the hub; nowhere for the bundled one.
///
/// # Errors
/// Whatever the download says.
pub fn fetch(config: &Config, source: &ModelSource) -> Result<Option<PathBuf>> {
    match source {
        ModelSource::Bundled => Ok(None),
        ModelSource::Path(path) => Ok(Some(path.clone())),
        ModelSource::Hub(name) => {
            let mut current: Option<(String, Progress)> = None;
            let path = hub::fetch(name, &config.hub, &mut |progress| {
                if current
                    .as_ref()
                    .is_none_or(|(file, _)| file != progress.file)
                {
                    let what = format!("fetching {}", progress.file);
                    current = Some((progress.file.to_owned(), Progress::new(&what, true)));
                }
                if let Some((_, bar)) = &mut current {
                    bar.set(progress.done, progress.total);
                }
            })?;
            drop(current);
            Ok(Some(path))
        }
    }
}

/// Refuses weights that cannot fit before any is read. The bound is low: scales, tables and the buffers
/// of a step come on top.
fn check_weights(num_weights: u64, target: &Target, available: u64) -> Result<()> {
    let needed = num_weights.saturating_mul(target.min_weight_bytes());
    if needed <= available {
        return Ok(());
    }
    bail!(
        "{num_weights} weights in {} need at least {} of memory, {} are available; --quantization int8 \
         needs a byte for each",
        target.precision,
        bytes(needed),
        bytes(available)
    )
}

/// Bytes that may still be allocated: what the machine has left, or what the process's group may use.
pub fn available_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let free = system.available_memory();
    system
        .cgroup_limits()
        .map_or(free, |group| free.min(group.free_memory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{DeviceArg, KernelTuningArg, KvCacheDtypeArg, QuantizationArg};
    use crate::config::DeviceConfig;

    #[test]
    fn weights_beyond_memory_are_refused_with_the_figures() {
        for (quantization, weight_bytes) in [
            (QuantizationArg::Int8, 1),
            (QuantizationArg::Bf16, 2),
            (QuantizationArg::F32, 2),
        ] {
            let target = Target::choose(&DeviceConfig {
                device: DeviceArg::Cpu,
                quantization,
                kv_cache_dtype: KvCacheDtypeArg::Auto,
                threads: None,
                kernel_tuning: KernelTuningArg::Auto,
            })
            .expect("every machine has a processor");
            let available = 3 << 30;
            let fitting = available / weight_bytes;
            assert!(check_weights(fitting, &target, available).is_ok());
            let error = check_weights(fitting + 1, &target, available).expect_err("too many");
            let text = error.to_string();
            assert!(text.contains(&bytes(available)), "{text}");
            assert!(text.contains(&(fitting + 1).to_string()), "{text}");
            assert!(check_weights(u64::MAX, &target, available).is_err());
        }
    }
}
