//! An embedding model, alone or beside a language model.

use std::path::Path;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use backend_cpu::{CpuConfig, CpuDescription};
use encoder::{Encoder, EncoderConfig, EncoderHandle, EncoderOptions, TextTokenizer};
use gateway::{Gateway, ServedEncoder};
use metrics::Metrics;

use crate::config::Config;
use crate::load::fetch;
use crate::model_source::ModelSource;

/// A loaded embedding model that nobody can ask yet.
pub struct Loaded {
    served: ServedEncoder,
    /// Its thread, which ends after a drain.
    thread: JoinHandle<()>,
}

/// Whether `--model` names an embedding model. Fetches it where it is on the hub.
///
/// # Errors
/// What fetching says, or a `config.json` that cannot be read.
pub fn is_main_model(config: &Config) -> Result<bool> {
    match fetch(config, &config.model)? {
        None => Ok(false),
        Some(path) => Ok(encoder::is_encoder(&path)?),
    }
}

/// Loads the model that `--model` names.
///
/// # Errors
/// Whatever is missing, malformed or not supported.
pub fn load_alone(config: &Config, metrics: &Metrics) -> Result<Loaded> {
    if config.embedding_model.is_some() {
        bail!(
            "--model is an embedding model already; --embedding-model stands beside a language model"
        );
    }
    let names = config.gateway.served_model_names.clone();
    load(config, &config.model, names, metrics)
}

/// Loads the model that `--embedding-model` names.
///
/// # Errors
/// Whatever is missing, malformed or not supported.
pub fn load_beside(config: &Config, source: &ModelSource, metrics: &Metrics) -> Result<Loaded> {
    load(config, source, vec![source.name()], metrics)
}

fn load(
    config: &Config,
    source: &ModelSource,
    names: Vec<String>,
    metrics: &Metrics,
) -> Result<Loaded> {
    let path = fetch(config, source)?.context("the bundled model does not embed")?;
    let is_beside = *source != config.model;
    let options = EncoderOptions {
        // The flag is about the language model where there is one.
        max_tokens: config.max_model_len.filter(|_| !is_beside),
        threads: CpuDescription::of(&CpuConfig {
            threads: config.device.threads,
            ..CpuConfig::default()
        })?
        .threads,
        is_beside_language_model: is_beside,
    };
    let (encoder, tokenizer, thread) =
        start(config, &path, &options, metrics).with_context(|| format!("cannot open {source}"))?;
    let served = ServedEncoder {
        encoder,
        tokenizer,
        names,
        root: source.to_string(),
    };
    Ok(Loaded { served, thread })
}

fn start(
    config: &Config,
    path: &Path,
    options: &EncoderOptions,
    metrics: &Metrics,
) -> Result<(EncoderHandle, TextTokenizer, JoinHandle<()>)> {
    let loaded = Encoder::open(path, options)?;
    let limits = EncoderConfig {
        max_num_queued_reqs: config.engine.max_num_queued_reqs,
        max_num_queued_tokens: config.engine.max_num_queued_tokens,
        request_timeout: config.engine.request_timeout,
    };
    let (handle, thread) = encoder::spawn(limits, loaded.info, metrics.clone(), loaded.encoder);
    Ok((handle, loaded.tokenizer, thread))
}

impl Loaded {
    /// What was loaded, for people.
    pub fn description(&self) -> String {
        let info = self.served.encoder.info();
        format!(
            "{} ({}; {} features, {} tokens)",
            self.served.names.join(", "),
            info.description,
            info.dimension,
            info.max_tokens
        )
    }

    /// Lets requests reach it; returns its description.
    ///
    /// # Errors
    /// When there is another already.
    pub fn serve(self, gateway: &Gateway) -> Result<String> {
        let description = self.description();
        gateway.set_encoder(self.served)?;
        Ok(description)
    }

    /// Lets requests reach it as the only model; returns the thread whose end is the server's.
    ///
    /// # Errors
    /// When there is another already.
    pub fn serve_alone(self, gateway: &Gateway) -> Result<JoinHandle<()>> {
        gateway.set_encoder(self.served)?;
        Ok(self.thread)
    }
}
