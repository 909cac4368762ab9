//! Phi 1, 1.5 and 2: one norm for both halves of a layer, and a bias everywhere, the head included.

use backend::{Activation, Backend, NormKind};

use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::parts::{Parts, activation};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, Residual};
use crate::error::Result;
use crate::rope::RopeConfig;
use crate::tensors::Bias;

const NAMES: Names = Names {
    prefix: "model.",
    embed: "embed_tokens",
    layers: "layers",
    final_norm: "final_layernorm",
    heads: &["lm_head"],
};

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct Phi {
    width: usize,
    activation: Activation,
    qk_norm: bool,
}

pub(crate) fn read(config: &ModelConfig) -> Result<(Frame, Phi)> {
    let sizes = Sizes::read(config, None)?;
    let rope = RopeConfig::read(config, sizes.head_dim, 10_000.0, 0.5)?;
    let frame = Frame {
        sizes,
        names: NAMES,
        norm: NormSpec::new(
            NormKind::Layer,
            Bias::Required,
            config.number(&["layer_norm_eps"], 1e-5)?,
        ),
        position: PositionSource::Rotary(vec![rope]),
        tied: config.boolean("tie_word_embeddings", false)?,
        head_bias: Bias::Required,
        multipliers: Multipliers::NONE,
    };
    let layers = Phi {
        width: config.required_count(&["intermediate_size"])?,
        activation: activation(config, &["hidden_act"], "gelu_new")?,
        qk_norm: config.boolean("qk_layernorm", false)?,
    };
    Ok((frame, layers))
}

impl Phi {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden) = (&frame.sizes, frame.sizes.hidden);
        let names = ["self_attn.q_layernorm", "self_attn.k_layernorm"];
        let qk_norm = match self.qk_norm {
            true => Some(parts.shared_qk_norm(frame.norm, names, sizes)?),
            false => None,
        };
        Ok(Layer {
            pre_attn: Some(parts.norm(frame.norm, "input_layernorm", hidden)?),
            qkv: parts.qkv("self_attn", sizes, Bias::Required)?,
            qk_norm,
            rope: Some(0),
            attention: sizes.attention(),
            out: parts.linear("self_attn.dense", hidden, sizes.q_rows(), Bias::Required)?,
            post_attn: None,
            residual: Residual::Parallel(None),
            mlp: Mlp::Plain {
                up: parts.linear("mlp.fc1", self.width, hidden, Bias::Required)?,
                down: parts.linear("mlp.fc2", hidden, self.width, Bias::Required)?,
                activation: self.activation,
            },
            post_mlp: None,
        })
    }
}
