//! An opened checkpoint: its configuration, its tensors and its text files, whatever the container.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::ModelConfig;
use crate::error::{ModelError, Result};
use crate::files::{FileBytes, Files, file_name};
use crate::gguf::{GgufFile, split};
use crate::mapped::map;
use crate::prompts::Prompt;
use crate::quantised;
use crate::safetensors_files::SafetensorsFiles;
use crate::tensors::TensorSource;
use crate::{GenerationDefaults, TextFiles};

/// A model on disk or in memory, opened but not loaded.
pub struct Checkpoint {
    config: ModelConfig,
    source: Box<dyn TensorSource>,
    text: TextFiles,
    vocab_size: Option<usize>,
    description: String,
}

impl Checkpoint {
    /// Opens a Hugging Face directory, a directory with one GGUF file, or a GGUF file.
    ///
    /// # Errors
    /// Whatever is missing or malformed, by file name.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::open_gguf(path);
        }
        if path.join("config.json").exists() {
            return Self::open_files(&Files::Directory(path.to_owned()));
        }
        Self::open_gguf(&single_gguf(path)?)
    }

    /// Uses files that are already in memory; they have the names of a Hugging Face directory.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_memory(files: &[(&str, &'static [u8])]) -> Result<Self> {
        let owned =
            |(name, bytes): &(&str, &'static [u8])| ((*name).to_owned(), Cow::Borrowed(*bytes));
        Self::from_bytes(files.iter().map(owned).collect())
    }

    /// Uses files of a Hugging Face directory, or one GGUF file, whose bytes are handed over.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_bytes(mut files: Vec<(String, Cow<'static, [u8]>)>) -> Result<Self> {
        match files.pop_if(|(name, _)| name.ends_with(".gguf")) {
            Some((name, bytes)) => Self::of_gguf(vec![(name, FileBytes::Memory(bytes))], None),
            None => Self::open_files(&Files::Memory(files)),
        }
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let parts: Result<Vec<_>> = split::parts(path)?
            .iter()
            .map(|part| Ok((file_name(part), map(part)?)))
            .collect();
        let beside = match path.parent() {
            Some(dir) => Files::Directory(dir.to_owned()).text("tokenizer.json")?,
            None => None,
        };
        Self::of_gguf(parts?, beside)
    }

    fn of_gguf(
        parts: Vec<(String, FileBytes)>,
        beside: Option<Cow<'static, [u8]>>,
    ) -> Result<Self> {
        let gguf = GgufFile::open(parts)?;
        let text = gguf.text(beside.map(Cow::into_owned))?;
        Ok(Self {
            config: gguf.config()?,
            vocab_size: Tokenizer::parse(&text.tokenizer_json)?.vocab_size(),
            description: gguf.description(),
            text,
            source: Box::new(gguf),
        })
    }

    fn open_files(files: &Files) -> Result<Self> {
        let config = files
            .text("config.json")?
            .ok_or_else(|| ModelError::malformed("config.json", "is missing"))?;
        let config = ModelConfig::parse(&config)?.into_text();
        let source = quantised::open(&config, files, SafetensorsFiles::open(files)?)?;
        let (text, vocab_size) = text_files(files, &config)?;
        Ok(Self {
            vocab_size,
            description: match source.quantised() {
                Some(format) => format!("safetensors, {format}"),
                None => "safetensors".to_owned(),
            },
            config,
            source,
            text,
        })
    }

    /// The configuration, GGUF metadata translated.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokenizer, templates and sampling defaults.
    pub fn text(&self) -> &TextFiles {
        &self.text
    }

    /// Ids that the tokenizer knows.
    pub fn vocab_size(&self) -> Option<usize> {
        self.vocab_size
    }

    /// Numbers in all tensors together.
    pub fn num_weights(&self) -> u64 {
        let names = self.source.names();
        let shapes = names.iter().filter_map(|name| self.source.shape(name));
        let count = |shape: &[usize]| {
            let dims = shape.iter().map(|dim| *dim as u64);
            dims.fold(1, u64::saturating_mul)
        };
        shapes.map(count).fold(0, u64::saturating_add)
    }

    /// Outputs and inputs of the largest matrix of a layer, which is what products of the model cost;
    /// tables of tokens are not of a layer.
    pub fn largest_matrix(&self) -> Option<[usize; 2]> {
        let is_table = |name: &str| {
            let parts = ["embed", "embd", "wte", "wpe", "lm_head"];
            name == "output.weight" || parts.iter().any(|part| name.contains(part))
        };
        let names = self.source.names();
        let shapes = names.iter().filter(|name| !is_table(name));
        let matrices = shapes.filter_map(|name| match self.source.shape(name) {
            Some([rows, columns]) => Some([*rows, *columns]),
            _ => None,
        });
        matrices.max_by_key(|[rows, columns]| rows * columns)
    }

    /// Container and stored types in a few words.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether matrices are stored as 8-bit integers, so that wider weights would gain nothing.
    pub fn is_int8(&self) -> bool {
        self.source.quantised().is_some()
    }

    /// Whether matrices are stored as 8-bit integers with a scale for each 32.
    pub fn has_blocks(&self) -> bool {
        self.source.has_blocks()
    }

    /// Whether matrices come in blocks of fewer bits or other scales, which 8-bit precisions round once
    /// more.
    pub fn is_requantised(&self) -> bool {
        self.source.requantised()
    }

    pub(crate) fn source(&self) -> &dyn TensorSource {
        &*self.source
    }
}

