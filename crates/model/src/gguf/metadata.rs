//! GGUF metadata read as the `config.json` of the same model.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::families::GgufFamily;
use super::parse::Value;
use crate::config::ModelConfig;
use crate::error::{ModelError, Result};

/// Divisors of the rotation frequencies, stored as a tensor (Llama 3.1 and later).
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Divisors of the rotation frequencies for long and for short contexts, stored as tensors (Phi 3).
pub(crate) const ROPE_FACTORS: [&str; 2] =
    ["rope_factors_long.weight", "rope_factors_short.weight"];

/// What the tensors of a file say about its model.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Of [`ROPE_FREQS`].
    pub rope_freqs: Option<Vec<f32>>,
    /// Of [`ROPE_FACTORS`].
    pub rope_factors: Option<[Vec<f32>; 2]>,
    /// There is no head beside the embedding.
    pub tied: bool,
    /// Layers have a norm before the MLP.
    pub mlp_norm: bool,
    /// Layers have a second norm before attention.
    pub two_norms: bool,
    /// Layers normalise queries and keys.
    pub qk_norm: bool,
    /// Rows of the first layer's fused q, k and v.
    pub qkv_rows: Option<usize>,
}

/// The key/value part of a GGUF file.
pub(crate) struct Metadata {
    file: String,
    family: &'static GgufFamily,
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
        let family =
            GgufFamily::find(&architecture).ok_or_else(|| ModelError::UnknownArchitecture {
                found: architecture,
                supported: format!("{} in GGUF files", GgufFamily::list()),
            })?;
        Ok(Self {
            file: file.to_owned(),
            family,
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
        format!("{}.{key}", self.family.architecture)
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

    pub fn family(&self) -> &'static GgufFamily {
        self.family
    }

    /// Heads whose rows the converter interleaved: q and k of Llama and what derives from it.
    pub fn interleaved_heads(&self, name: &str) -> Result<Option<usize>> {
        let query_heads = || self.required("attention.head_count");
        let heads = match name {
            _ if !self.family.interleaved => return Ok(None),
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
    pub fn config(&self, stored: Stored) -> Result<ModelConfig> {
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
        let experts = self.count("expert_count")?.filter(|experts| *experts > 0);
        let model_type = match (self.family.model_type, experts, window) {
            // The Llama of Hugging Face has neither experts nor a window; the ones that have them are
            // called Mixtral and Mistral.
            ("llama", Some(_), _) => "mixtral",
            ("llama", None, Some(_)) => "mistral",
            (model_type, _, _) => model_type,
        };
        let width = match self.count("feed_forward_length")? {
            Some(width) => Some(width),
            None if experts.is_some() => self.count("expert_feed_forward_length")?,
            None => Some(self.required("feed_forward_length")?),
        };
        let eps = match self.number("attention.layer_norm_rms_epsilon")? {
            Some(eps) => eps,
            None => self
                .number("attention.layer_norm_epsilon")?
                .ok_or_else(|| {
                    self.malformed(format!(
                        "{} is missing",
                        self.own("attention.layer_norm_rms_epsilon")
                    ))
                })?,
        };
        let mut config = json!({
            "model_type": model_type,
            "hidden_size": hidden,
            "num_hidden_layers": self.required("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": self.count("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "intermediate_size": width,
            "n_inner": width,
            "ffn_hidden_size": width,
            "max_position_embeddings": self.required("context_length")?,
            "rms_norm_eps": eps,
            "layer_norm_eps": eps,
            "layer_norm_epsilon": eps,
            "rotary_dim": self.count("rope.dimension_count")?.unwrap_or(head_dim),
            "rope_parameters": self.rope()?,
            "tie_word_embeddings": stored.tied,
            "sliding_window": window,
            "use_sliding_window": window.is_some(),
            "max_window_layers": 0,
        });
        if let Some(factors) = &stored.rope_freqs {
            config["rope_freqs"] = json!(factors);
        }
        if let Some(experts) = experts {
            config["num_local_experts"] = json!(experts);
            config["num_experts_per_tok"] = json!(self.required("expert_used_count")?);
            config["norm_topk_prob"] = json!(true);
            config["moe_intermediate_size"] =
                json!(self.count("expert_feed_forward_length")?.or(width));
        }
        self.of_family(&mut config, &stored)?;
        match config {
            Json::Object(fields) => Ok(ModelConfig::from_fields(fields)),
            _ => unreachable!("the literal above is an object"),
        }
    }

    /// The settings that a single family has.
    fn of_family(&self, config: &mut Json, stored: &Stored) -> Result<()> {
        let copy = |config: &mut Json, pairs: &[(&str, &str)]| -> Result<()> {
            for (name, key) in pairs {
                if let Some(value) = self.number(key)? {
                    config[*name] = json!(value);
                }
            }
            Ok(())
        };
        match self.family.model_type {
            "gpt2" => config["activation_function"] = json!("gelu_new"),
            "gpt_neox" => {
                let key = self.own("use_parallel_residual");
                let parallel = self.typed(&key, Value::as_bool, "true or false")?;
                config["use_parallel_residual"] = json!(parallel.unwrap_or(true));
                config["ordered_qkv"] = json!(true);
            }
            "stablelm" => {
                config["use_parallel_residual"] = json!(!stored.mlp_norm);
                config["qk_layernorm"] = json!(stored.qk_norm);
            }
            "falcon" => {
                // What the file says of key heads differs from converter to converter.
                let count = |key: &str| config[key].as_u64().unwrap_or(1);
                let rows = stored.qkv_rows.unwrap_or(0) as u64 / count("head_dim").max(1);
                let kv_heads = rows.saturating_sub(count("num_attention_heads")) / 2;
                config["num_kv_heads"] = json!(kv_heads);
                config["num_key_value_heads"] = json!(kv_heads);
                config["new_decoder_architecture"] = json!(true);
                config["num_ln_in_parallel_attn"] = json!(1 + u8::from(stored.two_norms));
                config["ordered_qkv"] = json!(true);
            }
            "granite" => copy(
                config,
                &[
                    ("attention_multiplier", "attention.scale"),
                    ("embedding_multiplier", "embedding_scale"),
                    ("residual_multiplier", "residual_scale"),
                    ("logits_scaling", "logit_scale"),
                ],
            )?,
            "gemma2" | "gemma3_text" => {
                // The two largest models scale by the width of a head of the whole.
                let largest = match self.required("block_count")? {
                    46 => self.family.model_type == "gemma2",
                    62 => self.family.model_type == "gemma3_text",
                    _ => false,
                };
                config["query_pre_attn_scalar"] = match largest {
                    true => json!(
                        self.required("embedding_length")?
                            / self.required("attention.head_count")?
                    ),
                    false => config["head_dim"].clone(),
                };
                copy(
                    config,
                    &[
                        ("attn_logit_softcapping", "attn_logit_softcapping"),
                        ("final_logit_softcapping", "final_logit_softcapping"),
                    ],
                )?;
                // A list of one flag per layer is what the default gives.
                let pattern = self.own("attention.sliding_window_pattern");
                if let Some(period) = self.values.get(&pattern).and_then(Value::as_u64) {
                    config["sliding_window_pattern"] = json!(period);
                }
                if self.family.model_type == "gemma3_text" {
                    let mut rope = config["rope_parameters"].take();
                    let base = self.number("rope.freq_base")?.unwrap_or(1_000_000.0);
                    rope["rope_theta"] = json!(base);
                    let local = self.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
                    config["rope_parameters"] = json!({
                        "full_attention": rope,
                        "sliding_attention": {"rope_type": "default", "rope_theta": local},
                    });
                }
            }
            "phi3" => {
                if let Some([long, short]) = &stored.rope_factors {
                    config["original_max_position_embeddings"] =
                        json!(self.required("rope.scaling.original_context_length")?);
                    let rope = &mut config["rope_parameters"];
                    rope["rope_type"] = json!("longrope");
                    rope["long_factor"] = json!(long);
                    rope["short_factor"] = json!(short);
                    if let Some(factor) = self.number("rope.scaling.attn_factor")? {
                        rope["attention_factor"] = json!(factor);
                    }
                }
            }
            _ => {}
        }
        if self.family.whole_norms {
            config["norm_offset"] = json!(0.0);
        }
        Ok(())
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
            // The factors are tensors.
            (Some("longrope"), _) => {}
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
