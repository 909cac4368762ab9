//! A checkpoint, loaded and computed by candle.

use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use model::{Folder, ModelError, Result};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::network::{Config, Network, Shape};
use crate::pooling::{normalize, pool};
use crate::settings::{Pooling, Settings};
use crate::tokenizer::TextTokenizer;
use crate::weights::Weights;
use crate::worker::{Encode, EncoderInfo};

/// Multiplications of a batch: a fraction of a second on a few cores, after which other requests, a
/// client's leaving and a signal are seen to. Longer batches would be hardly faster.
const BATCH_WORK: usize = 100_000_000_000;
/// Tokens of a batch at most.
const MAX_BATCH_TOKENS: usize = 16_384;
/// Beside a language model its threads come first: the share of a contended core that is left to one of
/// ours falls to a tenth.
const NICENESS: i32 = 10;

/// What loading is told.
#[derive(Debug, Clone)]
pub struct EncoderOptions {
    /// Tokens of an input at most; the model's own limit when absent.
    pub max_tokens: Option<usize>,
    /// Threads that compute.
    pub threads: usize,
    /// A language model is served by the same process.
    pub is_beside_language_model: bool,
}

/// A loaded encoder.
pub struct Encoder {
    network: Network,
    pooling: Pooling,
    normalize: bool,
    dimension: usize,
    pad_id: u32,
    threads: ThreadPool,
}

/// What [`Encoder::open`] gives.
pub struct LoadedEncoder {
    /// The model.
    pub encoder: Encoder,
    /// Facts about it.
    pub info: EncoderInfo,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
}

/// Whether a folder holds an encoder rather than a language model: one of the architectures that load, or
/// any with the files of sentence-transformers.
///
/// # Errors
/// When its `config.json` cannot be read.
pub fn is_encoder(path: &Path) -> Result<bool> {
    let folder = Folder::new(path);
    if !path.is_dir() {
        return Ok(false);
    }
    if folder.json("modules.json")?.is_some() {
        return Ok(true);
    }
    let config = folder.json("config.json")?.unwrap_or_default();
    let known = |row: &crate::Architecture| config["model_type"] == row.model_type;
    Ok(crate::SUPPORTED.iter().any(known))
}

impl Encoder {
    /// Opens and loads a folder.
    ///
    /// # Errors
    /// Whatever is missing, malformed or not supported, by file name.
    pub fn open(path: &Path, options: &EncoderOptions) -> Result<LoadedEncoder> {
        let settings = Settings::read(&Folder::new(path))?;
        let missing = |file: &str| ModelError::Malformed {
            file: file.to_owned(),
            reason: "is missing".to_owned(),
        };
        let json = settings.folder.json("config.json")?;
        let mut config = Config::read(&json.ok_or_else(|| missing("config.json"))?)?;
        let text = settings.folder.text("tokenizer.json")?;
        let text = text.ok_or_else(|| missing("tokenizer.json"))?;
        let tokenizer = TextTokenizer::new(&text, settings.lower_case);
        let tokenizer = tokenizer.map_err(|reason| ModelError::Malformed {
            file: "tokenizer.json".to_owned(),
            reason,
        })?;
        if settings.is_default {
            tracing::info!(
                "no file says how the model pools: the mean of its tokens, of length one"
            );
        }
        let weights = Arc::new(Weights::new(
            settings.folder.tensors()?,
            config.is_distilbert(),
        ));
        let shape = config.shape()?;
        let network = config.load(&weights)?;
        weights.check_all_read()?;
        let info = info(&config, &settings, shape, &weights, &network, options)?;
        let encoder = Self {
            network,
            pooling: settings.pooling,
            normalize: settings.normalize,
            dimension: shape.dimension,
            pad_id: shape.pad_id,
            threads: threads(options)?,
        };
        Ok(LoadedEncoder {
            encoder,
            info,
            tokenizer,
        })
    }

    fn forward(&self, inputs: &[&[u32]]) -> candle_core::Result<Vec<Vec<f32>>> {
        let longest = inputs.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let mut ids = Vec::with_capacity(inputs.len() * longest);
        let mut mask = Vec::with_capacity(ids.capacity());
        for input in inputs {
            let padding = longest - input.len();
            ids.extend_from_slice(input);
            ids.extend(std::iter::repeat_n(self.pad_id, padding));
            mask.extend(std::iter::repeat_n(1u32, input.len()));
            mask.extend(std::iter::repeat_n(0u32, padding));
        }
        let shape = (inputs.len(), longest);
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        let hidden = self
            .network
            .forward(&ids, &mask)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let texts = hidden.chunks_exact(longest * self.dimension).zip(inputs);
        let vector = |(hidden, ids): (&[f32], &&[u32])| {
            let tokens = &hidden[..ids.len() * self.dimension];
            let mut vector = pool(tokens, self.dimension, self.pooling);
            if self.normalize {
                normalize(&mut vector);
            }
            vector
        };
        Ok(texts.map(vector).collect())
    }
}

impl Encode for Encoder {
    fn encode(&mut self, inputs: &[&[u32]]) -> std::result::Result<Vec<Vec<f32>>, String> {
        let this = &*self;
        this.threads
            .install(|| this.forward(inputs))
            .map_err(|error| error.to_string())
    }
}

fn info(
    config: &Config,
    settings: &Settings,
    shape: Shape,
    weights: &Weights,
    network: &Network,
    options: &EncoderOptions,
) -> Result<EncoderInfo> {
    let own = settings
        .max_tokens
        .unwrap_or(usize::MAX)
        .min(shape.max_tokens);
    if let Some(asked) = options.max_tokens.filter(|asked| *asked > shape.max_tokens) {
        return Err(ModelError::ContextTooLong {
            requested: asked,
            max: shape.max_tokens,
        });
    }
    let pooled = if settings.normalize {
        ", normalised"
    } else {
        ""
    };
    Ok(EncoderInfo {
        dimension: shape.dimension,
        max_tokens: options.max_tokens.unwrap_or(own),
        num_token_ids: shape.vocab_size,
        is_matryoshka: config.is_matryoshka(),
        batch_tokens: (BATCH_WORK / weights.num_products().max(1)).clamp(1, MAX_BATCH_TOKENS),
        pads: network.takes_mask(),
        description: format!(
            "{}, {} pooling{pooled}",
            config.name(),
            settings.pooling.name()
        ),
    })
}

/// Threads of our own: those of the process belong to others.
fn threads(options: &EncoderOptions) -> Result<ThreadPool> {
    let is_nice = options.is_beside_language_model;
    let pool = ThreadPoolBuilder::new()
        .num_threads(options.threads)
        .thread_name(|i| format!("encoder-{i}"))
        .start_handler(move |_| {
            // A system that does not know it runs them like all others.
            if is_nice && let Err(error) = rustix::process::nice(NICENESS) {
                tracing::debug!(%error, "threads of embeddings keep their priority");
            }
        })
        .build();
    pool.map_err(|error| ModelError::Io {
        file: "threads of embeddings".to_owned(),
        source: std::io::Error::other(error),
    })
}
