//! The pieces that layers are made of, each read by name and handed to the target, and the settings
//! that several families spell alike.

use backend::{Activation, Backend, HostTensor, LinearWeight, Norm, WeightData};
use serde_json::Value;

use super::frame::{NormSpec, Sizes};
use crate::config::ModelConfig;
use crate::decoder::QkNorm;
use crate::error::{ModelError, Result};
use crate::tensors::{Bias, LinearSpec, Tensors};

/// The tensors of one layer on their way to a target.
pub(crate) struct Parts<'a, 't, B: Backend> {
    /// Depth of the layer.
    pub index: usize,
    /// What the names of its tensors start with.
    stem: String,
    pub tensors: &'a Tensors<'t>,
    backend: &'a mut B,
    /// Euclidean norm of the biases that keys get; zero without.
    key_bias_norm: f32,
    /// Elements of the matrices loaded so far that one token meets.
    active_weights: u64,
}

impl<'a, 't, B: Backend> Parts<'a, 't, B> {
    pub fn new(index: usize, stem: String, tensors: &'a Tensors<'t>, backend: &'a mut B) -> Self {
        Self {
            index,
            stem,
            tensors,
            backend,
            key_bias_norm: 0.0,
            active_weights: 0,
        }
    }

    /// Elements of the loaded matrices that one token meets.
    pub fn active_weights(&self) -> u64 {
        self.active_weights
    }

    /// Euclidean norm of the biases of the keys that [`Self::load_qkv`] loaded.
    pub fn key_bias_norm(&self) -> f32 {
        self.key_bias_norm
    }

