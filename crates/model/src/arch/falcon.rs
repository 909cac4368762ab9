//! Falcon 7b, 40b and 11b: attention and MLP beside each other, one or two norms before them, and rows
//! of queries, keys and values that lie together by group of key heads.

use backend::{Activation, Backend, LinearWeight, NormKind};

use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::parts::{Parts, activation, bias};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, Residual};
use crate::error::{ModelError, Result};
use crate::rope::RopeConfig;
use crate::tensors::{Bias, reorder_rows};

const NAMES: Names = Names {
    prefix: "transformer.",
    embed: "word_embeddings",
    layers: "h",
    final_norm: "ln_f",
    heads: &["lm_head"],
};

/// The norms of a layer.
#[derive(Debug, Clone, Copy)]
enum Arrangement {
    /// One norm for attention and MLP beside each other.
    Shared,
    /// One for each of the two.
    Two,
    /// The MLP after attention.
    Sequential,
}

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct Falcon {
    width: usize,
    activation: Activation,
    arrangement: Arrangement,
    bias: Bias,
    /// Rows of queries, keys and values are in this order already.
    ordered: bool,
}

pub(crate) fn read(config: &ModelConfig) -> Result<(Frame, Falcon)> {
    // What the 40b model was called before the family entered transformers.
    let older = config.model_type()? == "RefinedWeb";
    let new = config.boolean("new_decoder_architecture", older)?;
    let heads = config.required_count(&["num_attention_heads", "n_head"])?;
    let kv_heads = match (new, config.boolean("multi_query", true)?) {
        (true, _) => config
            .count(&["num_kv_heads", "n_head_kv"])?
            .unwrap_or(heads),
        (false, true) => 1,
        (false, false) => heads,
    };
    let filled = config.with_defaults(&[
        ("num_key_value_heads", kv_heads as u64),
        ("max_position_embeddings", 2048),
    ]);
    let config = &filled;
    let sizes = Sizes::read(config, None)?;
    if sizes.q_rows() != sizes.hidden {
        return Err(ModelError::config(
            "num_attention_heads",
            "does not share out the hidden size",
        ));
    }
    let two = config.count(&["num_ln_in_parallel_attn"])?.unwrap_or(2) == 2;
    let frame = Frame {
        sizes,
        names: NAMES,
        norm: NormSpec::new(
            NormKind::Layer,
            Bias::Required,
            config.number(&["layer_norm_epsilon"], 1e-5)?,
        ),
        position: PositionSource::Rotary(vec![RopeConfig::read(
            config,
            sizes.head_dim,
            10_000.0,
            1.0,
        )?]),
        tied: config.boolean("tie_word_embeddings", true)?,
        head_bias: Bias::IfStored,
        multipliers: Multipliers::NONE,
    };
    let layers = Falcon {
        width: config
            .count(&["ffn_hidden_size"])?
            .unwrap_or(4 * sizes.hidden),
        activation: activation(config, &["activation", "hidden_act"], "gelu")?,
        arrangement: match (new, config.boolean("parallel_attn", true)?) {
            (true, _) if two => Arrangement::Two,
            (true, _) | (false, true) => Arrangement::Shared,
            (false, false) => Arrangement::Sequential,
        },
        bias: bias(config, "bias", false)?,
        ordered: config.boolean("ordered_qkv", false)?,
    };
    Ok((frame, layers))
}

impl Falcon {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden, norm) = (&frame.sizes, frame.sizes.hidden, frame.norm);
        let rows = sizes.q_rows() + 2 * sizes.kv_rows();
        let fused = "self_attention.query_key_value";
        let qkv = parts
            .tensors
            .linear(&[parts.spec(fused, rows, hidden, self.bias)])?;
        let qkv = if self.ordered {
            qkv
        } else {
            by_part(qkv, sizes)
        };
        let (pre_attn, residual) = match self.arrangement {
            Arrangement::Shared => ("input_layernorm", Residual::Parallel(None)),
            Arrangement::Two => (
                "ln_attn",
                Residual::Parallel(Some(parts.norm(norm, "ln_mlp", hidden)?)),
            ),
            Arrangement::Sequential => (
                "input_layernorm",
                Residual::Sequential(Some(parts.norm(
                    norm,
                    "post_attention_layernorm",
                    hidden,
                )?)),
            ),
        };
        Ok(Layer {
            pre_attn: Some(parts.norm(norm, pre_attn, hidden)?),
            qkv: parts.load_qkv(qkv, sizes)?,
            qk_norm: None,
            rope: Some(0),
            attention: sizes.attention(),
            out: parts.linear("self_attention.dense", hidden, hidden, self.bias)?,
            post_attn: None,
            residual,
            mlp: Mlp::Plain {
                up: parts.linear("mlp.dense_h_to_4h", self.width, hidden, self.bias)?,
                down: parts.linear("mlp.dense_4h_to_h", hidden, self.width, self.bias)?,
                activation: self.activation,
            },
            post_mlp: None,
        })
    }
}

/// Rows `[group][queries…, key, value][feature]` as all queries, all keys, all values.
fn by_part(qkv: LinearWeight, sizes: &Sizes) -> LinearWeight {
    let (dim, kv_heads) = (sizes.head_dim, sizes.num_kv_heads);
    let queries = sizes.num_heads / kv_heads;
    reorder_rows(qkv, |row| {
        let (head, feature) = (row / dim, row % dim);
        let (group, place) = match head.checked_sub(sizes.num_heads) {
            None => (head / queries, head % queries),
            Some(head) => (head % kv_heads, queries + head / kv_heads),
        };
        (group * (queries + 2) + place) * dim + feature
    })
}
