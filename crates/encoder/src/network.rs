//! The architectures: which of candle's models runs a checkpoint, and how its configuration is spelled
//! for it.

use std::sync::Arc;

use candle_core::{Module, Result as CandleResult, Tensor};
use candle_transformers::models::{bert, jina_bert, modernbert, nomic_bert, xlm_roberta};
use model::{ModelError, Result};
use serde_json::{Map, Value, json};

use crate::weights::Weights;

/// One row of `octet models`.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// What people know it by.
    pub examples: &'static str,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bert,
    DistilBert,
    Roberta,
    ModernBert,
    Nomic,
}

const fn row(model_type: &'static str, kind: Kind, examples: &'static str) -> Architecture {
    Architecture {
        model_type,
        examples,
        kind,
    }
}

/// Everything that loads.
pub const SUPPORTED: &[Architecture] = &[
    row(
        "bert",
        Kind::Bert,
        "BERT, MiniLM, BGE, E5, GTE, Arctic Embed; Jina v2",
    ),
    row(
        "distilbert",
        Kind::DistilBert,
        "DistilBERT, multi-qa-distilbert, msmarco-distilbert",
    ),
    row(
        "xlm-roberta",
        Kind::Roberta,
        "multilingual E5, BGE M3, paraphrase-multilingual",
    ),
    row(
        "roberta",
        Kind::Roberta,
        "RoBERTa, all-roberta, all-distilroberta",
    ),
    row(
        "modernbert",
        Kind::ModernBert,
        "ModernBERT, GTE ModernBERT, Nomic ModernBERT",
    ),
    row("nomic_bert", Kind::Nomic, "Nomic Embed 1 and 1.5"),
];

/// Tokens of a Jina model at most: candle keeps its distances as a matrix for every head.
const MAX_JINA_TOKENS: usize = 2048;

/// A loaded network.
pub(crate) enum Network {
    Bert(bert::BertModel),
    Roberta(xlm_roberta::XLMRobertaModel),
    ModernBert(modernbert::ModernBert),
    Nomic(nomic_bert::NomicBertModel),
    Jina(jina_bert::BertModel),
}

/// What a configuration says about the network as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub vocab_size: usize,
    pub dimension: usize,
    pub max_tokens: usize,
    /// What stands where a text is shorter than its neighbours.
    pub pad_id: u32,
}

/// A configuration in BERT's spelling, checked as far as every architecture needs it.
pub(crate) struct Config {
    fields: Map<String, Value>,
    name: &'static str,
    kind: Kind,
    is_jina: bool,
}

impl Config {
    /// Reads a `config.json`.
    pub fn read(config: &Value) -> Result<Self> {
        let found = config["model_type"].as_str().unwrap_or("without a name");
        let known = SUPPORTED.iter().find(|row| row.model_type == found);
        let names = || {
            SUPPORTED
                .iter()
                .map(|row| row.model_type)
                .collect::<Vec<_>>()
        };
        let known = known.ok_or_else(|| ModelError::UnknownArchitecture {
            found: found.to_owned(),
            supported: format!("for embeddings {}", names().join(", ")),
        })?;
        let kind = known.kind;
        let is_jina = kind == Kind::Bert && config["position_embedding_type"] == "alibi";
        let mut config = Self {
            fields: config.as_object().cloned().unwrap_or_default(),
            name: if is_jina {
                "jina-bert"
            } else {
                known.model_type
            },
            kind,
            is_jina,
        };
        config.spell();
        config.check()?;
        Ok(config)
    }

    /// The architecture, for people.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the checkpoint was trained so that the first features alone are a vector too.
    pub fn is_matryoshka(&self) -> bool {
        let dimensions = &self.fields.get("matryoshka_dimensions");
        self.fields.get("is_matryoshka") == Some(&Value::Bool(true))
            || dimensions
                .and_then(Value::as_array)
                .is_some_and(|list| !list.is_empty())
    }

