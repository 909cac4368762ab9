//! Llama and the families that differ from it by a setting: Mistral, Qwen 2, Qwen 3.

use backend::{Activation, AttentionSpec, Backend, NormKind};

use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::parts::{Parts, activation, bias};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, Residual};
use crate::error::{ModelError, Result};
use crate::rope::RopeConfig;
use crate::tensors::Bias;

/// The names that most later families took over.
pub(crate) const NAMES: Names = Names {
    prefix: "model.",
    embed: "embed_tokens",
    layers: "layers",
    final_norm: "norm",
    heads: &["lm_head"],
};

/// Which layers slide a window.
#[derive(Debug, Clone, Copy)]
enum WindowRule {
    /// A stray `sliding_window` means nothing.
    Never,
    /// All layers; the default counts when the key is absent, none when it is null.
    All { default: usize },
    /// Only with `use_sliding_window`, from layer `max_window_layers` on.
    Switched { default: usize, first_layer: usize },
}

/// Where a family's defaults and layers differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quirks {
    /// `head_dim` when the key is absent; otherwise hidden size divided by heads.
    head_dim: Option<usize>,
    window: WindowRule,
    /// Queries and keys are normalised per head.
    qk_norm: bool,
    /// Biases of q, k and v; `attention_bias` asks for those and for the output's.
    qkv_bias: Bias,
}

impl Quirks {
    pub const LLAMA: Self = Self {
        head_dim: None,
        window: WindowRule::Never,
        qk_norm: false,
        qkv_bias: Bias::IfStored,
    };
    pub const MISTRAL: Self = Self {
        window: WindowRule::All { default: 4096 },
        ..Self::LLAMA
    };
    pub const QWEN2: Self = Self {
        window: WindowRule::Switched {
            default: 4096,
            first_layer: 28,
        },
        qkv_bias: Bias::Required,
        ..Self::LLAMA
    };
    pub const QWEN3: Self = Self {
        head_dim: Some(128),
        qk_norm: true,
        qkv_bias: Bias::IfStored,
        ..Self::QWEN2
    };
}

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct Llama {
    width: usize,
    activation: Activation,
    /// One entry per layer.
    windows: Vec<Option<usize>>,
    qk_norm: bool,
    qkv_bias: Bias,
    out_bias: Bias,
    mlp_bias: Bias,
}

pub(crate) fn read(config: &ModelConfig, quirks: Quirks) -> Result<(Frame, Llama)> {
    let sizes = Sizes::read(config, quirks.head_dim)?;
    let attention_bias = bias(config, "attention_bias", false)?;
    let mut rope = RopeConfig::read(config, sizes.head_dim, 10_000.0, 1.0)?;
    rope.factors = factors(config, rope.rotary_dim)?;
    let layers = Llama {
        width: config.required_count(&["intermediate_size"])?,
        activation: activation(config, &["hidden_act"], "silu")?,
        windows: windows(config, quirks.window, sizes.num_layers)?,
        qk_norm: quirks.qk_norm,
        qkv_bias: if attention_bias == Bias::Required {
            attention_bias
        } else {
            quirks.qkv_bias
        },
        out_bias: attention_bias,
        mlp_bias: bias(config, "mlp_bias", false)?,
    };
    let frame = Frame {
        sizes,
        names: NAMES,
        norm: NormSpec::new(
            NormKind::Rms,
            Bias::IfStored,
            config.number(&["rms_norm_eps"], 1e-6)?,
        ),
        position: PositionSource::Rotary(vec![rope]),
        tied: config.boolean("tie_word_embeddings", false)?,
        head_bias: Bias::IfStored,
        multipliers: Multipliers::NONE,
    };
    Ok((frame, layers))
}

impl Llama {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden) = (&frame.sizes, frame.sizes.hidden);
        let qkv = parts.qkv("self_attn", sizes, self.qkv_bias)?;
        let out = parts.linear("self_attn.o_proj", hidden, sizes.q_rows(), self.out_bias)?;
        let gate_up = parts.gate_up(self.width, hidden, self.mlp_bias)?;
        let down = parts.linear("mlp.down_proj", hidden, self.width, self.mlp_bias)?;
        let names = ["self_attn.q_norm", "self_attn.k_norm"];
        let qk_norm = match self.qk_norm {
            true => Some(parts.shared_qk_norm(frame.norm, names, sizes)?),
            false => None,
        };
        let pre_mlp = "post_attention_layernorm";
        Ok(Layer {
            pre_attn: Some(parts.norm(frame.norm, "input_layernorm", hidden)?),
            qkv,
            qk_norm,
            rope: Some(0),
            attention: AttentionSpec {
                window: self.windows[parts.index],
                ..sizes.attention()
            },
            out,
            post_attn: None,
            residual: Residual::Sequential(Some(parts.norm(frame.norm, pre_mlp, hidden)?)),
            mlp: Mlp::Gated {
                gate_up,
                down,
                width: self.width,
                activation: self.activation,
            },
            post_mlp: None,
        })
    }
}

/// Divisors that GGUF files carry as a tensor; their reader puts them among the settings.
fn factors(config: &ModelConfig, rotary_dim: usize) -> Result<Option<Vec<f32>>> {
    let Some(value) = config.get(&["rope_freqs"]) else {
        return Ok(None);
    };
    let factors: Option<Vec<f32>> = value.as_array().and_then(|values| {
        values
            .iter()
            .map(|x| x.as_f64().map(|x| x as f32))
            .collect()
    });
    match factors {
        Some(factors) if factors.len() == rotary_dim / 2 && factors.iter().all(|x| *x > 0.0) => {
            Ok(Some(factors))
        }
        _ => Err(ModelError::config(
            "rope_freqs",
            format!("is not a list of {} positive numbers", rotary_dim / 2),
        )),
    }
}

/// The window of each layer: `layer_types` where transformers 5 wrote them, else the older keys.
fn windows(
    config: &ModelConfig,
    rule: WindowRule,
    num_layers: usize,
) -> Result<Vec<Option<usize>>> {
    let stored = |default: usize| -> Result<Option<usize>> {
        let absent = !config.is_null("sliding_window");
        Ok(config
            .count(&["sliding_window"])?
            .or(absent.then_some(default)))
    };
    let (window, first_layer) = match rule {
        WindowRule::Never => (None, 0),
        WindowRule::All { default } => (stored(default)?, 0),
        WindowRule::Switched {
            default,
            first_layer,
        } => {
            let switched_on = config.boolean("use_sliding_window", false)?;
            let window = if switched_on { stored(default)? } else { None };
            (
                window,
                config.index("max_window_layers")?.unwrap_or(first_layer),
            )
        }
    };
    let Some(types) = config.get(&["layer_types"]) else {
        return Ok((0..num_layers)
            .map(|layer| window.filter(|_| layer >= first_layer))
            .collect());
    };
    let types = types
        .as_array()
        .filter(|types| types.len() == num_layers)
        .ok_or_else(|| {
            ModelError::config(
                "layer_types",
                format!("is not a list of {num_layers} layers"),
            )
        })?;
    types
        .iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => Ok(window),
            _ => Err(ModelError::unsupported(
                "layer_types",
                kind,
                "full_attention and sliding_attention are",
            )),
        })
        .collect()
}
