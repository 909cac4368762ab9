//! Llama and the families that differ from it by a setting: Mistral, Qwen 2 and 3, Phi 3 and 4, OLMo 2,
//! SmolLM 3, Granite, Mixtral, Qwen 3 with experts.

use backend::{Activation, AttentionSpec, Backend, NormKind};

use super::experts::{ExpertNames, RoutedSpec};
use super::frame::{Frame, Multipliers, Names, NormSpec, PositionSource, Sizes};
use super::parts::{Parts, activation, bias};
use super::windows::{WindowRule, windows};
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, QkNorm, Residual};
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

/// Where a family's defaults and layers differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quirks {
    /// `head_dim` when the key is absent; otherwise hidden size divided by heads.
    head_dim: Option<usize>,
    window: WindowRule,
    /// Queries and keys are normalised.
    qk_norm: Option<QkNormOver>,
    /// Biases of q, k and v; `attention_bias` asks for those and for the output's.
    qkv_bias: Bias,
    /// Norms stand behind attention and MLP, not before them.
    post_norms: bool,
    /// q, k and v are one tensor, gate and up another.
    fused: bool,
    /// Every layer of this period is not rotated.
    unrotated_period: Option<usize>,
    /// The keys of Granite's factors count.
    multipliers: bool,
    /// Layers have experts.
    experts: Option<ExpertNames>,
    /// What holds where the keys are absent.
    defaults: Defaults,
}

/// What a query or key norm takes its statistics over.
#[derive(Debug, Clone, Copy)]
enum QkNormOver {
    Head,
    Row,
}

#[derive(Debug, Clone, Copy)]
struct Defaults {
    theta: f64,
    eps: f64,
    tied: bool,
}

impl Quirks {
    pub const LLAMA: Self = Self {
        head_dim: None,
        window: WindowRule::Never,
        qk_norm: None,
        qkv_bias: Bias::IfStored,
        post_norms: false,
        fused: false,
        unrotated_period: None,
        multipliers: false,
        experts: None,
        defaults: Defaults {
            theta: 10_000.0,
            eps: 1e-6,
            tied: false,
        },
    };
    pub const MISTRAL: Self = Self {
        window: WindowRule::All {
            default: Some(4096),
        },
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
        qk_norm: Some(QkNormOver::Head),
        qkv_bias: Bias::IfStored,
        ..Self::QWEN2
    };
    pub const MIXTRAL: Self = Self {
        window: WindowRule::All { default: None },
        experts: Some(ExpertNames::MIXTRAL),
        defaults: Defaults {
            theta: 1_000_000.0,
            eps: 1e-5,
            ..Self::LLAMA.defaults
        },
        ..Self::LLAMA
    };
    pub const QWEN3_MOE: Self = Self {
        experts: Some(ExpertNames::QWEN3),
        ..Self::QWEN3
    };
    pub const PHI3: Self = Self {
        window: WindowRule::All { default: None },
        fused: true,
        defaults: Defaults {
            eps: 1e-5,
            ..Self::LLAMA.defaults
        },
        ..Self::LLAMA
    };
    pub const OLMO2: Self = Self {
        qk_norm: Some(QkNormOver::Row),
        post_norms: true,
        defaults: Defaults {
            eps: 1e-5,
            ..Self::LLAMA.defaults
        },
        ..Self::LLAMA
    };
    pub const SMOLLM3: Self = Self {
        window: Self::QWEN2.window,
        unrotated_period: Some(4),
        defaults: Defaults {
            theta: 2_000_000.0,
            tied: true,
            ..Self::LLAMA.defaults
        },
        ..Self::LLAMA
    };
    pub const GRANITE: Self = Self {
        multipliers: true,
        ..Self::LLAMA
    };
}

/// What a layer is made with, beside the frame.
#[derive(Debug, Clone)]
pub(crate) struct Llama {
    width: usize,
    activation: Activation,
    /// One entry per layer.
    windows: Vec<Option<usize>>,
    /// Whether a layer is rotated, one entry per layer.
    rotated: Vec<bool>,
    /// Of the scores, where it is not the square root of the head size.
    scale: Option<f32>,
    /// Factor of what attention and MLP add to the stream.
    branch: f32,
    routed: Option<RoutedSpec>,
    quirks: Quirks,
    qkv_bias: Bias,
    out_bias: Bias,
    mlp_bias: Bias,
}

pub(crate) fn read(config: &ModelConfig, quirks: Quirks) -> Result<(Frame, Box<Llama>)> {
    let sizes = Sizes::read(config, quirks.head_dim)?;
    let attention_bias = bias(config, "attention_bias", false)?;
    let mut rope = RopeConfig::read(config, sizes.head_dim, quirks.defaults.theta, 1.0)?;
    rope.factors = factors(config, rope.rotary_dim)?;
    let factor = |key: &str| -> Result<Option<f32>> {
        let stored = quirks.multipliers.then(|| config.number(&[key], 1.0));
        Ok(stored.transpose()?.map(|factor| factor as f32))
    };
    let multipliers = Multipliers {
        embedding: factor("embedding_multiplier")?.unwrap_or(1.0),
        logits: 1.0 / factor("logits_scaling")?.unwrap_or(1.0),
        logit_cap: None,
    };
    let activation = activation(config, &["hidden_act"], "silu")?;
    let routed = quirks
        .experts
        .map(|names| RoutedSpec::read(config, names, activation, sizes.num_layers));
    let layers = Llama {
        width: config.required_count(&["intermediate_size"])?,
        activation,
        routed: routed.transpose()?,
        windows: windows(config, quirks.window, sizes.num_layers)?,
        rotated: rotated(config, quirks.unrotated_period, sizes.num_layers)?,
        scale: factor("attention_multiplier")?,
        branch: factor("residual_multiplier")?.unwrap_or(1.0) / multipliers.embedding,
        quirks,
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
            config.number(&["rms_norm_eps"], quirks.defaults.eps)?,
        ),
        position: PositionSource::Rotary(vec![rope]),
        tied: config.boolean("tie_word_embeddings", quirks.defaults.tied)?,
        head_bias: Bias::IfStored,
        multipliers,
    };
    Ok((frame, Box::new(layers)))
}