    /// The full name of a tensor of this layer.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.stem)
    }

    pub fn spec(&self, part: &str, rows: usize, columns: usize, bias: Bias) -> LinearSpec {
        LinearSpec {
            prefix: self.name(part),
            rows,
            columns,
            bias,
        }
    }

    pub fn load(&mut self, weight: LinearWeight) -> Result<B::Linear> {
        self.active_weights += (weight.weight.rows * weight.weight.columns) as u64;
        Ok(self.backend.load_linear(weight)?)
    }

    /// Loads experts, of which a token meets `top_k`.
    pub fn load_experts<T>(
        &mut self,
        num_experts: usize,
        top_k: usize,
        load: impl Fn(&mut Self, usize) -> Result<T>,
    ) -> Result<Vec<T>> {
        let others = self.active_weights;
        let experts = (0..num_experts).map(|index| load(self, index)).collect();
        let all = self.active_weights - others;
        self.active_weights = others + all / num_experts as u64 * top_k as u64;
        experts
    }

    /// The matrix of a layer's queries, keys and values, `[q | k | v]` by rows.
    pub fn load_qkv(&mut self, weight: LinearWeight, sizes: &Sizes) -> Result<B::Linear> {
        let keys = sizes.q_rows()..sizes.q_rows() + sizes.kv_rows();
        if let Some(bias) = weight.bias.as_deref().and_then(|bias| bias.get(keys)) {
            self.key_bias_norm = bias.iter().map(|b| b * b).sum::<f32>().sqrt();
        }
        self.load(weight)
    }

    /// One matrix `[rows, columns]`.
    pub fn linear(
        &mut self,
        part: &str,
        rows: usize,
        columns: usize,
        bias: Bias,
    ) -> Result<B::Linear> {
        let weight = self
            .tensors
            .linear(&[self.spec(part, rows, columns, bias)])?;
        self.load(weight)
    }

    /// One matrix of this shape, its result multiplied.
    pub fn scaled(
        &mut self,
        part: &str,
        [rows, columns]: [usize; 2],
        bias: Bias,
        factor: f32,
    ) -> Result<B::Linear> {
        let weight = self
            .tensors
            .linear(&[self.spec(part, rows, columns, bias)])?;
        self.load(scaled(weight, factor))
    }

    /// Gate and up as one matrix.
    pub fn gate_up(&mut self, width: usize, hidden: usize, bias: Bias) -> Result<B::Linear> {
        let weight = self.tensors.linear(&[
            self.spec("mlp.gate_proj", width, hidden, bias),
            self.spec("mlp.up_proj", width, hidden, bias),
        ])?;
        self.load(weight)
    }

    /// The host form of `PART.q_proj`, `k_proj` and `v_proj` as one matrix.
    pub fn qkv_weight(&self, part: &str, sizes: &Sizes, bias: Bias) -> Result<LinearWeight> {
        let spec = |name: &str, rows: usize| {
            self.spec(&format!("{part}.{name}_proj"), rows, sizes.hidden, bias)
        };
        self.tensors.linear(&[
            spec("q", sizes.q_rows()),
            spec("k", sizes.kv_rows()),
            spec("v", sizes.kv_rows()),
        ])
    }

    /// Queries, keys and values as one matrix.
    pub fn qkv(&mut self, part: &str, sizes: &Sizes, bias: Bias) -> Result<B::Linear> {
        let weight = self.qkv_weight(part, sizes, bias)?;
        self.load_qkv(weight, sizes)
    }

    /// A norm over whole rows.
    pub fn norm(&mut self, spec: NormSpec, part: &str, width: usize) -> Result<Norm<B::Tensor>> {
        self.head_norm(spec, &[part.to_owned()], width, 1)
    }

    /// Norms over each query and each key head, `PART` naming one weight that all heads share.
    pub fn shared_qk_norm(
        &mut self,
        spec: NormSpec,
        [q, k]: [&str; 2],
        sizes: &Sizes,
    ) -> Result<QkNorm<B::Tensor>> {
        let dim = sizes.head_dim;
        Ok(QkNorm {
            q: self.head_norm(spec, &[q.to_owned()], dim, sizes.num_heads)?,
            k: self.head_norm(spec, &[k.to_owned()], dim, sizes.num_kv_heads)?,
        })
    }

    /// A norm over runs of `width` features whose weights stand in `parts`, all of them `repeats`
    /// times.
    pub fn head_norm(
        &mut self,
        spec: NormSpec,
        parts: &[String],
        width: usize,
        repeats: usize,
    ) -> Result<Norm<B::Tensor>> {
        let tensors = self.tensors;
        let join = |end: &str| -> Result<HostTensor> {
            let vectors: Result<Vec<_>> = parts
                .iter()
                .map(|part| tensors.vector(&self.name(&format!("{part}.{end}")), width))
                .collect();
            let offset = if end == "weight" {
                spec.weights.offset
            } else {
                0.0
            };
            let values = vectors?.concat().repeat(repeats).into_iter();
            let values = values.map(|w| (w + offset) * spec.weights.factor);
            Ok(HostTensor::vector(values.collect()))
        };
        let has_bias = spec.bias == Bias::Required
            || parts
                .iter()
                .any(|part| tensors.has(&self.name(&format!("{part}.bias"))));
        let weight = join("weight")?;
        let bias = has_bias.then(|| join("bias")).transpose()?;
        Ok(Norm {
            kind: spec.kind,
            width,
            weight: self.backend.load_tensor(weight)?,
            bias: match bias {
                Some(bias) => Some(self.backend.load_tensor(bias)?),
                None => None,
            },
            eps: spec.eps,
        })
    }
}

/// The same layer with its result multiplied; exact up to one rounding in 32 bits.
fn scaled(mut layer: LinearWeight, factor: f32) -> LinearWeight {
    if factor == 1.0 {
        return layer;
    }
    let times = |mut values: Vec<f32>| {
        values.iter_mut().for_each(|value| *value *= factor);
        values
    };
    layer.weight.data = match layer.weight.data {
        // The integers stay as they are stored.
        WeightData::Int8(mut data) if factor > 0.0 => {
            data.scales = times(data.scales);
            WeightData::Int8(data)
        }
        data => WeightData::F32(times(data.into_f32())),
    };
    layer.bias = layer.bias.map(times);
    layer
}

/// The activation under the first of `keys` that is there, else the one called `default`.
pub(crate) fn activation(config: &ModelConfig, keys: &[&str], default: &str) -> Result<Activation> {
    match config.get(keys).and_then(Value::as_str).unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => Err(ModelError::unsupported(
            keys[0],
            other,
            "silu, gelu, gelu_new and relu are",
        )),
    }
}

/// Whether a switch asks for biases; a bias that is stored without being asked for counts too.
pub(crate) fn bias(config: &ModelConfig, key: &str, default: bool) -> Result<Bias> {
    Ok(match config.boolean(key, default)? {
        true => Bias::Required,
        false => Bias::IfStored,
    })
}
