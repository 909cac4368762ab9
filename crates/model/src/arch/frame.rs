//! What every family has around its layers: sizes, embedding, positions, the last norm and the head.
//! The layers themselves are each family's own.

use backend::{AttentionSpec, Backend, HostTensor, NormKind, Rope, WeightData};

use super::Shape;
use super::parts::Parts;
use crate::causal_lm::ActiveWeights;
use crate::config::ModelConfig;
use crate::decoder::{Layer, Position, Weights};
use crate::error::{ModelError, Result};
use crate::load::Progress;
use crate::rope::RopeConfig;
use crate::tensors::{Bias, LinearSpec, Tensors};

/// Counts and widths.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub hidden: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
}

impl Sizes {
    /// For families whose fused q, k and v leave no other choice: every head has keys of its own, and
    /// together they are as wide as the hidden size. `key` is what the family calls their number.
    pub fn shared_out(self, key: &'static str) -> Result<Self> {
        if self.num_heads * self.head_dim != self.hidden || self.num_kv_heads != self.num_heads {
            return Err(ModelError::config(
                key,
                "does not share out the hidden size",
            ));
        }
        Ok(self)
    }

    /// `head_dim` counts when the key is absent; without it, hidden size divided by heads.
    pub fn read(config: &ModelConfig, head_dim: Option<usize>) -> Result<Self> {
        let hidden = config.required_count(&["hidden_size", "n_embd"])?;
        let num_heads = config.required_count(&["num_attention_heads", "n_head"])?;
        let num_kv_heads = config.count(&["num_key_value_heads"])?.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(ModelError::config(
                "num_key_value_heads",
                format!("{num_kv_heads} does not divide {num_heads}"),
            ));
        }
        let head_dim = match config.count(&["head_dim"])?.or(head_dim) {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(num_heads) => hidden / num_heads,
            None => {
                return Err(ModelError::config(
                    "head_dim",
                    "is missing and heads do not divide the hidden size",
                ));
            }
        };
        let num_layers = config.required_count(&["num_hidden_layers", "n_layer"])?;
        if num_layers > 1024 {
            return Err(ModelError::config(
                "num_hidden_layers",
                format!("is {num_layers}, more than 1024"),
            ));
        }
        Ok(Self {
            hidden,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            max_positions: config.required_count(&[
                "max_position_embeddings",
                "n_positions",
                "n_ctx",
            ])?,
        })
    }

    pub fn q_rows(&self) -> usize {
        self.num_heads * self.head_dim
    }

    pub fn kv_rows(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Attention over everything before, scaled by the square root of the head size.
    pub fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).powf(-0.5),
            window: None,
            soft_cap: None,
        }
    }
}

/// The norm of a family.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormSpec {
    pub kind: NormKind,
    pub bias: Bias,
    pub eps: f32,
    /// Added to every stored weight, then multiplied with it and with the bias.
    pub weights: Affine,
}

impl NormSpec {
    /// Weights as they are stored.
    pub fn new(kind: NormKind, bias: Bias, eps: f64) -> Self {
        Self {
            kind,
            bias,
            eps: eps as f32,
            weights: Affine {
                offset: 0.0,
                factor: 1.0,
            },
        }
    }

    /// The same norm with its result multiplied.
    pub fn times(mut self, factor: f32) -> Self {
        self.weights.factor *= factor;
        self
    }
}

/// `(w + offset) · factor`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Affine {
    pub offset: f32,
    pub factor: f32,
}

/// Where positions come from.
#[derive(Debug, Clone)]
pub(crate) enum PositionSource {
    /// A table in the checkpoint, by name.
    Learned(&'static str),
    /// A layer names its rotation by index.
    Rotary(Vec<RopeConfig>),
}

/// Factors on the way from the embedding to the logits.
///
/// The embedding's is taken out of the residual stream instead of being put into the table, so that a
/// tied head stays tied: whatever a layer adds to the stream is divided by it, and so is, squared, the
/// epsilon of every norm that reads the stream, which then give what they gave before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Multipliers {
    /// Of the embedding.
    pub embedding: f32,
    /// Of the logits; the last norm takes it.
    pub logits: f32,
    /// `l ← cap · tanh(l / cap)`, after the multiplication.
    pub logit_cap: Option<f32>,
}

impl Multipliers {
    pub const NONE: Self = Self {
        embedding: 1.0,
        logits: 1.0,
        logit_cap: None,
    };
}

/// Tensor names outside the layers, without `.weight`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Names {
    /// Before every name but the head's.
    pub prefix: &'static str,
    pub embed: &'static str,
    /// A layer's tensors are called `LAYERS.INDEX.…`.
    pub layers: &'static str,
    pub final_norm: &'static str,
    /// In order of preference.
    pub heads: &'static [&'static str],
}

/// The settings all families share.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub sizes: Sizes,
    pub names: Names,
    pub norm: NormSpec,
    pub position: PositionSource,
    /// The head is the embedding.
    pub tied: bool,
    pub head_bias: Bias,
    pub multipliers: Multipliers,
}

impl Frame {
    /// The norm of what stands on the residual stream.
    pub fn stream_norm(&self) -> NormSpec {
        let embedding = self.multipliers.embedding;
        NormSpec {
            eps: self.norm.eps / (embedding * embedding),
            ..self.norm
        }
    }

