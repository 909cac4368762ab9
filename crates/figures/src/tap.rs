//! The reference target with a look at every matrix product: what a decoder computes with it is what the
//! reference computes.

use backend::reference::{KvCache, Linear, Step, Tensor};
use backend::{
    Activation, AttentionSpec, Backend, Batch, BlockCopy, Experts, HostTensor, Ids, KvCacheSpec,
    LinearWeight, Norm, ReferenceBackend, Result, Rope, Routing, SampleBatch, SampleOutput,
};

use crate::measure::Product;

/// Runs a model in 32-bit floats and measures each product as it is made.
#[derive(Debug, Default)]
pub struct Tap {
    reference: ReferenceBackend,
    /// In the order in which they were made.
    pub products: Vec<Product>,
}

impl Backend for Tap {
    type Tensor = Tensor;
    type Linear = Linear;
    type KvCache = KvCache;
    type Step = Step;

    fn linear(&mut self, x: &Tensor, linear: &Linear, step: &Step) -> Result<Tensor> {
        let y = self.reference.linear(x, linear, step)?;
        self.products.push(Product::measure(x, linear, &y, step)?);
        Ok(y)
    }

    fn load_tensor(&mut self, tensor: HostTensor) -> Result<Tensor> {
        self.reference.load_tensor(tensor)
    }

    fn load_linear(&mut self, weight: LinearWeight) -> Result<Linear> {
        self.reference.load_linear(weight)
    }

    fn alloc_kv_cache(&mut self, spec: &KvCacheSpec) -> Result<KvCache> {
        self.reference.alloc_kv_cache(spec)
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<Step> {
        self.reference.begin_step(batch)
    }

    fn copy_blocks(&mut self, cache: &mut KvCache, copies: &[BlockCopy]) -> Result<()> {
        self.reference.copy_blocks(cache, copies)
    }

    fn embed(&mut self, table: &Tensor, ids: Ids, step: &Step) -> Result<Tensor> {
        self.reference.embed(table, ids, step)
    }

    fn select(&mut self, x: &Tensor, step: &Step) -> Result<Tensor> {
        self.reference.select(x, step)
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm<Tensor>, step: &Step) -> Result<Tensor> {
        self.reference.norm(x, norm, step)
    }

    fn split(&mut self, x: Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        self.reference.split(x, widths)
    }

    fn rope(&mut self, x: &mut Tensor, rope: &Rope<Tensor>, step: &Step) -> Result<()> {
        self.reference.rope(x, rope, step)
    }

    fn store_kv(
        &mut self,
        cache: &mut KvCache,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        step: &Step,
    ) -> Result<()> {
        self.reference.store_kv(cache, layer, k, v, step)
    }

    fn attention(
        &mut self,
        q: &Tensor,
        cache: &KvCache,
        layer: usize,
        spec: &AttentionSpec,
        step: &Step,
    ) -> Result<Tensor> {
        self.reference.attention(q, cache, layer, spec, step)
    }

    fn activate(&mut self, x: &mut Tensor, activation: Activation) -> Result<()> {
        self.reference.activate(x, activation)
    }

    fn mul(&mut self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.reference.mul(x, y)
    }

    fn add(&mut self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        self.reference.add(x, y)
    }

    fn route(&mut self, logits: Tensor, routing: &Routing) -> Result<Tensor> {
        self.reference.route(logits, routing)
    }

    fn mix_experts(
        &mut self,
        x: &Tensor,
        weights: &Tensor,
        experts: &Experts<Linear>,
        step: &Step,
    ) -> Result<Tensor> {
        self.reference.mix_experts(x, weights, experts, step)
    }

    fn sample(&mut self, logits: Tensor, batch: &SampleBatch, step: Step) -> Result<SampleOutput> {
        self.reference.sample(logits, batch, step)
    }
}
