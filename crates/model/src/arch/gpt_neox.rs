//! GPT-NeoX: two norms that read the layer's input, heads whose queries, keys and values lie together.

use backend::{Activation, Backend, LinearWeight, NormKind};

use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::parts::{Parts, activation, bias};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, Residual};
use crate::error::Result;
use crate::rope::RopeConfig;
use crate::tensors::{Bias, reorder_rows};

const NAMES: Names = Names {
    prefix: "gpt_neox.",
    embed: "embed_in",
    layers: "layers",
    final_norm: "final_layer_norm",
    heads: &["embed_out", "lm_head"],
};

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct GptNeox {
    width: usize,
    activation: Activation,
    parallel: bool,
    attention_bias: Bias,
    /// Rows of queries, keys and values are in this order already.
    ordered: bool,
}

pub(crate) fn read(config: &ModelConfig) -> Result<(Frame, GptNeox)> {
    let sizes = Sizes::read(config, None)?.shared_out("num_attention_heads")?;
    let frame = Frame {
        sizes,
        names: NAMES,
        norm: NormSpec::new(
            NormKind::Layer,
            Bias::Required,
            config.number(&["layer_norm_eps"], 1e-5)?,
        ),
        position: PositionSource::Rotary(vec![RopeConfig::read(
            config,
            sizes.head_dim,
            10_000.0,
            0.25,
        )?]),
        tied: config.boolean("tie_word_embeddings", false)?,
        head_bias: Bias::IfStored,
        multipliers: Multipliers::NONE,
    };
    let layers = GptNeox {
        width: config.required_count(&["intermediate_size"])?,
        activation: activation(config, &["hidden_act"], "gelu")?,
        parallel: config.boolean("use_parallel_residual", true)?,
        attention_bias: bias(config, "attention_bias", true)?,
        ordered: config.boolean("ordered_qkv", false)?,
    };
    Ok((frame, layers))
}

impl GptNeox {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden) = (&frame.sizes, frame.sizes.hidden);
        let qkv = parts.tensors.linear(&[parts.spec(
            "attention.query_key_value",
            3 * hidden,
            hidden,
            self.attention_bias,
        )])?;
        let pre_attn = parts.norm(frame.norm, "input_layernorm", hidden)?;
        let pre_mlp = parts.norm(frame.norm, "post_attention_layernorm", hidden)?;
        Ok(Layer {
            pre_attn: Some(pre_attn),
            qkv: parts.load_qkv(
                if self.ordered {
                    qkv
                } else {
                    by_part(qkv, sizes)
                },
                sizes,
            )?,
            qk_norm: None,
            rope: Some(0),
            attention: sizes.attention(),
            out: parts.linear("attention.dense", hidden, hidden, self.attention_bias)?,
            post_attn: None,
            residual: match self.parallel {
                true => Residual::Parallel(Some(pre_mlp)),
                false => Residual::Sequential(Some(pre_mlp)),
            },
            mlp: Mlp::Plain {
                up: parts.linear("mlp.dense_h_to_4h", self.width, hidden, Bias::Required)?,
                down: parts.linear("mlp.dense_4h_to_h", hidden, self.width, Bias::Required)?,
                activation: self.activation,
            },
            post_mlp: None,
        })
    }
}

/// Rows `[head][q, k, v][feature]` as `[q, k, v][head][feature]`.
fn by_part(qkv: LinearWeight, sizes: &Sizes) -> LinearWeight {
    let (heads, dim) = (sizes.num_heads, sizes.head_dim);
    reorder_rows(qkv, |row| {
        let (part, head, feature) = (row / (heads * dim), row / dim % heads, row % dim);
        (head * 3 + part) * dim + feature
    })
}