/// The one GGUF file of a folder, or the first part of the one split model.
fn single_gguf(dir: &Path) -> Result<PathBuf> {
    let entries =
        std::fs::read_dir(dir).map_err(|source| ModelError::io(&file_name(dir), source))?;
    let files = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".gguf"))
        .collect();
    match &split::first_parts(files)[..] {
        [file] => Ok(dir.join(file)),
        [] => Err(ModelError::malformed(
            &file_name(dir),
            "holds no config.json and no .gguf file to begin with",
        )),
        _ => Err(ModelError::malformed(
            &file_name(dir),
            "holds several .gguf files; name one",
        )),
    }
}

fn json(files: &Files, name: &str) -> Result<Value> {
    match files.text(name)? {
        None => Ok(Value::Null),
        Some(bytes) => {
            serde_json::from_slice(&bytes).map_err(|error| ModelError::malformed(name, error))
        }
    }
}

/// The text files and the number of ids the tokenizer knows.
fn text_files(files: &Files, config: &ModelConfig) -> Result<(TextFiles, Option<usize>)> {
    const MISSING: &str = "is missing; save the tokenizer with the fast tokenizer of transformers";
    const SENTENCEPIECE: &str = "is missing. The folder holds a tokenizer.model only; convert it with `pip install transformers sentencepiece tiktoken` and `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('FOLDER').save_pretrained('FOLDER')\"`, or use a GGUF file of the model, which carries its tokenizer";
    let missing = match files.exists("tokenizer.model") {
        true => SENTENCEPIECE,
        false => MISSING,
    };
    let tokenizer_json = files
        .text("tokenizer.json")?
        .ok_or_else(|| ModelError::malformed("tokenizer.json", missing))?
        .into_owned();
    let tokenizer = Tokenizer::parse(&tokenizer_json)?;
    let settings = json(files, "tokenizer_config.json")?;
    let generation = json(files, "generation_config.json")?;
    let mut chat_templates = match files.text("chat_template.jinja")? {
        Some(source) => vec![(
            "default".to_owned(),
            String::from_utf8_lossy(&source).into_owned(),
        )],
        None => templates(&settings["chat_template"]),
    };
    let eos_token = token_text(&settings["eos_token"]);
    let mut eos_token_ids = eos_ids(config, &generation)?;
    eos_token_ids.extend(eos_token.as_deref().and_then(|eos| tokenizer.token_id(eos)));
    // OpenAssistant's messages end in the end token, so a format without one cannot be written.
    let prompt = Prompt::of(|text| tokenizer.token_id(text))
        .filter(|_| chat_templates.is_empty() && eos_token.is_some());
    if let Some(prompt) = prompt {
        tracing::info!(
            prompt = prompt.name,
            "the checkpoint has no chat template, its family's prompt format is used"
        );
        chat_templates.push(("default".to_owned(), prompt.template.to_owned()));
        eos_token_ids.extend(prompt.end_ids(|text| tokenizer.token_id(text)));
    }
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    let text = TextFiles {
        chat_templates,
        bos_token: token_text(&settings["bos_token"]),
        eos_token,
        unk_token: token_text(&settings["unk_token"]),
        pad_token: token_text(&settings["pad_token"]),
        add_bos_token: settings["add_bos_token"].as_bool(),
        eos_token_ids,
        generation: generation_defaults(&generation),
        tokenizer_json,
    };
    Ok((text, tokenizer.vocab_size()))
}

