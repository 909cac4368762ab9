//! GGUF metadata read as the `config.json` of the same model, and tensor names as a Hugging Face
//! checkpoint has them.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::parse::Value;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

/// Divisors of the rotation frequencies, stored as a tensor (Llama 3.1 and later).
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Architectures that are read; all use the tensor names below.
const ARCHITECTURES: &[&str] = &["llama", "qwen2", "qwen3"];

/// The key/value part of a GGUF file.
pub(crate) struct Metadata {
    file: String,
    architecture: String,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub fn new(file: &str, values: BTreeMap<String, Value>) -> Result<Self> {
        let architecture = match values.get("general.architecture") {
            Some(Value::String(architecture)) => architecture.clone(),
            _ => {
                return Err(ModelError::malformed(
                    file,
                    "general.architecture is missing",
                ));
            }
        };
        if !ARCHITECTURES.contains(&architecture.as_str()) {
            return Err(ModelError::UnknownArchitecture {
                found: architecture,
                supported: format!("{} in GGUF files", ARCHITECTURES.join(", ")),
            });
        }
        Ok(Self {
            file: file.to_owned(),
            architecture,
            values,
        })
    }

    pub fn malformed(&self, reason: impl std::fmt::Display) -> ModelError {
        ModelError::malformed(&self.file, reason)
    }