    /// Whether tensors have DistilBERT's names.
    pub fn is_distilbert(&self) -> bool {
        self.kind == Kind::DistilBert
    }

    pub fn shape(&self) -> Result<Shape> {
        let positions = self.number("max_position_embeddings")?;
        let pad_id = self.number("pad_token_id")?;
        Ok(Shape {
            vocab_size: self.number("vocab_size")?,
            dimension: self.number("hidden_size")?,
            max_tokens: match self.kind {
                // The positions of real tokens begin behind that of padding.
                Kind::Roberta => positions.saturating_sub(pad_id + 1),
                _ if self.is_jina => positions.min(MAX_JINA_TOKENS),
                _ => positions,
            },
            pad_id: u32::try_from(pad_id).unwrap_or(0),
        })
    }

    fn spell(&mut self) {
        match self.kind {
            Kind::DistilBert => {
                for (old, new) in [
                    ("dim", "hidden_size"),
                    ("n_layers", "num_hidden_layers"),
                    ("n_heads", "num_attention_heads"),
                    ("hidden_dim", "intermediate_size"),
                    ("activation", "hidden_act"),
                ] {
                    self.rename(old, new);
                }
                self.fields.insert("type_vocab_size".into(), json!(1));
                self.fields.insert("layer_norm_eps".into(), json!(1e-12));
            }
            Kind::ModernBert => self.spell_modernbert(),
            Kind::Nomic => self.spell_nomic(),
            Kind::Bert | Kind::Roberta => {}
        }
        for (key, value) in [
            ("layer_norm_eps", json!(1e-12)),
            ("hidden_act", json!("gelu")),
            ("hidden_dropout_prob", json!(0.0)),
            ("attention_probs_dropout_prob", json!(0.0)),
            ("initializer_range", json!(0.02)),
            ("pad_token_id", json!(u8::from(self.kind == Kind::Roberta))),
            ("type_vocab_size", json!(2)),
            ("max_position_embeddings", json!(512)),
            ("position_embedding_type", json!("absolute")),
        ] {
            self.default(key, value);
        }
        // Of no use here, and spelled in many ways.
        for key in [
            "classifier_dropout",
            "model_type",
            "id2label",
            "label2id",
            "classifier_pooling",
        ] {
            self.fields.remove(key);
        }
    }

    /// Version 5 of transformers writes the angles and the kinds of layers as lists.
    fn spell_modernbert(&mut self) {
        let ropes = self
            .fields
            .get("rope_parameters")
            .cloned()
            .unwrap_or(Value::Null);
        for (key, kind) in [
            ("global_rope_theta", "full_attention"),
            ("local_rope_theta", "sliding_attention"),
        ] {
            let theta = &ropes[kind]["rope_theta"];
            if theta.is_number() {
                self.default(key, theta.clone());
            }
        }
        self.default("global_rope_theta", json!(160_000.0));
        let global = self.fields["global_rope_theta"].clone();
        self.default("local_rope_theta", global);
        let layers = self.fields.get("layer_types").and_then(Value::as_array);
        let full = layers.map(|layers| {
            let mut later = layers.iter().enumerate().skip(1);
            let second = later.find(|(_, kind)| *kind == "full_attention");
            second.map_or(layers.len().max(1), |(at, _)| at)
        });
        self.default("global_attn_every_n_layers", json!(full.unwrap_or(3)));
        self.default("local_attention", json!(128));
        self.rename("norm_eps", "layer_norm_eps");
        self.default("layer_norm_eps", json!(1e-5));
        self.rename("hidden_activation", "hidden_act");
    }

