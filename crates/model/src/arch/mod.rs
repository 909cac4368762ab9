//! The loader registry: which `model_type` is read by which loader.

mod llama;

use backend::Backend;

use crate::config::ModelConfig;
use crate::decoder::Weights;
use crate::error::{ModelError, Result};
use crate::load::Progress;
use crate::tensors::Tensors;

/// One supported family, as `octet models` lists it.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class name that checkpoints carry in `architectures`.
    pub architecture: &'static str,
    /// Models people know it by.
    pub examples: &'static str,
    /// Whether GGUF files of this architecture are read too.
    pub gguf: bool,
    /// What the family needs beside the plain Llama layer.
    quirks: llama::Quirks,
}

const FAMILIES: &[Family] = &[
    Family {
        model_type: "llama",
        architecture: "LlamaForCausalLM",
        examples: "Llama 1, 2, 3, 3.1, 3.2, 3.3; SmolLM 1 and 2; TinyLlama; Vicuna; Falcon 3",
        gguf: true,
        quirks: llama::Quirks::LLAMA,
    },
    Family {
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        examples: "Mistral 7B v0.1 to v0.3, Mistral Nemo",
        gguf: true,
        quirks: llama::Quirks::MISTRAL,
    },
    Family {
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        examples: "Qwen 2 and 2.5; DeepSeek-R1-Distill-Qwen",
        gguf: true,
        quirks: llama::Quirks::QWEN2,
    },
    Family {
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        examples: "Qwen 3 (dense)",
        gguf: true,
        quirks: llama::Quirks::QWEN3,
    },
];

/// Every family that loads.
pub fn supported() -> &'static [Family] {
    FAMILIES
}

/// Switches that change the equations and that no loader here implements.
const REFUSED_SWITCHES: &[&str] = &[
    "alibi",
    "add_cross_attention",
    "apply_residual_connection_post_layernorm",
];

/// A configuration that a loader understood, before any weight is read.
pub(crate) struct Architecture(llama::Llama);

/// The sizes a cache and a scheduler need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub num_layers: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// The longest context without asking for more.
    pub max_positions: usize,
    /// The longest context that can be asked for.
    pub max_stretched: usize,
}

impl Architecture {
    /// Finds the family and reads its settings.
    pub fn read(config: &ModelConfig) -> Result<Self> {
        let found = config.model_type()?;
        let family = FAMILIES
            .iter()
            .find(|family| family.model_type == found)
            .ok_or_else(|| ModelError::UnknownArchitecture {
                found: found.to_owned(),
                supported: FAMILIES
                    .iter()
                    .map(|family| family.model_type)
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        refuse(config)?;
        llama::Llama::read(config, family.quirks).map(Self)
    }

    pub fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// Loads the weights; returns them with the row count of the embedding.
    pub fn load<B: Backend>(
        &self,
        tensors: &Tensors,
        backend: &mut B,
        max_model_len: usize,
        progress: &mut Progress,
    ) -> Result<(Weights<B>, usize)> {
        self.0.load(tensors, backend, max_model_len, progress)
    }
}

/// Settings that no family here understands; loading anyway would give a wrong model unnoticed.
fn refuse(config: &ModelConfig) -> Result<()> {
    for key in REFUSED_SWITCHES {
        if config.boolean(key, false)? {
            return Err(ModelError::unsupported(
                key,
                true,
                "it changes the layer equations",
            ));
        }
    }
    if let Some(value) = config.get(&["clip_qkv"]) {
        return Err(ModelError::unsupported(
            "clip_qkv",
            value,
            "clipped projections are not computed",
        ));
    }
    for key in ["quantization_config", "compression_config"] {
        if let Some(settings) = config.object(key)? {
            let method = settings
                .get("quant_method")
                .and_then(|method| method.as_str())
                .unwrap_or("unnamed");
            return Err(ModelError::unsupported(
                key,
                method,
                "float checkpoints and GGUF files are read",
            ));
        }
    }
    Ok(())
}
