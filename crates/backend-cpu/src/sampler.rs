//! The passes of the sampler by our kernels, to the bits of `ReferenceOps`.

use std::cell::RefCell;

use ::backend::{SamplerOps, SamplingParams, TokenId};
use kernels_cpu::Isa;
use kernels_cpu::sampler::{Filters, Masses, choose, finite_max, first_of, largest, sum_exp};

thread_local! {
    /// Each worker's, kept because a vocabulary's worth of fresh pages costs as much as a pass.
    static MASSES: RefCell<Masses> = RefCell::default();
}

/// The level of instructions that samples.
pub(crate) struct CpuSampler(pub(crate) Isa);

impl SamplerOps for CpuSampler {
    fn finite_max(&self, logits: &[f32]) -> Option<f32> {
        finite_max(self.0, logits)
    }

    fn sum_exp(&self, logits: &[f32], max: f32) -> f64 {
        sum_exp(self.0, logits, max)
    }

    fn first_of(&self, logits: &[f32], logit: f32) -> TokenId {
        let first = first_of(self.0, logits, logit);
        first.expect("the logit is one of the row") as TokenId
    }

    fn largest(&self, logits: &[f32], count: usize) -> Vec<TokenId> {
        largest(self.0, logits, count)
    }

    fn choose(&self, logits: &[f32], max: f32, params: &SamplingParams, u: f64) -> TokenId {
        let filters = Filters {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
        };
        MASSES.with_borrow_mut(|masses| choose(self.0, logits, max, filters, u, masses))
    }
}