    /// The names of its first implementation, which candle follows, or those of transformers.
    fn spell_nomic(&mut self) {
        for (theirs, berts) in [
            ("n_embd", "hidden_size"),
            ("n_head", "num_attention_heads"),
            ("n_layer", "num_hidden_layers"),
            ("n_inner", "intermediate_size"),
            ("layer_norm_epsilon", "layer_norm_eps"),
        ] {
            if let Some(value) = self.fields.get(theirs).cloned() {
                self.default(berts, value);
            } else if let Some(value) = self.fields.get(berts).cloned() {
                self.default(theirs, value);
            }
        }
        // Beyond the trained length the first version stretches its angles, which candle does not.
        let trained = match self.fields.get("rotary_scaling_factor") {
            Some(Value::Number(_)) => self.fields.get("max_trained_positions").cloned(),
            _ => None,
        };
        let positions = trained.or_else(|| self.fields.get("n_positions").cloned());
        if let Some(positions) = positions {
            self.fields
                .insert("max_position_embeddings".into(), positions.clone());
            self.fields.insert("n_positions".into(), positions);
        } else if let Some(positions) = self.fields.get("max_position_embeddings").cloned() {
            self.default("n_positions", positions);
        }
        let theta = self
            .fields
            .get("rope_parameters")
            .map(|rope| rope["rope_theta"].clone());
        if let Some(theta) = theta.filter(Value::is_number) {
            self.default("rotary_emb_base", theta);
        }
        let activation = self
            .fields
            .get("activation_function")
            .and_then(Value::as_str);
        let activation = if activation == Some("swiglu") {
            "silu"
        } else {
            activation.unwrap_or("silu")
        };
        let activation = json!(activation);
        self.default("hidden_act", activation);
    }

    fn rename(&mut self, old: &str, new: &str) {
        if let Some(value) = self.fields.get(old).cloned() {
            self.default(new, value);
        }
    }

    /// Sets what is absent or null.
    fn default(&mut self, key: &str, value: Value) {
        let slot = self.fields.entry(key).or_insert(Value::Null);
        if slot.is_null() {
            *slot = value;
        }
    }

    fn number(&self, key: &str) -> Result<usize> {
        let value = self.fields.get(key).and_then(Value::as_u64);
        let value = value.and_then(|value| usize::try_from(value).ok());
        value.ok_or_else(|| ModelError::Config {
            key: key.to_owned(),
            reason: "is missing or not a count".to_owned(),
        })
    }

    /// What candle would compute wrongly or fail at without a word.
    fn check(&self) -> Result<()> {
        let (width, heads) = (
            self.number("hidden_size")?,
            self.number("num_attention_heads")?,
        );
        if width == 0 || heads == 0 || !width.is_multiple_of(heads) {
            return Err(unsupported(
                "num_attention_heads",
                &json!(heads),
                "it must divide hidden_size",
            ));
        }
        // The activations that this architecture's code in candle has, in its words and in others'.
        let known: &[&str] = match self.kind {
            Kind::Nomic => &["silu"],
            Kind::ModernBert => &["gelu"],
            _ if self.is_jina => &["gelu"],
            _ => &["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"],
        };
        self.allow(
            "hidden_act",
            |value| value.as_str().is_some_and(|act| known.contains(&act)),
            "another activation is needed",
        )?;
        let alibi = if self.is_jina { "alibi" } else { "absolute" };
        self.allow(
            "position_embedding_type",
            |value| value == alibi,
            "absolute positions are",
        )?;
        self.allow(
            "rotary_emb_fraction",
            |value| value.as_f64() == Some(1.0),
            "whole heads turn",
        )?;
        self.allow("use_rms_norm", |value| value == false, "LayerNorm is")?;
        self.allow(
            "moe_every_n_layers",
            |value| value == 0,
            "networks without experts are",
        )?;
        for key in ["attention_bias", "mlp_bias", "norm_bias"] {
            self.allow(key, |value| value == false, "layers without a bias are")?;
        }
        self.check_layer_types()
    }

    fn allow(&self, key: &str, is_known: impl Fn(&Value) -> bool, reason: &str) -> Result<()> {
        match self.fields.get(key) {
            Some(value) if !value.is_null() && !is_known(value) => {
                Err(unsupported(key, value, reason))
            }
            _ => Ok(()),
        }
    }

