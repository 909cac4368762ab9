//! Llama and the families that differ from it by a setting: Mistral, Qwen 2, Qwen 3.

use backend::{
    Activation, AttentionSpec, Backend, HostTensor, LinearWeight, Norm, NormKind, Rope, WeightData,
};
use serde_json::Value;

use super::Shape;
use crate::config::ModelConfig;
use crate::decoder::{Layer, Mlp, QkNorm, Weights};
use crate::error::{ModelError, Result};
use crate::load::Progress;
use crate::rope::RopeConfig;
use crate::tensors::{Bias, LinearSpec, Tensors};

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

/// The settings of one checkpoint.
#[derive(Debug, Clone)]
pub(crate) struct Llama {
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    max_positions: usize,
    eps: f32,
    activation: Activation,
    tied: bool,
    rope: RopeConfig,
    /// One entry per layer.
    windows: Vec<Option<usize>>,
    qk_norm: bool,
    qkv_bias: Bias,
    out_bias: Bias,
    mlp_bias: Bias,
}

impl Llama {
    pub fn read(config: &ModelConfig, quirks: Quirks) -> Result<Self> {
        let hidden_size = config.required_count(&["hidden_size"])?;
        let num_heads = config.required_count(&["num_attention_heads"])?;
        let num_kv_heads = config.count(&["num_key_value_heads"])?.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(ModelError::config(
                "num_key_value_heads",
                format!("{num_kv_heads} does not divide {num_heads}"),
            ));
        }
        let head_dim = match config.count(&["head_dim"])?.or(quirks.head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                return Err(ModelError::config(
                    "head_dim",
                    "is missing and heads do not divide the hidden size",
                ));
            }
        };
        let num_layers = config.required_count(&["num_hidden_layers"])?;
        if num_layers > 1024 {
            return Err(ModelError::config(
                "num_hidden_layers",
                format!("is {num_layers}, more than 1024"),
            ));
        }
        let attention_bias = bias(config, "attention_bias")?;
        let mut rope = RopeConfig::read(config, head_dim, 10_000.0)?;
        rope.factors = factors(config, rope.rotary_dim)?;
        Ok(Self {
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: config.required_count(&["intermediate_size"])?,
            max_positions: config.required_count(&[
                "max_position_embeddings",
                "n_positions",
                "n_ctx",
            ])?,
            eps: config.number(&["rms_norm_eps"], 1e-6)? as f32,
            activation: activation(config)?,
            tied: config.boolean("tie_word_embeddings", false)?,
            rope,
            windows: windows(config, quirks.window, num_layers)?,
            qk_norm: quirks.qk_norm,
            qkv_bias: if attention_bias == Bias::Required {
                attention_bias
            } else {
                quirks.qkv_bias
            },
            out_bias: attention_bias,
            mlp_bias: bias(config, "mlp_bias")?,
        })
    }

    pub fn shape(&self) -> Shape {
        let (max_positions, max_stretched) = self.rope.context(self.max_positions);
        Shape {
            num_layers: self.num_layers,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            max_positions,
            max_stretched,
        }
    }

    /// Loads the weights; returns them with the row count of the embedding.
    pub fn load<B: Backend>(
        &self,
        tensors: &Tensors,
        backend: &mut B,
        max_model_len: usize,
        progress: &mut Progress,
    ) -> Result<(Weights<B>, usize)> {
        let embed = tensors.table("model.embed_tokens.weight", self.hidden_size)?;
        let vocab = embed.rows;
        let tied = self.tied || !tensors.has("lm_head.weight");
        let head = if tied {
            // Some exporters store the tied head a second time.
            tensors.skip("lm_head.weight");
            LinearWeight::new(embed.clone(), None)?
        } else {
            tensors.linear(&[LinearSpec {
                prefix: "lm_head".to_owned(),
                rows: vocab,
                columns: self.hidden_size,
                bias: Bias::IfStored,
            }])?
        };
        let embed = backend.load_tensor(embed)?;
        let head = backend.load_linear(head.into_head())?;
        progress.advance(1);
        let mut layers = Vec::with_capacity(self.num_layers);
        for index in 0..self.num_layers {
            layers.push(self.layer(index, tensors, backend)?);
            progress.advance(1);
        }
        let final_norm = self.norm("model.norm.weight", self.hidden_size, 1, tensors, backend)?;
        // The table is as long as the context, which no tensor vouches for, so it comes last.
        let table = HostTensor::new(
            max_model_len,
            self.rope.rotary_dim,
            WeightData::F32(self.rope.table(max_model_len)),
        )?;
        let rope = Rope {
            head_dim: self.head_dim,
            rotary_dim: self.rope.rotary_dim,
            table: backend.load_tensor(table)?,
        };
        Ok((
            Weights {
                embed,
                ropes: vec![rope],
                layers,
                final_norm,
                head,
            },
            vocab,
        ))
    }

    fn layer<B: Backend>(
        &self,
        index: usize,
        tensors: &Tensors,
        backend: &mut B,
    ) -> Result<Layer<B>> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, width) = (self.hidden_size, self.intermediate_size);
        let (q_rows, kv_rows) = (
            self.num_heads * self.head_dim,
            self.num_kv_heads * self.head_dim,
        );
        let linear = |part: &str, rows: usize, columns: usize, bias: Bias| LinearSpec {
            prefix: name(part),
            rows,
            columns,
            bias,
        };
        let qkv = tensors.linear(&[
            linear("self_attn.q_proj", q_rows, hidden, self.qkv_bias),
            linear("self_attn.k_proj", kv_rows, hidden, self.qkv_bias),
            linear("self_attn.v_proj", kv_rows, hidden, self.qkv_bias),
        ])?;
        let out = tensors.linear(&[linear("self_attn.o_proj", hidden, q_rows, self.out_bias)])?;
        let gate_up = tensors.linear(&[
            linear("mlp.gate_proj", width, hidden, self.mlp_bias),
            linear("mlp.up_proj", width, hidden, self.mlp_bias),
        ])?;
        let down = tensors.linear(&[linear("mlp.down_proj", hidden, width, self.mlp_bias)])?;
        let qk_norm = if self.qk_norm {
            let q = self.norm(
                &name("self_attn.q_norm.weight"),
                self.head_dim,
                self.num_heads,
                tensors,
                backend,
            )?;
            let k = self.norm(
                &name("self_attn.k_norm.weight"),
                self.head_dim,
                self.num_kv_heads,
                tensors,
                backend,
            )?;
            Some(QkNorm { q, k })
        } else {
            None
        };
        Ok(Layer {
            pre_attn: self.norm(&name("input_layernorm.weight"), hidden, 1, tensors, backend)?,
            qkv: backend.load_linear(qkv)?,
            qk_norm,
            rope: Some(0),
            attention: AttentionSpec {
                num_heads: self.num_heads,
                num_kv_heads: self.num_kv_heads,
                head_dim: self.head_dim,
                scale: (self.head_dim as f32).powf(-0.5),
                window: self.windows[index],
                soft_cap: None,
            },
            out: backend.load_linear(out)?,
            pre_mlp: self.norm(
                &name("post_attention_layernorm.weight"),
                hidden,
                1,
                tensors,
                backend,
            )?,
            mlp: Mlp {
                gate_up: backend.load_linear(gate_up)?,
                down: backend.load_linear(down)?,
                width,
                activation: self.activation,
            },
        })
    }

    /// An RMS norm over runs of `width` features whose weight is shared by `repeats` runs.
    fn norm<B: Backend>(
        &self,
        name: &str,
        width: usize,
        repeats: usize,
        tensors: &Tensors,
        backend: &mut B,
    ) -> Result<Norm<B::Tensor>> {
        let weight = tensors.vector(name, width)?.repeat(repeats);
        Ok(Norm {
            kind: NormKind::Rms,
            width,
            weight: backend.load_tensor(HostTensor::vector(weight))?,
            bias: None,
            eps: self.eps,
        })
    }
}

fn activation(config: &ModelConfig) -> Result<Activation> {
    match config
        .get(&["hidden_act"])
        .and_then(Value::as_str)
        .unwrap_or("silu")
    {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(ModelError::unsupported(
            "hidden_act",
            other,
            "silu, gelu, gelu_new and relu are",
        )),
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

fn bias(config: &ModelConfig, key: &str) -> Result<Bias> {
    Ok(match config.boolean(key, false)? {
        true => Bias::Required,
        false => Bias::IfStored,
    })
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
