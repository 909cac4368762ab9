//! Gemma 1, 2 and 3 (text): norms whose stored weights lack 1, an embedding multiplied by the square
//! root of the width; from 2 on also norms behind the branches and windows on most layers, in 2 capped
//! scores, in 3 a rotation of its own for the layers with a window.

use backend::{Activation, AttentionSpec, Backend, NormKind};

use super::frame::{Frame, Multipliers, NormSpec, PositionSource, Sizes};
use super::llama;
use super::parts::{Parts, activation};
use super::windows::{WindowRule, windows};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, Residual};
use crate::error::Result;
use crate::rope::RopeConfig;
use crate::tensors::Bias;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    One,
    Two,
    Three,
}

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct Gemma {
    generation: Generation,
    width: usize,
    activation: Activation,
    /// One entry per layer.
    windows: Vec<Option<usize>>,
    scale: f32,
    score_cap: Option<f32>,
}

pub(crate) fn read(config: &ModelConfig, generation: Generation) -> Result<(Frame, Gemma)> {
    // The text part of the larger Gemma 3 lists only what differs from the smallest.
    let filled = config.with_defaults(match generation {
        Generation::Three => &[
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("max_position_embeddings", 131_072),
        ],
        _ => &[],
    });
    let config = &filled;
    let sizes = Sizes::read(config, Some(256))?;
    let (rule, score_cap, logit_cap) = match generation {
        Generation::One => (WindowRule::Never, None, None),
        Generation::Two => (
            WindowRule::Periodic {
                default: 4096,
                period: 2,
            },
            Some(50.0),
            Some(30.0),
        ),
        Generation::Three => (
            WindowRule::Periodic {
                default: 4096,
                period: 6,
            },
            None,
            None,
        ),
    };
    let mut norm = NormSpec::new(
        NormKind::Rms,
        Bias::IfStored,
        config.number(&["rms_norm_eps"], 1e-6)?,
    );
    // GGUF files have it added already, which their reader says.
    norm.weights.offset = config.number(&["norm_offset"], 1.0)? as f32;
    let frame = Frame {
        sizes,
        names: llama::NAMES,
        norm,
        position: PositionSource::Rotary(ropes(config, generation, sizes.head_dim)?),
        tied: config.boolean("tie_word_embeddings", true)?,
        head_bias: Bias::IfStored,
        multipliers: Multipliers {
            embedding: (sizes.hidden as f32).sqrt(),
            logits: 1.0,
            logit_cap: cap(config, "final_logit_softcapping", logit_cap)?,
        },
    };
    let scalar = match generation {
        Generation::One => sizes.head_dim as f64,
        _ => config.number(&["query_pre_attn_scalar"], 256.0)?,
    };
    let layers = Gemma {
        generation,
        width: config.required_count(&["intermediate_size"])?,
        activation: match generation {
            // The first files say gelu and were trained with its approximation.
            Generation::One => Activation::GeluTanh,
            _ => activation(
                config,
                &["hidden_activation", "hidden_act"],
                "gelu_pytorch_tanh",
            )?,
        },
        windows: windows(config, rule, sizes.num_layers)?,
        scale: scalar.powf(-0.5) as f32,
        score_cap: cap(config, "attn_logit_softcapping", score_cap)?,
    };
    Ok((frame, layers))
}

/// The rotation of layers that see everything, then the one of layers with a window.
fn ropes(config: &ModelConfig, generation: Generation, head_dim: usize) -> Result<Vec<RopeConfig>> {
    let of_kind = |kind, base, theta| RopeConfig::read_of_kind(config, kind, base, head_dim, theta);
    Ok(match generation {
        Generation::Three => vec![
            of_kind("full_attention", "rope_theta", 1_000_000.0)?,
            of_kind("sliding_attention", "rope_local_base_freq", 10_000.0)?,
        ],
        _ => vec![RopeConfig::read(config, head_dim, 10_000.0, 1.0)?],
    })
}

/// A cap whose default counts when the key is absent; null is none.
fn cap(config: &ModelConfig, key: &str, default: Option<f64>) -> Result<Option<f32>> {
    let stored = config.get(&[key]).is_some();
    let default = default.filter(|_| !config.is_null(key));
    let cap = match stored {
        true => Some(config.number(&[key], 0.0)?),
        false => default,
    };
    Ok(cap.filter(|cap| *cap > 0.0).map(|cap| cap as f32))
}

impl Gemma {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden) = (&frame.sizes, frame.sizes.hidden);
        let window = self.windows[parts.index];
        let branch = 1.0 / frame.multipliers.embedding;
        let (before, behind) = (frame.stream_norm(), frame.norm.times(branch));
        let sandwich = self.generation != Generation::One;
        // In the first generation the name means the norm before the MLP.
        let (post_attn, pre_mlp, post_mlp, factor) = match sandwich {
            true => (
                Some(parts.norm(behind, "post_attention_layernorm", hidden)?),
                "pre_feedforward_layernorm",
                Some(parts.norm(behind, "post_feedforward_layernorm", hidden)?),
                1.0,
            ),
            false => (None, "post_attention_layernorm", None, branch),
        };
        let names = ["self_attn.q_norm", "self_attn.k_norm"];
        let three = self.generation == Generation::Three;
        let attended = [hidden, sizes.q_rows()];
        Ok(Layer {
            pre_attn: Some(parts.norm(before, "input_layernorm", hidden)?),
            qkv: parts.qkv("self_attn", sizes, Bias::IfStored)?,
            qk_norm: match three {
                true => Some(parts.shared_qk_norm(frame.norm, names, sizes)?),
                false => None,
            },
            rope: Some(usize::from(three && window.is_some())),
            attention: AttentionSpec {
                window,
                scale: self.scale,
                soft_cap: self.score_cap,
                ..sizes.attention()
            },
            out: parts.scaled("self_attn.o_proj", attended, Bias::IfStored, factor)?,
            post_attn,
            residual: Residual::Sequential(Some(parts.norm(before, pre_mlp, hidden)?)),
            mlp: Mlp::Gated {
                gate_up: parts.gate_up(self.width, hidden, Bias::IfStored)?,
                down: parts.scaled(
                    "mlp.down_proj",
                    [hidden, self.width],
                    Bias::IfStored,
                    factor,
                )?,
                width: self.width,
                activation: self.activation,
            },
            post_mlp,
        })
    }
}