fn eos_ids(config: &ModelConfig, generation: &Value) -> Result<Vec<u32>> {
    let mut ids = config.token_ids("eos_token_id")?;
    if let Value::Object(fields) = generation {
        ids.extend(ModelConfig::from_fields(fields.clone()).token_ids("eos_token_id")?);
    }
    Ok(ids)
}

/// A string, or an object with the text under `content`.
fn token_text(value: &Value) -> Option<String> {
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

/// A template, or a list of named ones.
fn templates(value: &Value) -> Vec<(String, String)> {
    match value {
        Value::String(source) => vec![("default".to_owned(), source.clone())],
        Value::Array(named) => named
            .iter()
            .filter_map(|entry| {
                Some((
                    entry["name"].as_str()?.to_owned(),
                    entry["template"].as_str()?.to_owned(),
                ))
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn generation_defaults(value: &Value) -> GenerationDefaults {
    let float = |key: &str| value[key].as_f64().map(|x| x as f32);
    GenerationDefaults {
        do_sample: value["do_sample"].as_bool(),
        temperature: float("temperature"),
        top_p: float("top_p"),
        top_k: value["top_k"].as_u64().and_then(|k| u32::try_from(k).ok()),
        min_p: float("min_p"),
        repetition_penalty: float("repetition_penalty"),
    }
}

/// What loading asks of a `tokenizer.json`; text is tokenised elsewhere.
struct Tokenizer(Value);

impl Tokenizer {
    fn parse(text: &[u8]) -> Result<Self> {
        match serde_json::from_slice(text) {
            Ok(value @ Value::Object(_)) => Ok(Self(value)),
            Ok(_) => Err(ModelError::malformed("tokenizer.json", "not a JSON object")),
            Err(error) => Err(ModelError::malformed("tokenizer.json", error)),
        }
    }

    fn added(&self) -> impl Iterator<Item = &Value> {
        self.0["added_tokens"].as_array().into_iter().flatten()
    }

    /// The id of a token by its exact text.
    fn token_id(&self, text: &str) -> Option<u32> {
        self.added()
            .filter(|token| token["content"] == text)
            .find_map(|token| token["id"].as_u64())
            .or_else(|| self.0["model"]["vocab"][text].as_u64())
            .and_then(|id| u32::try_from(id).ok())
    }

    /// One more than the largest id.
    fn vocab_size(&self) -> Option<usize> {
        let in_model = match &self.0["model"]["vocab"] {
            Value::Object(map) => map.values().filter_map(Value::as_u64).max(),
            Value::Array(pieces) => (pieces.len() as u64).checked_sub(1),
            _ => None,
        };
        let largest = self
            .added()
            .filter_map(|token| token["id"].as_u64())
            .chain(in_model)
            .max()?;
        usize::try_from(largest).ok()?.checked_add(1)
    }
}
