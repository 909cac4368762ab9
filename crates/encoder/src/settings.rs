//! What the files of sentence-transformers say: which folder holds the network, how its vectors become
//! one, and how long a text may be.

use model::{Folder, ModelError, Result};
use serde_json::Value;

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one.
    Cls,
    /// The largest value of each feature.
    Max,
}

impl Pooling {
    /// Its name in the files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
        }
    }
}

/// Settings beside the network's own.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where config, weights and tokenizer lie.
    pub folder: Folder,
    pub pooling: Pooling,
    /// Vectors are brought to length one.
    pub normalize: bool,
    /// Tokens of a text at most, where a file says.
    pub max_tokens: Option<usize>,
    pub lower_case: bool,
    /// No file said how to pool.
    pub is_default: bool,
}

/// The keys of `1_Pooling/config.json` up to version 5; one of them is set.
const MODES: &[(&str, &str)] = &[
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

impl Settings {
    /// Reads the files. A folder without `modules.json` is pooled by the mean and normalised.
    pub fn read(root: &Folder) -> Result<Self> {
        let mut settings = Self {
            folder: root.clone(),
            pooling: Pooling::Mean,
            normalize: true,
            max_tokens: None,
            lower_case: false,
            is_default: true,
        };
        if let Some(modules) = root.json("modules.json")? {
            settings.follow(root, &modules)?;
        }
        let sentence = settings.folder.json("sentence_bert_config.json")?;
        let sentence = sentence.unwrap_or(Value::Null);
        settings.lower_case = sentence["do_lower_case"] == true;
        settings.max_tokens = sentence["max_seq_length"].as_u64().map(|n| n as usize);
        if settings.max_tokens.is_none() {
            let tokenizer = settings.folder.json("tokenizer_config.json")?;
            let max = tokenizer.and_then(|settings| settings["model_max_length"].as_u64());
            settings.max_tokens = max.map(|n| n as usize);
        }
        Ok(settings)
    }

    fn follow(&mut self, root: &Folder, modules: &Value) -> Result<()> {
        self.normalize = false;
        for module in modules.as_array().into_iter().flatten() {
            let kind = module["type"].as_str().unwrap_or_default();
            let path = module["path"].as_str().unwrap_or_default();
            match kind.rsplit('.').next() {
                Some("Transformer") if path.is_empty() => {}
                Some("Transformer") => self.folder = root.folder(path)?,
                Some("Pooling") => {
                    let config = root.folder(path)?.json("config.json")?;
                    self.pooling = pooling(&config.unwrap_or(Value::Null))?;
                    self.is_default = false;
                }
                Some("Normalize") => self.normalize = true,
                _ => {
                    return Err(ModelError::Unsupported {
                        key: "modules.json: type".to_owned(),
                        value: kind.to_owned(),
                        reason: "Transformer, Pooling and Normalize are".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Version 6 writes the mode's name, or several names that are joined.
fn pooling(config: &Value) -> Result<Pooling> {
    let named = match &config["pooling_mode"] {
        Value::String(mode) => vec![mode.as_str()],
        Value::Array(modes) => modes.iter().filter_map(Value::as_str).collect(),
        _ => {
            let set = MODES.iter().filter(|(key, _)| config[*key] == true);
            set.map(|(_, mode)| *mode).collect()
        }
    };
    match named[..] {
        ["mean"] => Ok(Pooling::Mean),
        ["cls"] => Ok(Pooling::Cls),
        ["max"] => Ok(Pooling::Max),
        _ => Err(ModelError::Unsupported {
            key: "pooling mode".to_owned(),
            value: named.join(" and "),
            reason: "one of mean, cls and max is".to_owned(),
        }),
    }
}