    pub fn shape(&self) -> Shape {
        let max_positions = self.sizes.max_positions;
        let (max_positions, max_stretched) = match &self.position {
            PositionSource::Learned(_) => (max_positions, max_positions),
            PositionSource::Rotary(ropes) => ropes
                .first()
                .map_or((max_positions, max_positions), |rope| {
                    rope.context(max_positions)
                }),
        };
        Shape {
            num_layers: self.sizes.num_layers,
            num_kv_heads: self.sizes.num_kv_heads,
            head_dim: self.sizes.head_dim,
            max_positions,
            max_stretched,
        }
    }

    /// Loads everything, the layers through `layer`; returns the weights with the row count of the
    /// embedding.
    pub fn load<B: Backend>(
        &self,
        tensors: &Tensors,
        backend: &mut B,
        max_model_len: usize,
        progress: &mut Progress,
        layer: impl Fn(&mut Parts<B>) -> Result<Layer<B>>,
    ) -> Result<(Weights<B>, usize)> {
        let Names {
            embed,
            layers: stem,
            final_norm,
            ..
        } = self.names;
        let prefix = self.prefix(tensors);
        let embed = tensors.table(&format!("{prefix}{embed}.weight"), self.sizes.hidden)?;
        let vocab = embed.rows;
        let (embed, head) = match self.head(tensors) {
            None => backend.load_tied(embed)?,
            // One at a time: these are the largest tensors.
            Some(head) => {
                let embed = backend.load_tensor(embed)?;
                let head = tensors.linear(&[LinearSpec {
                    prefix: head.to_owned(),
                    rows: vocab,
                    columns: self.sizes.hidden,
                    bias: self.head_bias,
                }])?;
                (embed, backend.load_linear(head.into_head())?)
            }
        };
        let mut active_weights = ActiveWeights {
            head: (vocab * self.sizes.hidden) as u64,
            layers: 0,
        };
        progress.advance(1);
        let mut layers = Vec::with_capacity(self.sizes.num_layers);
        let mut key_bias_norms = Vec::with_capacity(self.sizes.num_layers);
        for index in 0..self.sizes.num_layers {
            let place = format!("{prefix}{stem}.{index}.");
            let mut parts = Parts::new(index, place, tensors, backend);
            layers.push(layer(&mut parts)?);
            key_bias_norms.push(parts.key_bias_norm());
            active_weights.layers += parts.active_weights();
            progress.advance(1);
        }
        let final_norm = Parts::new(0, prefix.to_owned(), tensors, backend).norm(
            self.stream_norm().times(self.multipliers.logits),
            final_norm,
            self.sizes.hidden,
        )?;
        // The table is as long as the context, which no tensor vouches for, so it comes last.
        let position = self.position(prefix, tensors, backend, max_model_len)?;
        let weights = Weights {
            embed,
            position,
            layers,
            key_bias_norms,
            active_weights,
            final_norm,
            head,
            logit_cap: self.multipliers.logit_cap,
        };
        Ok((weights, vocab))
    }

    /// Files of the bare model, saved without its head, lack the prefix. They are complete where the
    /// head is the embedding.
    fn prefix(&self, tensors: &Tensors) -> &'static str {
        let Names { prefix, embed, .. } = self.names;
        let bare = self.tied
            && !tensors.has(&format!("{prefix}{embed}.weight"))
            && tensors.has(&format!("{embed}.weight"));
        if bare { "" } else { prefix }
    }

    /// The name of a head of its own, without `.weight`.
    fn head(&self, tensors: &Tensors) -> Option<&'static str> {
        let stored = |head: &&&str| tensors.has(&format!("{head}.weight"));
        let stored = self.names.heads.iter().find(stored);
        if self.tied {
            // Some exporters store the tied head a second time.
            stored.inspect(|head| tensors.skip(&format!("{head}.weight")));
            return None;
        }
        stored.copied()
    }

    fn position<B: Backend>(
        &self,
        prefix: &str,
        tensors: &Tensors,
        backend: &mut B,
        max_model_len: usize,
    ) -> Result<Position<B::Tensor>> {
        match &self.position {
            PositionSource::Learned(name) => {
                let name = format!("{prefix}{name}.weight");
                let table = tensors.table(&name, self.sizes.hidden)?;
                if table.rows != self.sizes.max_positions {
                    return Err(ModelError::tensor(
                        &name,
                        format!(
                            "has {} rows for {} positions",
                            table.rows, self.sizes.max_positions
                        ),
                    ));
                }
                Ok(Position::Learned(backend.load_tensor(table)?))
            }
            PositionSource::Rotary(ropes) => {
                let mut load = |rope: &RopeConfig| {
                    let table = HostTensor::new(
                        max_model_len,
                        rope.rotary_dim,
                        WeightData::F32(rope.table(max_model_len)),
                    )?;
                    Ok(Rope {
                        head_dim: self.sizes.head_dim,
                        rotary_dim: rope.rotary_dim,
                        table: backend.load_tensor(table)?,
                    })
                };
                let ropes: Result<Vec<_>> = ropes.iter().map(&mut load).collect();
                Ok(Position::Rotary(ropes?))
            }
        }
    }
}
