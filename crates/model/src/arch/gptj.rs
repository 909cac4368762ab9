//! GPT-J: one norm for both halves of a layer, a head with a bias, and a rotation whose pairs lie
//! beside each other, which is undone by reordering the rows of queries and keys.

use backend::{Activation, Backend, LinearWeight, NormKind};

use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::parts::{Parts, activation};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, Residual};
use crate::error::Result;
use crate::rope::RopeConfig;
use crate::tensors::{Bias, reorder_rows};

const NAMES: Names = Names {
    prefix: "transformer.",
    embed: "wte",
    layers: "h",
    final_norm: "ln_f",
    heads: &["lm_head"],
};

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct GptJ {
    width: usize,
    activation: Activation,
    rotary_dim: usize,
}

pub(crate) fn read(config: &ModelConfig) -> Result<(Frame, GptJ)> {
    let sizes = Sizes::read(config, None)?;
    // Without a count the share decides: 64 features where the key is absent, all where it is null.
    let share = match config.is_null("rotary_dim") {
        true => 1.0,
        false => 64.0 / sizes.head_dim as f64,
    };
    let rope = RopeConfig::read(config, sizes.head_dim, 10_000.0, share)?;
    let layers = GptJ {
        width: config.count(&["n_inner"])?.unwrap_or(4 * sizes.hidden),
        activation: activation(config, &["activation_function"], "gelu_new")?,
        rotary_dim: rope.rotary_dim,
    };
    let frame = Frame {
        sizes,
        names: NAMES,
        norm: NormSpec::new(
            NormKind::Layer,
            Bias::Required,
            config.number(&["layer_norm_epsilon"], 1e-5)?,
        ),
        position: PositionSource::Rotary(vec![rope]),
        tied: config.boolean("tie_word_embeddings", false)?,
        head_bias: Bias::Required,
        multipliers: Multipliers::NONE,
    };
    Ok((frame, layers))
}

impl GptJ {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden) = (&frame.sizes, frame.sizes.hidden);
        let qkv = parts.qkv_weight("attn", sizes, Bias::IfStored)?;
        Ok(Layer {
            pre_attn: Some(parts.norm(frame.norm, "ln_1", hidden)?),
            qkv: parts.load_qkv(self.half_paired(qkv, sizes), sizes)?,
            qk_norm: None,
            rope: Some(0),
            attention: sizes.attention(),
            out: parts.linear("attn.out_proj", hidden, sizes.q_rows(), Bias::IfStored)?,
            post_attn: None,
            residual: Residual::Parallel(None),
            mlp: Mlp::Plain {
                up: parts.linear("mlp.fc_in", self.width, hidden, Bias::Required)?,
                down: parts.linear("mlp.fc_out", hidden, self.width, Bias::Required)?,
                activation: self.activation,
            },
            post_mlp: None,
        })
    }

    /// Puts the two features of a pair half a rotation apart, in every head of queries and keys.
    fn half_paired(&self, qkv: LinearWeight, sizes: &Sizes) -> LinearWeight {
        let (dim, half) = (sizes.head_dim, self.rotary_dim / 2);
        let rotated_rows = sizes.q_rows() + sizes.kv_rows();
        reorder_rows(qkv, |row| {
            let feature = row % dim;
            if row >= rotated_rows || feature >= 2 * half {
                row
            } else {
                row - feature + 2 * (feature % half) + feature / half
            }
        })
    }
}
