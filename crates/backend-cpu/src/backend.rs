//! The operations: shapes are checked, memory is taken from the pool, and the kernels run, divided
//! into tasks where there is enough to divide.

use ::backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, BlockCopy, Experts, HostTensor, Ids,
    KvCacheSpec, LinearRole, LinearWeight, Norm, NormKind, Result, Rope, Routing, RowOutput,
    SampleBatch, SampleOutput, route_row, sample_row_with,
};
use kernels_cpu::{
    AttentionShape, Epilogue, NormParams, QuantisedWeight, Serial, TaskRunner, activate,
    for_each_chunk, for_each_chunk_pair, gated, norm, quantise, rope,
};
use quant::Granularity;

use crate::kv_cache::{CpuKvCache, Queries};
use crate::sampler::CpuSampler;
use crate::step::CpuStep;
use crate::tensor::{CpuTensor, Data};
use crate::twin::Twin;
use crate::{CpuBackend, CpuLinear};

/// Elements that one task of an element-wise operation takes at least: some microseconds of work.
const TASK_ELEMENTS: usize = 16 * 1024;

impl CpuBackend {
    /// Elements of one task when rows of `columns` are divided: whole rows.
    fn row_chunk(columns: usize) -> usize {
        (TASK_ELEMENTS / columns.max(1)).max(1) * columns.max(1)
    }

    /// The team where there is work for it, the calling thread otherwise.
    pub(crate) fn runner_for(&self, elements: usize) -> &dyn TaskRunner {
        if elements > TASK_ELEMENTS {
            &self.team
        } else {
            &Serial
        }
    }

    /// Copies one row of `table` per index.
    fn gather(&self, table: &CpuTensor, rows: &[usize]) -> Result<CpuTensor> {
        if let Some(row) = rows.iter().find(|row| **row >= table.rows) {
            return Err(BackendError::Shape(format!("row {row} of {}", table.rows)));
        }
        let columns = table.columns;
        let mut out = self.pool.tensor(rows.len(), columns)?;
        let chunk_len = Self::row_chunk(columns);
        let each = |f: &(dyn Fn(usize, &mut [f32]) + Sync), out: &mut [f32]| {
            for_each_chunk(&self.team, out, chunk_len, |chunk, out| {
                let rows = &rows[chunk * chunk_len / columns..];
                for (row, out) in rows.iter().zip(out.chunks_exact_mut(columns)) {
                    f(*row, out);
                }
            });
        };
        let out_elements = out.elements_mut()?;
        if columns > 0 {
            match &table.data {
                Data::Bf16(table) => each(
                    &|row, out| {
                        for (to, from) in out.iter_mut().zip(&table[row * columns..]) {
                            *to = from.to_f32();
                        }
                    },
                    out_elements,
                ),
                Data::F32(_) | Data::Pooled(_) => {
                    let table = table.elements()?;
                    each(
                        &|row, out| out.copy_from_slice(&table[row * columns..][..columns]),
                        out_elements,
                    );
                }
                Data::Int8(matrix) => {
                    let matrix: &QuantisedWeight = matrix;
                    each(&|row, out| matrix.widen_row(row, out), out_elements);
                }
            }
        }
        Ok(out)
    }

    /// `x · Wᵀ + bias` into or onto `out`.
    fn multiply(
        &self,
        x: &CpuTensor,
        linear: &CpuLinear,
        out: &mut CpuTensor,
        epilogue: Epilogue,
    ) -> Result<()> {
        expect_equal("linear input", x.columns, linear.inputs())?;
        expect_equal("linear output", out.columns, linear.outputs())?;
        expect_equal("linear rows", out.rows, x.rows)?;
        linear.multiply(self, x, out.elements_mut()?, epilogue)
    }

