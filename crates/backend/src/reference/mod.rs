//! The reference target: plain loops over `Vec<f32>`, the oracle every other target is compared with.
//!
//! It is written to be read, not to be fast. Inner products keep sixteen running sums, so that a
//! compiler can vectorise them without changing the order in which they are added. Operands that do
//! not fit are errors, never panics.

mod attention;
mod elementwise;
mod sampler;
#[cfg(test)]
mod tests;

use half::bf16;
use quant::Granularity;

use crate::{
    Activation, AttentionSpec, BLOCK_SIZE, Backend, BackendError, Batch, BlockCopy, Experts,
    HostTensor, Ids, KvCacheSpec, KvDtype, KvTypes, LinearWeight, Norm, Result, Rope, Routing,
    SampleBatch, SampleOutput,
};

pub use elementwise::route_row;
pub use sampler::{
    ReferenceOps, SamplerOps, log_probability, sample_row, sample_row_with, uniform,
};

/// Plain 32-bit loops on one thread.
#[derive(Debug, Default)]
pub struct ReferenceBackend;

/// `[rows, columns]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Rows, usually tokens.
    pub rows: usize,
    /// Features of a row.
    pub columns: usize,
    /// `rows · columns` elements.
    pub data: Vec<f32>,
}

/// A weight matrix `[out, in]` widened to 32 bits.
#[derive(Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Vec<f32>>,
}

/// Keys and values of all layers, `[slot, num_kv_heads · head_dim]` each, held as f32 and rounded to
/// the cache's type when stored.
#[derive(Debug)]
pub struct KvCache {
    /// Of each layer.
    types: Vec<KvTypes>,
    head_dim: usize,
    width: usize,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

/// The batch with its derived per-token columns.
#[derive(Debug)]
pub struct Step {
    batch: Batch,
    positions: Vec<usize>,
    slots: Vec<usize>,
}

impl Tensor {
    fn zeros(rows: usize, columns: usize) -> Self {
        Self {
            rows,
            columns,
            data: vec![0.0; rows * columns],
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.columns..(row + 1) * self.columns]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.data[row * self.columns..(row + 1) * self.columns]
    }

    /// Fails unless `other` has the same rows and columns.
    fn expect_same_shape(&self, other: &Self) -> Result<()> {
        expect_equal("rows", other.rows, self.rows)?;
        expect_equal("columns", other.columns, self.columns)
    }

    fn gather(&self, rows: impl ExactSizeIterator<Item = usize>) -> Result<Self> {
        let mut out = Self::zeros(rows.len(), self.columns);
        for (to, from) in rows.enumerate() {
            expect_below("row", from, self.rows)?;
            out.row_mut(to).copy_from_slice(self.row(from));
        }
        Ok(out)
    }
}

impl Linear {
    /// `[out, in]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// As long as the weight has rows.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }
}

impl KvCache {
    fn expect_layer(&self, layer: usize) -> Result<()> {
        expect_below("layer", layer, self.keys.len())
    }

    fn num_slots(&self) -> usize {
        match (self.keys.first(), self.width) {
            (Some(layer), width @ 1..) => layer.len() / width,
            _ => 0,
        }
    }
}

/// Zeros, or the error that says how many bytes there were not.
fn zeros(len: usize, purpose: &'static str) -> Result<Vec<f32>> {
    let mut data = Vec::new();
    if data.try_reserve_exact(len).is_err() {
        return Err(BackendError::OutOfMemory {
            requested: len.saturating_mul(size_of::<f32>()),
            purpose,
        });
    }
    data.resize(len, 0.0);
    Ok(data)
}

/// Rounds one head's keys or values to what a cache of this type holds.
fn round_to(dtype: KvDtype, head: &mut [f32]) {
    match dtype {
        KvDtype::F32 => {}
        KvDtype::Bf16 => head
            .iter_mut()
            .for_each(|x| *x = bf16::from_f32(*x).to_f32()),
        KvDtype::Int8 => {
            let (mut values, mut scale) = (vec![0; head.len()], [0.0]);
            // A head that holds a number that is not finite becomes NaN, which nobody overlooks.
            let _ = quant::quantise_row(head, Granularity::Row, &mut values, &mut scale);
            for (x, q) in head.iter_mut().zip(values) {
                *x = f32::from(q) * scale[0];
            }
        }
    }
}

/// Fails with the index and its limit when it is out of range.
fn expect_below(what: &str, index: usize, limit: usize) -> Result<()> {
    if index < limit {
        return Ok(());
    }
    Err(BackendError::Shape(format!("{what} {index} of {limit}")))
}

/// Fails with both numbers when they differ.
fn expect_equal(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(BackendError::Shape(format!(
        "{what}: {found} where {expected} is expected"
    )))
}

/// `Σ a[i]·b[i]` in sixteen running sums that are added in order at the end.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_rest, b_rest) = (a_chunks.remainder(), b_chunks.remainder());
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] += a * b;
    }
    sums.iter().sum()
}

