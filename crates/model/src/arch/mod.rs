//! The loader registry: which `model_type` is read by which loader.

mod experts;
mod falcon;
mod frame;
mod gemma;
mod gpt2;
mod gpt_neox;
mod gptj;
mod llama;
mod parts;
mod phi;
mod stablelm;
mod windows;

use backend::Backend;

use crate::config::ModelConfig;
use crate::decoder::{Layer, Weights};
use crate::error::{ModelError, Result};
use crate::gguf::GgufFamily;
use crate::load::Progress;
use crate::tensors::Tensors;
use frame::Frame;
use parts::Parts;

/// One supported family, as `octet models` lists it.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class name that checkpoints carry in `architectures`.
    pub architecture: &'static str,
    /// Models people know it by.
    pub examples: &'static str,
    /// Older spellings of `model_type`.
    aliases: &'static [&'static str],
    read: fn(&ModelConfig) -> Result<Architecture>,
}

const FAMILIES: &[Family] = &[
    Family {
        model_type: "llama",
        architecture: "LlamaForCausalLM",
        examples: "Llama 1, 2, 3, 3.1, 3.2, 3.3; SmolLM 1 and 2; TinyLlama; Vicuna; OpenAssistant's LLaMA; Falcon 3",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::LLAMA).map(with(Layers::Llama)),
    },
    Family {
        model_type: "mistral",
        architecture: "MistralForCausalLM",
        examples: "Mistral 7B v0.1 to v0.3, Mistral Nemo",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::MISTRAL).map(with(Layers::Llama)),
    },
    Family {
        model_type: "qwen2",
        architecture: "Qwen2ForCausalLM",
        examples: "Qwen 2 and 2.5; DeepSeek-R1-Distill-Qwen",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::QWEN2).map(with(Layers::Llama)),
    },
    Family {
        model_type: "qwen3",
        architecture: "Qwen3ForCausalLM",
        examples: "Qwen 3 (dense)",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::QWEN3).map(with(Layers::Llama)),
    },
    Family {
        model_type: "mixtral",
        architecture: "MixtralForCausalLM",
        examples: "Mixtral 8x7B and 8x22B",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::MIXTRAL).map(with(Layers::Llama)),
    },
    Family {
        model_type: "qwen3_moe",
        architecture: "Qwen3MoeForCausalLM",
        examples: "Qwen 3 with experts (30B-A3B, 235B-A22B)",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::QWEN3_MOE).map(with(Layers::Llama)),
    },
    Family {
        model_type: "gpt_neox",
        architecture: "GPTNeoXForCausalLM",
        examples: "Dolly v2, Pythia, OpenAssistant's Pythia, StableLM alpha, GPT-NeoX 20B, RedPajama-INCITE",
        aliases: &[],
        read: |config| gpt_neox::read(config).map(with(Layers::GptNeox)),
    },
    Family {
        model_type: "gpt2",
        architecture: "GPT2LMHeadModel",
        examples: "GPT-2 up to XL, exports of nanoGPT",
        aliases: &[],
        read: |config| gpt2::read(config).map(with(Layers::Gpt2)),
    },
    Family {
        model_type: "stablelm",
        architecture: "StableLmForCausalLM",
        examples: "StableLM 2, StableLM 3B 4E1T, StableLM Zephyr",
        aliases: &["stablelm_epoch"],
        read: |config| stablelm::read(config).map(with(Layers::StableLm)),
    },
    Family {
        model_type: "gptj",
        architecture: "GPTJForCausalLM",
        examples: "GPT-J 6B, Dolly v1",
        aliases: &[],
        read: |config| gptj::read(config).map(with(Layers::GptJ)),
    },
    Family {
        model_type: "phi",
        architecture: "PhiForCausalLM",
        examples: "Phi 1, 1.5 and 2",
        aliases: &[],
        read: |config| phi::read(config).map(with(Layers::Phi)),
    },
    Family {
        model_type: "phi3",
        architecture: "Phi3ForCausalLM",
        examples: "Phi 3, 3.5 and 4, Phi 4 mini",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::PHI3).map(with(Layers::Llama)),
    },
    Family {
        model_type: "gemma",
        architecture: "GemmaForCausalLM",
        examples: "Gemma 1",
        aliases: &[],
        read: |config| gemma::read(config, gemma::Generation::One).map(with(Layers::Gemma)),
    },
    Family {
        model_type: "gemma2",
        architecture: "Gemma2ForCausalLM",
        examples: "Gemma 2",
        aliases: &[],
        read: |config| gemma::read(config, gemma::Generation::Two).map(with(Layers::Gemma)),
    },
    Family {
        model_type: "gemma3_text",
        architecture: "Gemma3ForCausalLM",
        examples: "Gemma 3, the text part of those with images",
        aliases: &["gemma3"],
        read: |config| gemma::read(config, gemma::Generation::Three).map(with(Layers::Gemma)),
    },
    Family {
        model_type: "falcon",
        architecture: "FalconForCausalLM",
        examples: "Falcon 7B, 11B and 40B",
        aliases: &["RefinedWebModel", "RefinedWeb"],
        read: |config| falcon::read(config).map(with(Layers::Falcon)),
    },
    Family {
        model_type: "olmo2",
        architecture: "Olmo2ForCausalLM",
        examples: "OLMo 2",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::OLMO2).map(with(Layers::Llama)),
    },
    Family {
        model_type: "smollm3",
        architecture: "SmolLM3ForCausalLM",
        examples: "SmolLM 3",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::SMOLLM3).map(with(Layers::Llama)),
    },
    Family {
        model_type: "granite",
        architecture: "GraniteForCausalLM",
        examples: "Granite 3 (dense)",
        aliases: &[],
        read: |config| llama::read(config, llama::Quirks::GRANITE).map(with(Layers::Llama)),
    },
];

