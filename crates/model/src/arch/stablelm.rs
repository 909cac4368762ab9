//! StableLM 2 and its 3b predecessor: Llama's layer with centred norms, a partial rotation, and in the
//! largest one a parallel layer with a norm of its own for every head.

use backend::{Activation, Backend, NormKind};

use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::llama;
use super::parts::{Parts, activation, bias};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, QkNorm, Residual};
use crate::error::Result;
use crate::rope::RopeConfig;
use crate::tensors::Bias;

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct StableLm {
    width: usize,
    activation: Activation,
    parallel: bool,
    qk_norm: bool,
    qkv_bias: Bias,
}

pub(crate) fn read(config: &ModelConfig) -> Result<(Frame, StableLm)> {
    let sizes = Sizes::read(config, None)?;
    let rope = RopeConfig::read(config, sizes.head_dim, 10_000.0, 0.25)?;
    let frame = Frame {
        sizes,
        names: NAMES,
        norm: NormSpec::new(
            NormKind::Layer,
            Bias::Required,
            config.number(&["layer_norm_eps", "norm_eps"], 1e-5)?,
        ),
        position: PositionSource::Rotary(vec![rope]),
        tied: config.boolean("tie_word_embeddings", false)?,
        head_bias: Bias::IfStored,
        multipliers: Multipliers::NONE,
    };
    let layers = StableLm {
        width: config.required_count(&["intermediate_size"])?,
        activation: activation(config, &["hidden_act"], "silu")?,
        parallel: config.boolean("use_parallel_residual", false)?,
        qk_norm: config.boolean("qk_layernorm", false)?,
        qkv_bias: bias(config, "use_qkv_bias", false)?,
    };
    Ok((frame, layers))
}

const NAMES: Names = llama::NAMES;

impl StableLm {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden) = (&frame.sizes, frame.sizes.hidden);
        let qk_norm = match self.qk_norm {
            true => Some(QkNorm {
                q: per_head_norm(frame, parts, "q", sizes.num_heads)?,
                k: per_head_norm(frame, parts, "k", sizes.num_kv_heads)?,
            }),
            false => None,
        };
        Ok(Layer {
            pre_attn: Some(parts.norm(frame.norm, "input_layernorm", hidden)?),
            qkv: parts.qkv("self_attn", sizes, self.qkv_bias)?,
            qk_norm,
            rope: Some(0),
            attention: sizes.attention(),
            out: parts.linear("self_attn.o_proj", hidden, sizes.q_rows(), Bias::IfStored)?,
            post_attn: None,
            residual: match self.parallel {
                true => Residual::Parallel(None),
                false => Residual::Sequential(Some(parts.norm(
                    frame.norm,
                    "post_attention_layernorm",
                    hidden,
                )?)),
            },
            mlp: Mlp::Gated {
                gate_up: parts.gate_up(self.width, hidden, Bias::IfStored)?,
                down: parts.linear("mlp.down_proj", hidden, self.width, Bias::IfStored)?,
                width: self.width,
                activation: self.activation,
            },
            post_mlp: None,
        })
    }
}

/// A norm whose weight differs from head to head.
fn per_head_norm<B: Backend>(
    frame: &Frame,
    parts: &mut Parts<B>,
    name: &str,
    heads: usize,
) -> Result<backend::Norm<B::Tensor>> {
    let spec = NormSpec {
        bias: Bias::IfStored,
        ..frame.norm
    };
    let weights: Vec<String> = (0..heads)
        .map(|head| format!("self_attn.{name}_layernorm.norms.{head}"))
        .collect();
    parts.head_norm(spec, &weights, frame.sizes.head_dim, 1)
}