    /// The 8-bit form of activations.
    pub(crate) fn quantise(&self, x: &CpuTensor, granularity: Granularity) -> Result<Twin> {
        let mut twin = self.pool.twin(x.rows, x.columns, granularity)?;
        let (isa, layout, columns) = (self.isa, twin.rows().layout(), x.columns);
        let elements = x.elements()?;
        let chunk_len = Self::row_chunk(columns);
        let chunk_words = chunk_len / columns * layout.row_words();
        let words = twin.rows_mut().words_mut();
        for_each_chunk(&self.team, words, chunk_words, |chunk, words| {
            let rows = words.len() / layout.row_words();
            let x = &elements[chunk * chunk_len..][..rows * columns];
            quantise(isa, layout, x, words);
        });
        Ok(twin)
    }

    /// Fills a new tensor of whole rows, chunk by chunk with the index of the chunk's first element,
    /// and makes the 8-bit form of each chunk right after it where this precision wants one.
    fn produce(
        &self,
        rows: usize,
        columns: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<CpuTensor> {
        let isa = self.isa;
        let mut out = self.pool.tensor(rows, columns)?;
        let chunk_len = Self::row_chunk(columns);
        match self.precision.granularity(LinearRole::Projection) {
            Some(granularity) if columns > 0 => {
                let mut twin = self.pool.twin(rows, columns, granularity)?;
                let layout = twin.rows().layout();
                let chunk_words = chunk_len / columns * layout.row_words();
                for_each_chunk_pair(
                    &self.team,
                    (out.elements_mut()?, chunk_len),
                    (twin.rows_mut().words_mut(), chunk_words),
                    |chunk, out, words| {
                        fill(chunk * chunk_len, out);
                        quantise(isa, layout, out, words);
                    },
                );
                out.set_twin(twin);
            }
            _ => for_each_chunk(&self.team, out.elements_mut()?, chunk_len, |chunk, out| {
                fill(chunk * chunk_len, out);
            }),
        }
        Ok(out)
    }

    /// `f(x, y)` for every pair of elements, in place.
    fn combine(
        &self,
        x: &mut CpuTensor,
        y: &CpuTensor,
        f: impl Fn(&mut f32, &f32) + Sync,
    ) -> Result<()> {
        expect_equal("rows", y.rows, x.rows)?;
        expect_equal("features", y.columns, x.columns)?;
        let (x, y) = (x.elements_mut()?, y.elements()?);
        for_each_chunk(&self.team, x, TASK_ELEMENTS, |chunk, x| {
            let y = &y[chunk * TASK_ELEMENTS..];
            x.iter_mut().zip(y).for_each(|(x, y)| f(x, y));
        });
        Ok(())
    }
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

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Linear = CpuLinear;
    type KvCache = CpuKvCache;
    type Step = CpuStep;

    fn load_tensor(&mut self, tensor: HostTensor) -> Result<CpuTensor> {
        CpuTensor::load(tensor)
    }

    fn load_linear(&mut self, weight: LinearWeight) -> Result<CpuLinear> {
        let linear = CpuLinear::load(self, weight)?;
        self.weights.add(&linear);
        Ok(linear)
    }

    fn load_tied(&mut self, table: HostTensor) -> Result<(CpuTensor, CpuLinear)> {
        if !self.precision.is_int8() {
            let head = LinearWeight::new(table.clone(), None)?.into_head();
            return Ok((self.load_tensor(table)?, self.load_linear(head)?));
        }
        let head = self.load_linear(LinearWeight::new(table, None)?.into_head())?;
        let table = head.table().map(CpuTensor::of_matrix);
        Ok((table.expect("a matrix of 8 bits"), head))
    }

    fn alloc_kv_cache(&mut self, spec: &KvCacheSpec) -> Result<CpuKvCache> {
        CpuKvCache::new(spec)
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<CpuStep> {
        let mut step = self.spare_step.take().unwrap_or_default();
        step.fill(batch);
        Ok(step)
    }

    fn copy_blocks(&mut self, cache: &mut CpuKvCache, copies: &[BlockCopy]) -> Result<()> {
        let num_blocks = cache.geometry.num_blocks;
        for copy in copies {
            if copy.from.max(copy.to) as usize >= num_blocks {
                return Err(BackendError::Shape(format!(
                    "{copy:?} of {num_blocks} blocks"
                )));
            }
        }
        cache.copy_blocks(copies);
        Ok(())
    }

    fn embed(&mut self, table: &CpuTensor, ids: Ids, step: &CpuStep) -> Result<CpuTensor> {
        match ids {
            Ids::Tokens => self.gather(table, &step.token_ids),
            Ids::Positions => self.gather(table, &step.positions),
        }
    }

    fn select(&mut self, x: &CpuTensor, step: &CpuStep) -> Result<CpuTensor> {
        self.gather(x, &step.logit_rows)
    }

    fn norm(
        &mut self,
        x: &CpuTensor,
        norm_: &Norm<CpuTensor>,
        _step: &CpuStep,
    ) -> Result<CpuTensor> {
        let params = norm_params(norm_, x.columns)?;
        let mut out = self.pool.tensor(x.rows, x.columns)?;
        let chunk_len = Self::row_chunk(x.columns);
        let x = x.elements()?;
        for_each_chunk(&self.team, out.elements_mut()?, chunk_len, |chunk, out| {
            let x = &x[chunk * chunk_len..][..out.len()];
            norm(self.isa, params, x, out);
        });
        Ok(out)
    }

    fn linear(&mut self, x: &CpuTensor, linear: &CpuLinear, _step: &CpuStep) -> Result<CpuTensor> {
        let mut out = self.pool.tensor(x.rows, linear.outputs())?;
        self.multiply(x, linear, &mut out, Epilogue::Store)?;
        Ok(out)
    }

    fn split(&mut self, x: CpuTensor, widths: &[usize]) -> Result<Vec<CpuTensor>> {
        expect_equal("split widths", widths.iter().sum(), x.columns)?;
        let (columns, rows) = (x.columns, x.rows);
        let x = x.elements()?;
        let mut start = 0;
        widths
            .iter()
            .map(|&width| {
                let mut part = self.pool.tensor(rows, width)?;
                if width > 0 {
                    let chunk_len = Self::row_chunk(width);
                    for_each_chunk(
                        &self.team,
                        part.elements_mut()?,
                        chunk_len,
                        |chunk, part| {
                            let first = chunk * chunk_len / width;
                            for (row, part) in part.chunks_exact_mut(width).enumerate() {
                                let at = (first + row) * columns + start;
                                part.copy_from_slice(&x[at..at + width]);
                            }
                        },
                    );
                }
                start += width;
                Ok(part)
            })
            .collect()
    }

    fn rope(&mut self, x: &mut CpuTensor, rope_: &Rope<CpuTensor>, step: &CpuStep) -> Result<()> {
        let Rope {
            head_dim,
            rotary_dim,
            ref table,
        } = *rope_;
        expect_equal("rotated tokens", x.rows, step.positions.len())?;
        expect_equal("rope table", table.columns, rotary_dim)?;
        let columns = x.columns;
        if head_dim == 0 || !columns.is_multiple_of(head_dim) || rotary_dim > head_dim {
            return Err(BackendError::Shape(format!(
                "{rotary_dim} rotated of {head_dim} in rows of {columns}"
            )));
        }
        if let Some(position) = step.positions.iter().find(|p| **p >= table.rows) {
            return Err(BackendError::Shape(format!(
                "position {position} of {}",
                table.rows
            )));
        }
        let table = table.elements()?;
        let chunk_len = Self::row_chunk(columns);
        for_each_chunk(&self.team, x.elements_mut()?, chunk_len, |chunk, x| {
            let positions = &step.positions[chunk * chunk_len / columns..];
            for (row, position) in x.chunks_exact_mut(columns).zip(positions) {
                let angles = &table[position * rotary_dim..(position + 1) * rotary_dim];
                let (cos, sin) = angles.split_at(rotary_dim / 2);
                rope(self.isa, row, head_dim, cos, sin);
            }
        });
        Ok(())
    }

    fn store_kv(
        &mut self,
        cache: &mut CpuKvCache,
        layer: usize,
        k: &CpuTensor,
        v: &CpuTensor,
        step: &CpuStep,
    ) -> Result<()> {
        let width = cache.geometry.num_kv_heads * cache.geometry.head_dim;
        cache.check_layer(layer)?;
        for (what, rows) in [("keys", k), ("values", v)] {
            expect_equal(what, rows.columns, width)?;
            expect_equal("stored tokens", rows.rows, step.slots.len())?;
        }
        let runner = self.runner_for(k.rows * width);
        let rows = (k.elements()?, v.elements()?);
        cache.store(self.isa, runner, layer, rows, &step.slots);
        Ok(())
    }

    fn attention(
        &mut self,
        q: &CpuTensor,
        cache: &CpuKvCache,
        layer: usize,
        spec: &AttentionSpec,
        step: &CpuStep,
    ) -> Result<CpuTensor> {
        let geometry = cache.geometry;
        cache.check_layer(layer)?;
        expect_equal("query tokens", q.rows, step.positions.len())?;
        expect_equal("query width", q.columns, spec.num_heads * spec.head_dim)?;
        expect_equal("head features", spec.head_dim, geometry.head_dim)?;
        expect_equal("key/value heads", spec.num_kv_heads, geometry.num_kv_heads)?;
        if !spec.num_heads.is_multiple_of(spec.num_kv_heads) || spec.window == Some(0) {
            return Err(BackendError::Shape(format!("{spec:?}")));
        }
        let mut out = self.pool.tensor(q.rows, q.columns)?;
        let queries = Queries {
            shape: AttentionShape {
                num_heads: spec.num_heads,
                scale: spec.scale,
                window: spec.window,
                soft_cap: spec.soft_cap,
            },
            q: q.elements()?,
            out: out.elements_mut()?,
            step,
        };
        cache.attend(self.isa, &self.team, layer, queries);
        Ok(out)
    }

    fn activate(&mut self, x: &mut CpuTensor, activation: Activation) -> Result<()> {
        let activation = kernel_activation(activation);
        for_each_chunk(&self.team, x.elements_mut()?, TASK_ELEMENTS, |_, x| {
            activate(self.isa, x, activation);
        });
        Ok(())
    }

    fn mul(&mut self, x: &mut CpuTensor, y: &CpuTensor) -> Result<()> {
        self.combine(x, y, |x, y| *x *= y)
    }

    fn add(&mut self, x: &mut CpuTensor, y: &CpuTensor) -> Result<()> {
        self.combine(x, y, |x, y| *x += y)
    }

    fn route(&mut self, mut logits: CpuTensor, routing: &Routing) -> Result<CpuTensor> {
        let columns = logits.columns;
        if routing.top_k > columns {
            return Err(BackendError::Shape(format!(
                "{} experts of {columns}",
                routing.top_k
            )));
        }
        for row in logits.elements_mut()?.chunks_exact_mut(columns.max(1)) {
            route_row(row, routing);
        }
        Ok(logits)
    }

    fn mix_experts(
        &mut self,
        x: &CpuTensor,
        weights: &CpuTensor,
        experts: &Experts<CpuLinear>,
        step: &CpuStep,
    ) -> Result<CpuTensor> {
        let (columns, num_experts) = (x.columns, experts.experts.len());
        expect_equal("rows of weights", weights.rows, x.rows)?;
        expect_equal("experts", weights.columns, num_experts)?;
        let weights = weights.elements()?;
        let mut out = self.pool.tensor(x.rows, columns)?;
        out.elements_mut()?.fill(0.0);
        // An expert's matrices are read once for all tokens that chose it.
        for (index, expert) in experts.experts.iter().enumerate() {
            let weight = |row: usize| weights[row * num_experts + index];
            let rows: Vec<usize> = (0..x.rows).filter(|row| weight(*row) != 0.0).collect();
            if rows.is_empty() {
                continue;
            }
            let chosen = self.gather(x, &rows)?;
            let gate_up = self.linear(&chosen, &expert.gate_up, step)?;
            let hidden = self.gated(gate_up, experts.width, experts.activation)?;
            let y = self.linear(&hidden, &expert.down, step)?;
            expect_equal("expert output", y.columns, columns)?;
            let (sums, y) = (out.elements_mut()?, y.elements()?);
            for (row, y) in rows.into_iter().zip(y.chunks_exact(columns.max(1))) {
                let sums = sums[row * columns..][..columns].iter_mut().zip(y);
                sums.for_each(|(sum, y)| *sum += weight(row) * y);
            }
        }
        Ok(out)
    }

    fn sample(
        &mut self,
        logits: CpuTensor,
        batch: &SampleBatch,
        step: CpuStep,
    ) -> Result<SampleOutput> {
        expect_equal("logit rows", logits.rows, batch.rows.len())?;
        let columns = logits.columns;
        let logits = logits.elements()?;
        let mut rows = vec![RowOutput::NonFinite; batch.rows.len()];
        let sampler = CpuSampler(self.isa);
        for_each_chunk(&self.team, &mut rows, 1, |i, row| {
            let logits = &logits[i * columns..(i + 1) * columns];
            row[0] = sample_row_with(&sampler, logits, &batch.rows[i], batch.vocab_size);
        });
        self.spare_step = Some(step);
        Ok(SampleOutput { rows })
    }

    fn norm_quant(
        &mut self,
        x: &CpuTensor,
        norm_: &Norm<CpuTensor>,
        _step: &CpuStep,
    ) -> Result<CpuTensor> {
        let params = norm_params(norm_, x.columns)?;
        let (isa, elements) = (self.isa, x.elements()?);
        self.produce(x.rows, x.columns, |first, out| {
            norm(isa, params, &elements[first..][..out.len()], out);
        })
    }

    fn linear_add(
        &mut self,
        residual: &mut CpuTensor,
        x: &CpuTensor,
        linear: &CpuLinear,
        _step: &CpuStep,
    ) -> Result<()> {
        self.multiply(x, linear, residual, Epilogue::Add)
    }

    fn gated(
        &mut self,
        gate_up: CpuTensor,
        width: usize,
        activation: Activation,
    ) -> Result<CpuTensor> {
        expect_equal("gate and up", gate_up.columns, 2 * width)?;
        let activation = kernel_activation(activation);
        let (isa, x) = (self.isa, gate_up.elements()?);
        self.produce(gate_up.rows, width, |first, out| {
            gated(
                isa,
                &x[2 * first..][..2 * out.len()],
                width,
                activation,
                out,
            );
        })
    }
}

fn norm_params(norm: &Norm<CpuTensor>, columns: usize) -> Result<NormParams<'_>> {
    expect_equal("norm weight", norm.weight.columns, columns)?;
    if norm.width == 0 || columns == 0 || !columns.is_multiple_of(norm.width) {
        return Err(BackendError::Shape(format!(
            "norm width {} of {columns} features",
            norm.width
        )));
    }
    let bias = match &norm.bias {
        Some(bias) => {
            expect_equal("norm bias", bias.columns, columns)?;
            Some(bias.elements()?)
        }
        None => None,
    };
    Ok(NormParams {
        kind: match norm.kind {
            NormKind::Rms => kernels_cpu::NormKind::Rms,
            NormKind::Layer => kernels_cpu::NormKind::Layer,
        },
        width: norm.width,
        weight: norm.weight.elements()?,
        bias,
        eps: norm.eps,
    })
}

fn kernel_activation(activation: Activation) -> kernels_cpu::Activation {
    match activation {
        Activation::Silu => kernels_cpu::Activation::Silu,
        Activation::Gelu => kernels_cpu::Activation::Gelu,
        Activation::GeluTanh => kernels_cpu::Activation::GeluTanh,
        Activation::Relu => kernels_cpu::Activation::Relu,
        Activation::SoftCap(cap) => kernels_cpu::Activation::SoftCap(cap),
    }
}
