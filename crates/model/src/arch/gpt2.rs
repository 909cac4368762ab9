//! GPT-2: learned positions, matrices stored as `[inputs, outputs]`. Exports of nanoGPT store the same
//! names as `[outputs, inputs]`, some of them without any bias.

use backend::{Activation, Backend, LinearWeight, NormKind};

use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::parts::{Parts, activation};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, Residual};
use crate::error::Result;
use crate::tensors::{Bias, LinearSpec};

const NAMES: Names = Names {
    prefix: "transformer.",
    embed: "wte",
    layers: "h",
    final_norm: "ln_f",
    heads: &["lm_head"],
};

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct Gpt2 {
    width: usize,
    activation: Activation,
    /// Scores are divided by the square root of the head size.
    scaled: bool,
    /// Scores are divided by the layer's number, counted from 1.
    scaled_by_layer: bool,
}

pub(crate) fn read(config: &ModelConfig) -> Result<(Frame, Gpt2)> {
    let sizes = Sizes::read(config, None)?.shared_out("n_head")?;
    let frame = Frame {
        sizes,
        names: NAMES,
        norm: NormSpec::new(
            NormKind::Layer,
            Bias::IfStored,
            config.number(&["layer_norm_epsilon"], 1e-5)?,
        ),
        position: PositionSource::Learned("wpe"),
        tied: config.boolean("tie_word_embeddings", true)?,
        head_bias: Bias::IfStored,
        multipliers: Multipliers::NONE,
    };
    const ACTIVATION: &[&str] = &["activation_function"];
    if config.get(ACTIVATION).is_none() {
        tracing::warn!(
            "config.json names no activation_function; gelu_new is used, and a model of nanoGPT may have been trained with gelu"
        );
    }
    let layers = Gpt2 {
        width: config.count(&["n_inner"])?.unwrap_or(4 * sizes.hidden),
        activation: activation(config, ACTIVATION, "gelu_new")?,
        scaled: config.boolean("scale_attn_weights", true)?,
        scaled_by_layer: config.boolean("scale_attn_by_inverse_layer_idx", false)?,
    };
    Ok((frame, layers))
}

impl Gpt2 {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let hidden = frame.sizes.hidden;
        // A model has all biases or none.
        let bias = match parts.tensors.has(&parts.name("ln_1.bias")) {
            true => Bias::Required,
            false => Bias::IfStored,
        };
        let norm = NormSpec { bias, ..frame.norm };
        // The other matrices tell nothing: attention's output is square.
        let rows_are_outputs =
            parts
                .tensors
                .has_shape(&parts.name("attn.c_attn.weight"), 3 * hidden, hidden);
        let read = |parts: &Parts<B>, spec: LinearSpec| -> Result<LinearWeight> {
            match rows_are_outputs {
                true => parts.tensors.linear(&[spec]),
                false => parts.tensors.transposed(&spec),
            }
        };
        let linear = |parts: &mut Parts<B>, part: &str, rows, columns| {
            let weight = read(parts, parts.spec(part, rows, columns, bias))?;
            parts.load(weight)
        };
        let qkv = read(parts, parts.spec("attn.c_attn", 3 * hidden, hidden, bias))?;
        let qkv = parts.load_qkv(qkv, &frame.sizes)?;
        let mut attention = frame.sizes.attention();
        if !self.scaled {
            attention.scale = 1.0;
        }
        if self.scaled_by_layer {
            attention.scale /= (parts.index + 1) as f32;
        }
        Ok(Layer {
            pre_attn: Some(parts.norm(norm, "ln_1", hidden)?),
            qkv,
            qk_norm: None,
            rope: None,
            attention,
            out: linear(parts, "attn.c_proj", hidden, hidden)?,
            post_attn: None,
            residual: Residual::Sequential(Some(parts.norm(norm, "ln_2", hidden)?)),
            mlp: Mlp::Plain {
                up: linear(parts, "mlp.c_fc", self.width, hidden)?,
                down: linear(parts, "mlp.c_proj", hidden, self.width)?,
                activation: self.activation,
            },
            post_mlp: None,
        })
    }
}