impl Backend for ReferenceBackend {
    type Tensor = Tensor;
    type Linear = Linear;
    type KvCache = KvCache;
    type Step = Step;

    fn load_tensor(&mut self, tensor: HostTensor) -> Result<Tensor> {
        let len = tensor.rows.saturating_mul(tensor.columns);
        expect_equal("elements", tensor.data.len(), len)?;
        Ok(Tensor {
            rows: tensor.rows,
            columns: tensor.columns,
            data: tensor.data.into_f32(),
        })
    }

    fn load_linear(&mut self, weight: LinearWeight) -> Result<Linear> {
        if let Some(bias) = &weight.bias {
            expect_equal("bias", bias.len(), weight.weight.rows)?;
        }
        Ok(Linear {
            weight: self.load_tensor(weight.weight)?,
            bias: weight.bias,
        })
    }

    fn alloc_kv_cache(&mut self, spec: &KvCacheSpec) -> Result<KvCache> {
        let width = spec.num_kv_heads * spec.head_dim;
        let len = ((spec.num_blocks + spec.num_host_blocks) * BLOCK_SIZE).saturating_mul(width);
        let layers = || {
            (0..spec.layers.len())
                .map(|_| zeros(len, "the cache of keys and values"))
                .collect::<Result<Vec<_>>>()
        };
        Ok(KvCache {
            types: spec.layers.clone(),
            head_dim: spec.head_dim,
            width,
            keys: layers()?,
            values: layers()?,
        })
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<Step> {
        // Ids and blocks are checked where they meet a table and a cache.
        batch.validate(usize::MAX, usize::MAX, 0)?;
        Ok(Step {
            positions: batch.positions().collect(),
            slots: batch.slots().collect(),
            batch: batch.clone(),
        })
    }

    fn copy_blocks(&mut self, cache: &mut KvCache, copies: &[BlockCopy]) -> Result<()> {
        let size = BLOCK_SIZE * cache.width;
        for copy in copies {
            let last = copy.from.max(copy.to) as usize;
            expect_below("block", last, cache.num_slots() / BLOCK_SIZE)?;
        }
        for layer in cache.keys.iter_mut().chain(&mut cache.values) {
            for copy in copies {
                let from = copy.from as usize * size;
                layer.copy_within(from..from + size, copy.to as usize * size);
            }
        }
        Ok(())
    }

    fn embed(&mut self, table: &Tensor, ids: Ids, step: &Step) -> Result<Tensor> {
        match ids {
            Ids::Tokens => table.gather(step.batch.token_ids.iter().map(|id| *id as usize)),
            Ids::Positions => table.gather(step.positions.iter().copied()),
        }
    }

    fn select(&mut self, x: &Tensor, step: &Step) -> Result<Tensor> {
        expect_equal("selected tokens", x.rows, step.positions.len())?;
        x.gather(step.batch.logit_rows.iter().copied())
    }

    fn norm(&mut self, x: &Tensor, norm: &Norm<Tensor>, _step: &Step) -> Result<Tensor> {
        elementwise::norm(x, norm)
    }

    fn linear(&mut self, x: &Tensor, linear: &Linear, _step: &Step) -> Result<Tensor> {
        expect_equal("linear input", x.columns, linear.weight.columns)?;
        let mut out = Tensor::zeros(x.rows, linear.weight.rows);
        for n in 0..linear.weight.rows {
            let weight = linear.weight.row(n);
            for m in 0..x.rows {
                out.data[m * out.columns + n] = dot(x.row(m), weight);
            }
        }
        if let Some(bias) = &linear.bias {
            for row in 0..x.rows {
                let outputs = out.row_mut(row).iter_mut();
                outputs.zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        Ok(out)
    }

    fn split(&mut self, x: Tensor, widths: &[usize]) -> Result<Vec<Tensor>> {
        expect_equal("split widths", widths.iter().sum(), x.columns)?;
        let mut start = 0;
        let mut part = |width: usize| {
            let mut out = Tensor::zeros(x.rows, width);
            for row in 0..x.rows {
                out.row_mut(row)
                    .copy_from_slice(&x.row(row)[start..start + width]);
            }
            start += width;
            out
        };
        Ok(widths.iter().map(|width| part(*width)).collect())
    }

    fn rope(&mut self, x: &mut Tensor, rope: &Rope<Tensor>, step: &Step) -> Result<()> {
        elementwise::rope(x, rope, &step.positions)
    }

    fn store_kv(
        &mut self,
        cache: &mut KvCache,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        step: &Step,
    ) -> Result<()> {
        cache.expect_layer(layer)?;
        expect_equal("key width", k.columns, cache.width)?;
        expect_equal("value width", v.columns, cache.width)?;
        expect_equal("stored keys", k.rows, step.slots.len())?;
        expect_equal("stored values", v.rows, step.slots.len())?;
        for slot in &step.slots {
            expect_below("slot", *slot, cache.num_slots())?;
        }
        let (width, types) = (cache.width, cache.types[layer]);
        for (store, new, dtype) in [
            (&mut cache.keys[layer], k, types.keys),
            (&mut cache.values[layer], v, types.values),
        ] {
            for (row, slot) in step.slots.iter().enumerate() {
                let to = &mut store[slot * width..(slot + 1) * width];
                to.copy_from_slice(new.row(row));
                to.chunks_mut(cache.head_dim)
                    .for_each(|head| round_to(dtype, head));
            }
        }
        Ok(())
    }

    fn attention(
        &mut self,
        q: &Tensor,
        cache: &KvCache,
        layer: usize,
        spec: &AttentionSpec,
        step: &Step,
    ) -> Result<Tensor> {
        attention::attention(q, cache, layer, spec, &step.batch)
    }

    fn activate(&mut self, x: &mut Tensor, activation: Activation) -> Result<()> {
        x.data
            .iter_mut()
            .for_each(|x| *x = elementwise::activation(*x, activation));
        Ok(())
    }

    fn mul(&mut self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        x.expect_same_shape(y)?;
        x.data.iter_mut().zip(&y.data).for_each(|(x, y)| *x *= y);
        Ok(())
    }

    fn add(&mut self, x: &mut Tensor, y: &Tensor) -> Result<()> {
        x.expect_same_shape(y)?;
        x.data.iter_mut().zip(&y.data).for_each(|(x, y)| *x += y);
        Ok(())
    }

    fn route(&mut self, mut logits: Tensor, routing: &Routing) -> Result<Tensor> {
        let columns = logits.columns;
        expect_below("experts of a token", routing.top_k, columns + 1)?;
        for row in 0..logits.rows {
            route_row(logits.row_mut(row), routing);
        }
        Ok(logits)
    }

    fn mix_experts(
        &mut self,
        x: &Tensor,
        weights: &Tensor,
        experts: &Experts<Linear>,
        step: &Step,
    ) -> Result<Tensor> {
        expect_equal("rows of weights", weights.rows, x.rows)?;
        expect_equal("experts", weights.columns, experts.experts.len())?;
        let mut out = Tensor::zeros(x.rows, x.columns);
        for (index, expert) in experts.experts.iter().enumerate() {
            let weight = |row: usize| weights.row(row)[index];
            let rows: Vec<usize> = (0..x.rows).filter(|row| weight(*row) != 0.0).collect();
            let chosen = x.gather(rows.iter().copied())?;
            let gate_up = self.linear(&chosen, &expert.gate_up, step)?;
            let hidden = self.gated(gate_up, experts.width, experts.activation)?;
            let y = self.linear(&hidden, &expert.down, step)?;
            expect_equal("expert output", y.columns, out.columns)?;
            for (from, to) in rows.into_iter().enumerate() {
                let sums = out.row_mut(to).iter_mut().zip(y.row(from));
                sums.for_each(|(sum, y)| *sum += weight(to) * y);
            }
        }
        Ok(out)
    }

    fn sample(&mut self, logits: Tensor, batch: &SampleBatch, _step: Step) -> Result<SampleOutput> {
        expect_equal("logit rows", logits.rows, batch.rows.len())?;
        let rows = batch
            .rows
            .iter()
            .enumerate()
            .map(|(i, row)| sample_row(logits.row(i), row, batch.vocab_size))
            .collect();
        Ok(SampleOutput { rows })
    }
}
