//! Tensors under the names that candle's models ask for, with a record of what was asked for: a tensor
//! that nothing reads means that the model was not understood.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::Init;
use candle_nn::var_builder::{SimpleBackend, VarBuilder};
use model::{FloatTensors, ModelError};

/// What a checkpoint that was saved with a head puts before all names.
const PREFIXES: &[&str] = &[
    "bert.",
    "roberta.",
    "xlm_roberta.",
    "distilbert.",
    "nomic_bert.",
    "model.",
];

/// Starts of names that an embedding does without: heads, and buffers that hold nothing trained.
const UNUSED: &[&str] = &[
    "pooler.",
    "cls.",
    "lm_head.",
    "classifier.",
    "head.",
    "decoder.",
    "vocab_",
    "qa_outputs.",
    "embeddings.position_ids",
];

/// DistilBERT's names for the parts of BERT.
const DISTILBERT: &[(&str, &str)] = &[
    ("transformer.layer.", "encoder.layer."),
    (".attention.q_lin.", ".attention.self.query."),
    (".attention.k_lin.", ".attention.self.key."),
    (".attention.v_lin.", ".attention.self.value."),
    (".attention.out_lin.", ".attention.output.dense."),
    (".sa_layer_norm.", ".attention.output.LayerNorm."),
    (".ffn.lin1.", ".intermediate.dense."),
    (".ffn.lin2.", ".output.dense."),
    (".output_layer_norm.", ".output.LayerNorm."),
];

/// The one table that BERT has and DistilBERT has not.
const TOKEN_TYPES: &str = "embeddings.token_type_embeddings.weight";

/// Tensors by candle's names.
pub(crate) struct Weights {
    tensors: FloatTensors,
    /// Candle's name to the stored one.
    stored: BTreeMap<String, String>,
    unread: Mutex<BTreeSet<String>>,
    has_token_types: bool,
}

impl Weights {
    pub fn new(tensors: FloatTensors, is_distilbert: bool) -> Self {
        let names = tensors.names().into_iter();
        let stored: BTreeMap<_, _> = names
            .map(|name| (candle_name(&name, is_distilbert), name))
            .collect();
        let read = |name: &&String| !UNUSED.iter().any(|start| name.starts_with(start));
        let unread = stored.keys().filter(read).cloned().collect();
        Self {
            tensors,
            stored,
            unread: Mutex::new(unread),
            has_token_types: !is_distilbert,
        }
    }

    /// How candle's models are given tensors.
    pub fn builder(self: &Arc<Self>) -> VarBuilder<'static> {
        let backend = Box::new(Shared(Arc::clone(self)));
        VarBuilder::from_backend(backend, DType::F32, Device::Cpu)
    }

    pub fn has(&self, name: &str) -> bool {
        self.stored.contains_key(name)
    }

    /// Multiplications for a token: the numbers of all matrices that are no tables.
    pub fn num_products(&self) -> usize {
        let in_layers = self
            .stored
            .iter()
            .filter(|(name, _)| name.contains("layer"));
        let shapes = in_layers.filter_map(|(_, stored)| self.tensors.shape(stored));
        shapes
            .filter(|shape| shape.len() == 2)
            .map(|shape| shape.iter().product::<usize>())
            .sum()
    }

    /// Refuses a checkpoint of which something was not used.
    pub fn check_all_read(&self) -> std::result::Result<(), ModelError> {
        let unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match unread.first() {
            None => Ok(()),
            Some(name) => Err(ModelError::Tensor {
                name: name.clone(),
                reason: format!(
                    "and {} others are not part of the architecture that config.json names",
                    unread.len() - 1
                ),
            }),
        }
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::CannotFindTensor { path: name.into() }.bt();
        let stored = self.stored.get(name).ok_or_else(missing)?;
        let shape = self.tensors.shape(stored).ok_or_else(missing)?;
        let data = self.tensors.read(stored).map_err(Error::wrap)?;
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        unread.remove(name);
        Tensor::from_vec(data, shape, &Device::Cpu)
    }
}

/// The name candle asks for, of a stored one.
fn candle_name(stored: &str, is_distilbert: bool) -> String {
    let prefix = PREFIXES
        .iter()
        .find_map(|prefix| stored.strip_prefix(prefix));
    let mut name = prefix.unwrap_or(stored).to_owned();
    // The spelling of checkpoints converted from TensorFlow.
    for (old, new) in [
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
    ] {
        name = name.replace(old, new);
    }
    if is_distilbert {
        for (theirs, berts) in DISTILBERT {
            name = name.replace(theirs, berts);
        }
    }
    name
}

struct Shared(Arc<Weights>);

impl SimpleBackend for Shared {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        if name == TOKEN_TYPES && !self.0.has_token_types {
            return Tensor::zeros(shape, dtype, device);
        }
        let tensor = self.get_unchecked(name, dtype, device)?;
        if *tensor.shape() != shape {
            return Err(Error::UnexpectedShape {
                msg: format!("tensor {name} and config.json disagree"),
                expected: shape,
                got: tensor.shape().clone(),
            }
            .bt());
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, _: &Device) -> Result<Tensor> {
        // ModernBERT's names begin with the prefix that was taken off.
        let name = name.strip_prefix("model.").unwrap_or(name);
        self.0.read(name)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.has(name.strip_prefix("model.").unwrap_or(name))
    }
}
