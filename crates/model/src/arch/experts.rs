//! Feed-forward networks of which each token uses a few: the settings and names of Mixtral and Qwen 3.

use backend::{Activation, Backend, Expert, Experts, Routing};

use super::parts::Parts;
use crate::config::ModelConfig;
use crate::decoder::Mlp;
use crate::error::{ModelError, Result};
use crate::tensors::Bias;

/// What the tensors of a family are called, and what holds where the keys are absent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpertNames {
    router: &'static str,
    /// An expert's tensors are called `EXPERTS.INDEX.…`.
    experts: &'static str,
    /// Gate, up and down.
    projections: [&'static str; 3],
    /// Where the width of an expert stands.
    width: &'static str,
    default_top_k: usize,
    /// Weights are renormalised without being asked.
    renormalise: bool,
}

impl ExpertNames {
    pub const MIXTRAL: Self = Self {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        projections: ["w1", "w3", "w2"],
        width: "intermediate_size",
        default_top_k: 2,
        renormalise: true,
    };
    pub const QWEN3: Self = Self {
        router: "mlp.gate",
        experts: "mlp.experts",
        projections: ["gate_proj", "up_proj", "down_proj"],
        width: "moe_intermediate_size",
        default_top_k: 8,
        renormalise: false,
    };
}

/// The experts of a model, and which of its layers have them.
#[derive(Debug, Clone)]
pub(crate) struct RoutedSpec {
    names: ExpertNames,
    num_experts: usize,
    width: usize,
    routing: Routing,
    activation: Activation,
    /// One entry per layer; the others have one network for all tokens.
    sparse: Vec<bool>,
}

impl RoutedSpec {
    pub fn read(
        config: &ModelConfig,
        names: ExpertNames,
        activation: Activation,
        num_layers: usize,
    ) -> Result<Self> {
        // transformers 5 renamed the key.
        let num_experts = config.required_count(&["num_local_experts", "num_experts"])?;
        let top_k = config
            .count(&["num_experts_per_tok"])?
            .unwrap_or(names.default_top_k);
        if top_k > num_experts {
            let reason = format!("is {top_k}, more than the {num_experts} experts");
            return Err(ModelError::config("num_experts_per_tok", reason));
        }
        let dense: Vec<u32> = config.token_ids("mlp_only_layers")?;
        let step = config.count(&["decoder_sparse_step"])?.unwrap_or(1);
        Ok(Self {
            names,
            num_experts,
            width: config.required_count(&[names.width])?,
            routing: Routing {
                top_k,
                renormalise: config.boolean("norm_topk_prob", names.renormalise)?,
            },
            activation,
            sparse: (0..num_layers)
                .map(|layer| !dense.contains(&(layer as u32)) && (layer + 1).is_multiple_of(step))
                .collect(),
        })
    }

    /// Whether a layer has experts.
    pub fn is_sparse(&self, layer: usize) -> bool {
        self.sparse[layer]
    }

    pub fn mlp<B: Backend>(&self, hidden: usize, parts: &mut Parts<B>) -> Result<Mlp<B>> {
        let names = self.names;
        let router = parts.spec(names.router, self.num_experts, hidden, Bias::IfStored);
        let router = parts.tensors.linear(&[router])?.into_router();
        let [gate, up, down] = names.projections;
        let expert = |parts: &mut Parts<B>, index: usize| -> Result<Expert<B::Linear>> {
            let name = |part: &str| format!("{}.{index}.{part}", names.experts);
            let gate_up = parts.tensors.linear(&[
                parts.spec(&name(gate), self.width, hidden, Bias::IfStored),
                parts.spec(&name(up), self.width, hidden, Bias::IfStored),
            ])?;
            Ok(Expert {
                gate_up: parts.load(gate_up)?,
                down: parts.linear(&name(down), hidden, self.width, Bias::IfStored)?,
            })
        };
        let experts = parts.load_experts(self.num_experts, self.routing.top_k, expert)?;
        Ok(Mlp::Routed {
            router: parts.load(router)?,
            routing: self.routing,
            experts: Experts {
                experts,
                width: self.width,
                activation: self.activation,
            },
        })
    }
}