impl Llama {
    pub fn layer<B: Backend>(&self, frame: &Frame, parts: &mut Parts<B>) -> Result<Layer<B>> {
        let (sizes, hidden) = (&frame.sizes, frame.sizes.hidden);
        let mut attention = AttentionSpec {
            window: self.windows[parts.index],
            ..sizes.attention()
        };
        attention.scale = self.scale.unwrap_or(attention.scale);
        let (before, behind) = (frame.stream_norm(), frame.norm.times(self.branch));
        let (pre_attn, post_attn, pre_mlp, post_mlp) = match self.quirks.post_norms {
            true => (
                None,
                Some(parts.norm(behind, "post_attention_layernorm", hidden)?),
                None,
                Some(parts.norm(behind, "post_feedforward_layernorm", hidden)?),
            ),
            false => (
                Some(parts.norm(before, "input_layernorm", hidden)?),
                None,
                Some(parts.norm(before, "post_attention_layernorm", hidden)?),
                None,
            ),
        };
        Ok(Layer {
            pre_attn,
            qkv: self.qkv(sizes, parts)?,
            qk_norm: self.qk_norm(frame, parts)?,
            rope: self.rotated[parts.index].then_some(0),
            attention,
            out: self.branch(
                parts,
                "self_attn.o_proj",
                [hidden, sizes.q_rows()],
                self.out_bias,
            )?,
            post_attn,
            residual: Residual::Sequential(pre_mlp),
            mlp: self.mlp(hidden, parts)?,
            post_mlp,
        })
    }

    fn qkv<B: Backend>(&self, sizes: &Sizes, parts: &mut Parts<B>) -> Result<B::Linear> {
        if !self.quirks.fused {
            return parts.qkv("self_attn", sizes, self.qkv_bias);
        }
        let rows = sizes.q_rows() + 2 * sizes.kv_rows();
        let spec = parts.spec("self_attn.qkv_proj", rows, sizes.hidden, self.qkv_bias);
        let weight = parts.tensors.linear(&[spec])?;
        parts.load_qkv(weight, sizes)
    }

    fn qk_norm<B: Backend>(
        &self,
        frame: &Frame,
        parts: &mut Parts<B>,
    ) -> Result<Option<QkNorm<B::Tensor>>> {
        let (sizes, names) = (&frame.sizes, ["self_attn.q_norm", "self_attn.k_norm"]);
        Ok(match self.quirks.qk_norm {
            None => None,
            Some(QkNormOver::Head) => Some(parts.shared_qk_norm(frame.norm, names, sizes)?),
            Some(QkNormOver::Row) => Some(QkNorm {
                q: parts.norm(frame.norm, names[0], sizes.q_rows())?,
                k: parts.norm(frame.norm, names[1], sizes.kv_rows())?,
            }),
        })
    }

    fn mlp<B: Backend>(&self, hidden: usize, parts: &mut Parts<B>) -> Result<Mlp<B>> {
        let routed = self.routed.as_ref();
        if let Some(routed) = routed.filter(|routed| routed.is_sparse(parts.index)) {
            return routed.mlp(hidden, parts);
        }
        let (width, bias) = (self.width, self.mlp_bias);
        let gate_up = match self.quirks.fused {
            true => parts.linear("mlp.gate_up_proj", 2 * width, hidden, bias)?,
            false => parts.gate_up(width, hidden, bias)?,
        };
        Ok(Mlp::Gated {
            gate_up,
            down: self.branch(parts, "mlp.down_proj", [hidden, width], bias)?,
            width,
            activation: self.activation,
        })
    }

    /// The last matrix of a branch. A norm behind it takes the branch's factor itself.
    fn branch<B: Backend>(
        &self,
        parts: &mut Parts<B>,
        name: &str,
        [rows, columns]: [usize; 2],
        bias: Bias,
    ) -> Result<B::Linear> {
        let factor = if self.quirks.post_norms {
            1.0
        } else {
            self.branch
        };
        parts.scaled(name, [rows, columns], bias, factor)
    }
}

/// Which layers are rotated: `no_rope_layers` holds a 1 where they are, else all but every `period`-th.
fn rotated(config: &ModelConfig, period: Option<usize>, num_layers: usize) -> Result<Vec<bool>> {
    let Some(period) = period else {
        return Ok(vec![true; num_layers]);
    };
    let Some(stored) = config.get(&["no_rope_layers"]) else {
        let period = config.count(&["no_rope_layer_interval"])?.unwrap_or(period);
        return Ok((1..=num_layers)
            .map(|layer| !layer.is_multiple_of(period))
            .collect());
    };
    let flags = stored.as_array().filter(|flags| flags.len() >= num_layers);
    flags
        .and_then(|flags| {
            let flags = flags.iter().take(num_layers);
            flags
                .map(|flag| flag.as_u64().filter(|flag| *flag < 2).map(|flag| flag == 1))
                .collect()
        })
        .ok_or_else(|| {
            let reason = format!("is not a list of 0 or 1 for {num_layers} layers");
            ModelError::config("no_rope_layers", reason)
        })
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