    fn check_layer_types(&self) -> Result<()> {
        let (Kind::ModernBert, Some(layers)) = (self.kind, self.fields.get("layer_types")) else {
            return Ok(());
        };
        let every = self.number("global_attn_every_n_layers")?.max(1);
        let mut layers = layers.as_array().into_iter().flatten().enumerate();
        let is_regular =
            layers.all(|(i, kind)| (kind == "full_attention") == i.is_multiple_of(every));
        if is_regular {
            return Ok(());
        }
        let found = json!("an irregular list");
        Err(unsupported(
            "layer_types",
            &found,
            "every n-th layer must be full",
        ))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(Value::Object(self.fields.clone())).map_err(|error| {
            ModelError::Malformed {
                file: "config.json".to_owned(),
                reason: error.to_string(),
            }
        })
    }

    /// Builds the network.
    pub fn load(&mut self, weights: &Arc<Weights>) -> Result<Network> {
        let vb = weights.builder();
        let network = match self.kind {
            Kind::Bert if self.is_jina => {
                let mut config: jina_bert::Config = self.parse()?;
                config.max_position_embeddings =
                    config.max_position_embeddings.min(MAX_JINA_TOKENS);
                jina_bert::BertModel::new(vb, &config).map(Network::Jina)
            }
            Kind::Bert | Kind::DistilBert => {
                if self.fields["hidden_act"]
                    .as_str()
                    .is_some_and(|act| act.starts_with("gelu_"))
                {
                    self.fields
                        .insert("hidden_act".into(), json!("geluapproximate"));
                }
                bert::BertModel::load(vb, &self.parse()?).map(Network::Bert)
            }
            Kind::Roberta => {
                xlm_roberta::XLMRobertaModel::new(&self.parse()?, vb).map(Network::Roberta)
            }
            Kind::ModernBert => {
                check_modernbert(weights, self.number("num_hidden_layers")?)?;
                modernbert::ModernBert::load(vb, &self.parse()?).map(Network::ModernBert)
            }
            Kind::Nomic => nomic_bert::NomicBertModel::load(vb, &self.parse()?).map(Network::Nomic),
        };
        network.map_err(|error| ModelError::Malformed {
            file: "model.safetensors".to_owned(),
            reason: first_line(&error.to_string()),
        })
    }
}

/// Every layer but the first has a norm before its attention; candle takes a missing one for meant.
fn check_modernbert(weights: &Weights, num_layers: usize) -> Result<()> {
    let norm = |layer: usize| format!("layers.{layer}.attn_norm.weight");
    match (1..num_layers).map(norm).find(|name| !weights.has(name)) {
        Some(name) => Err(ModelError::Tensor {
            name,
            reason: "is missing".to_owned(),
        }),
        None => Ok(()),
    }
}

fn unsupported(key: &str, value: &Value, reason: &str) -> ModelError {
    ModelError::Unsupported {
        key: key.to_owned(),
        value: value.to_string(),
        reason: reason.to_owned(),
    }
}

/// The library's text without the backtrace it may carry.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl Network {
    /// Whether texts of different lengths may share a batch: Jina's code in candle takes no mask.
    pub fn takes_mask(&self) -> bool {
        !matches!(self, Self::Jina(_))
    }

    /// The vectors of all tokens, `[texts, tokens, features]`, of texts padded to one length.
    pub fn forward(&self, ids: &Tensor, mask: &Tensor) -> CandleResult<Tensor> {
        match self {
            Self::Bert(model) => model.forward(ids, &ids.zeros_like()?, Some(mask)),
            Self::Roberta(model) => model.forward(ids, mask, &ids.zeros_like()?, None, None, None),
            Self::ModernBert(model) => model.forward(ids, mask),
            Self::Nomic(model) => model.forward(ids, None, Some(mask)),
            Self::Jina(model) => model.forward(ids),
        }
    }
}