    /// Keys that start with `prefix`, in order, with the rest of the key.
    pub fn starting_with(&self, prefix: &str) -> impl Iterator<Item = (&str, &Value)> {
        self.values
            .range(prefix.to_owned()..)
            .map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, value)))
    }

    /// A value of the right type, or nothing where the key is absent.
    pub fn typed<'a, T>(
        &'a self,
        key: &str,
        read: fn(&'a Value) -> Option<T>,
        what: &str,
    ) -> Result<Option<T>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(self.malformed(format!("{key} is not {what}"))),
            },
        }
    }

    fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A count of this architecture; a list with one value per layer counts when all are equal.
    fn count(&self, key: &str) -> Result<Option<u64>> {
        let key = self.own(key);
        let Some(Value::Array(values)) = self.values.get(&key) else {
            return self.typed(&key, Value::as_u64, "a whole number");
        };
        match values.first().and_then(Value::as_u64) {
            Some(first) if values.iter().all(|value| value.as_u64() == Some(first)) => {
                Ok(Some(first))
            }
            _ => Err(ModelError::unsupported(
                &key,
                "a list",
                "the same count in every layer is",
            )),
        }
    }

    fn required(&self, key: &str) -> Result<u64> {
        self.count(key)?
            .ok_or_else(|| self.malformed(format!("{} is missing", self.own(key))))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(&self.own(key), Value::as_f64, "a number")
    }

    /// Heads whose rows the converter interleaved: q and k of the Llama architecture.
    pub fn interleaved_heads(&self, name: &str) -> Result<Option<usize>> {
        let query_heads = || self.required("attention.head_count");
        let heads = match name {
            _ if self.architecture != "llama" => return Ok(None),
            _ if name.contains(".self_attn.q_proj.") => query_heads()?,
            _ if name.contains(".self_attn.k_proj.") => {
                match self.count("attention.head_count_kv")? {
                    Some(heads) => heads,
                    None => query_heads()?,
                }
            }
            _ => return Ok(None),
        };
        Ok(usize::try_from(heads).ok())
    }

    /// The same settings under the names of `config.json`.
    pub fn config(&self, rope_freqs: Option<Vec<f32>>, tied: bool) -> Result<ModelConfig> {
        if self.count("expert_count")?.unwrap_or(0) > 0 {
            return Err(ModelError::unsupported(
                &self.own("expert_count"),
                "experts",
                "dense layers are",
            ));
        }
        let heads = self.required("attention.head_count")?;
        let hidden = self.required("embedding_length")?;
        if heads == 0 {
            return Err(self.malformed(format!("{} is 0", self.own("attention.head_count"))));
        }
        let head_dim = self
            .count("attention.key_length")?
            .unwrap_or(hidden / heads);
        let value_dim = self.count("attention.value_length")?.unwrap_or(head_dim);
        if value_dim != head_dim {
            return Err(ModelError::unsupported(
                &self.own("attention.value_length"),
                value_dim,
                "the length of keys is",
            ));
        }
        let window = self
            .count("attention.sliding_window")?
            .filter(|window| *window > 0);
        let model_type = match (&*self.architecture, window) {
            // The Llama of Hugging Face has no window; the one that has it is called Mistral.
            ("llama", Some(_)) => "mistral",
            (architecture, _) => architecture,
        };
        let mut config = json!({
            "model_type": model_type,
            "hidden_size": hidden,
            "num_hidden_layers": self.required("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "intermediate_size": self.required("feed_forward_length")?,
            "max_position_embeddings": self.required("context_length")?,
            "rms_norm_eps": self
                .number("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| self.malformed(format!("{} is missing", self.own("attention.layer_norm_rms_epsilon"))))?,
            "rotary_dim": self.count("rope.dimension_count")?.unwrap_or(head_dim),
            "rope_parameters": self.rope()?,
            "tie_word_embeddings": tied,
            "sliding_window": window,
            "use_sliding_window": window.is_some(),
            "max_window_layers": 0,
        });
        if let Some(factors) = rope_freqs {
            config["rope_freqs"] = json!(factors);
        }
        match config {
            Json::Object(fields) => Ok(ModelConfig::from_fields(fields)),
            _ => unreachable!("the literal above is an object"),
        }
    }

    fn rope(&self) -> Result<Json> {
        let mut rope = Map::new();
        rope.insert(
            "rope_theta".into(),
            json!(self.number("rope.freq_base")?.unwrap_or(10_000.0)),
        );
        let kind = self.typed(&self.own("rope.scaling.type"), Value::as_str, "a string")?;
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        match (kind, factor) {
            (None, None) | (Some("none"), _) => {}
            (None | Some("linear"), Some(factor)) => {
                rope.insert("rope_type".into(), json!("linear"));
                rope.insert("factor".into(), json!(factor));
            }
            (Some("yarn"), Some(factor)) => {
                rope.insert("rope_type".into(), json!("yarn"));
                rope.insert("factor".into(), json!(factor));
                let keys = [
                    (
                        "original_max_position_embeddings",
                        "rope.scaling.original_context_length",
                    ),
                    ("beta_fast", "rope.scaling.yarn_beta_fast"),
                    ("beta_slow", "rope.scaling.yarn_beta_slow"),
                ];
                for (name, key) in keys {
                    if let Some(value) = self.number(key)? {
                        rope.insert(name.into(), json!(value));
                    }
                }
                if let Some(attn_factor) = self.number("rope.scaling.attn_factor")? {
                    // The file's factor multiplies the one that YaRN derives from the stretch.
                    rope.insert(
                        "attention_factor".into(),
                        json!(attn_factor * (0.1 * factor.ln() + 1.0)),
                    );
                }
            }
            (kind, _) => {
                return Err(ModelError::unsupported(
                    &self.own("rope.scaling.type"),
                    kind.unwrap_or("without factor"),
                    "none, linear and yarn with their factor are",
                ));
            }
        }
        Ok(Json::Object(rope))
    }
}

/// The name a tensor has in a Hugging Face checkpoint; an unknown one stays, and nothing will read it.
pub(crate) fn hugging_face_name(name: &str) -> String {
    const WHOLE: &[(&str, &str)] = &[
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ];
    const IN_LAYER: &[(&str, &str)] = &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    if let Some((_, known)) = WHOLE.iter().find(|(gguf, _)| *gguf == name) {
        return (*known).to_owned();
    }
    let in_layer = || {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, kind) = rest.rsplit_once('.')?;
        let (_, known) = IN_LAYER.iter().find(|(gguf, _)| *gguf == part)?;
        Some(format!("model.layers.{layer}.{known}.{kind}"))
    };
    in_layer().unwrap_or_else(|| name.to_owned())
}