impl Family {
    /// Whether GGUF files of this architecture are read too.
    pub fn reads_gguf(&self) -> bool {
        GgufFamily::reads(self.model_type)
    }
}

/// Every family that loads.
pub fn supported() -> &'static [Family] {
    FAMILIES
}

/// Switches that change the equations and that no loader here implements.
const REFUSED_SWITCHES: &[&str] = &[
    "alibi",
    "use_bidirectional_attention",
    "add_cross_attention",
    "apply_residual_connection_post_layernorm",
];

/// A configuration that a loader understood, before any weight is read.
pub(crate) struct Architecture {
    frame: Frame,
    layers: Layers,
}

/// Each family's way to make a layer.
enum Layers {
    Llama(Box<llama::Llama>),
    GptNeox(gpt_neox::GptNeox),
    Gpt2(gpt2::Gpt2),
    StableLm(stablelm::StableLm),
    GptJ(gptj::GptJ),
    Phi(phi::Phi),
    Gemma(gemma::Gemma),
    Falcon(falcon::Falcon),
}

/// Puts a family's two halves together.
fn with<T>(layers: fn(T) -> Layers) -> impl Fn((Frame, T)) -> Architecture {
    move |(frame, family)| Architecture {
        frame,
        layers: layers(family),
    }
}

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
            .find(|family| family.model_type == found || family.aliases.contains(&found))
            .ok_or_else(|| ModelError::UnknownArchitecture {
                found: found.to_owned(),
                supported: FAMILIES
                    .iter()
                    .map(|family| family.model_type)
                    .collect::<Vec<_>>()
                    .join(", "),
            })?;
        refuse(config)?;
        (family.read)(config)
    }

    pub fn shape(&self) -> Shape {
        self.frame.shape()
    }

    /// Loads the weights; returns them with the row count of the embedding.
    pub fn load<B: Backend>(
        &self,
        tensors: &Tensors,
        backend: &mut B,
        max_model_len: usize,
        progress: &mut Progress,
    ) -> Result<(Weights<B>, usize)> {
        self.frame
            .load(tensors, backend, max_model_len, progress, |parts| {
                self.layer(parts)
            })
    }

    fn layer<B: Backend>(&self, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let frame = &self.frame;
        match &self.layers {
            Layers::Llama(family) => family.layer(frame, parts),
            Layers::GptNeox(family) => family.layer(frame, parts),
            Layers::Gpt2(family) => family.layer(frame, parts),
            Layers::StableLm(family) => family.layer(frame, parts),
            Layers::GptJ(family) => family.layer(frame, parts),
            Layers::Phi(family) => family.layer(frame, parts),
            Layers::Gemma(family) => family.layer(frame, parts),
            Layers::Falcon(family) => family.layer(frame, parts),
        }
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
    Ok(())
}
