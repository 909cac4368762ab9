//! The operations: shapes are checked, memory is taken, and kernels are launched.

use ::backend::{
    Activation, AttentionSpec, Backend, BackendError, Batch, BlockCopy, Experts, HostTensor, Ids,
    KvCacheSpec, LinearWeight, Norm, Result, Rope, Routing, SampleBatch, SampleOutput, WeightData,
    route_row,
};

use crate::CudaBackend;
use crate::device::{Arg, Device};
use crate::kv_cache::CudaKvCache;
use crate::linear::{CudaLinear, Store, int};
use crate::rows::{expect_equal, kernel_activation};
use crate::sampler::sample;
use crate::step::{Column, CudaStep};
use crate::tensor::CudaTensor;

impl<D: Device> CudaBackend<D> {
    /// A step that reads results on the host cannot be captured.
    fn notice_host(&mut self) {
        if let Some(graphs) = &mut self.graphs {
            graphs.reads_host = true;
        }
    }

    /// Activations with these elements.
    fn upload(&mut self, rows: usize, columns: usize, values: Vec<f32>) -> Result<CudaTensor<D>> {
        self.load_tensor(HostTensor {
            rows,
            columns,
            data: WeightData::F32(values),
        })
    }
}

impl<D: Device> Backend for CudaBackend<D> {
    type Tensor = CudaTensor<D>;
    type Linear = CudaLinear<D>;
    type KvCache = CudaKvCache<D>;
    type Step = CudaStep<D>;

    fn load_tensor(&mut self, tensor: HostTensor) -> Result<CudaTensor<D>> {
        CudaTensor::load(&self.device, tensor)
    }

    fn load_linear(&mut self, weight: LinearWeight) -> Result<CudaLinear<D>> {
        let linear = CudaLinear::load(&self.device, self.precision, weight)?;
        if let Some(tuner) = &mut self.tuner {
            tuner.samples.add(&linear);
        }
        Ok(linear)
    }

    /// With 8 bits there is one table: tokens get the rows that the head multiplies with.
    fn load_tied(&mut self, table: HostTensor) -> Result<(CudaTensor<D>, CudaLinear<D>)> {
        if !self.precision.is_int8() {
            let head = LinearWeight::new(table.clone(), None)?.into_head();
            return Ok((self.load_tensor(table)?, self.load_linear(head)?));
        }
        let head = self.load_linear(LinearWeight::new(table, None)?.into_head())?;
        let table = head
            .table()
            .ok_or_else(|| BackendError::Shape("a head in floats".into()))?;
        Ok((table, head))
    }

    fn alloc_kv_cache(&mut self, spec: &KvCacheSpec) -> Result<CudaKvCache<D>> {
        if let Some(graphs) = &mut self.graphs {
            graphs.clear();
        }
        if let Some(tuner) = self.tuner.take() {
            self.tuned = Some(tuner.run(&self.device, &mut self.products)?);
        }
        CudaKvCache::new(&self.device, spec)
    }

    fn begin_step(&mut self, batch: &Batch) -> Result<CudaStep<D>> {
        if let Some(graphs) = &mut self.graphs {
            graphs.abandon(&self.device)?;
        }
        CudaStep::new(&self.device, batch, self.graphs.as_mut())
    }

    fn replay(&mut self, step: &CudaStep<D>) -> Result<Option<CudaTensor<D>>> {
        match (&mut self.graphs, step.key) {
            (Some(graphs), Some(key)) => graphs.replay(&self.device, key),
            _ => Ok(None),
        }
    }

    fn copy_blocks(&mut self, cache: &mut CudaKvCache<D>, copies: &[BlockCopy]) -> Result<()> {
        copies.iter().try_for_each(|copy| cache.check_copy(*copy))?;
        let both_on_device =
            |a: &BlockCopy, b: &BlockCopy| cache.is_on_device(*a) && cache.is_on_device(*b);
        let runs: Vec<_> = copies.chunk_by(both_on_device).collect();
        for run in runs {
            if cache.is_on_device(run[0]) {
                self.copy_on_device(cache, run)?;
            } else {
                cache.copy_over_host(&self.device, run[0])?;
            }
        }
        Ok(())
    }

    fn embed(
        &mut self,
        table: &CudaTensor<D>,
        ids: Ids,
        step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        let column = match ids {
            Ids::Tokens => (Column::Tokens, step.num_tokens, step.max_token),
            Ids::Positions => (Column::Positions, step.num_tokens, step.max_position),
        };
        self.gather(table, step, column)
    }

    fn select(&mut self, x: &CudaTensor<D>, step: &CudaStep<D>) -> Result<CudaTensor<D>> {
        let rows = (Column::LogitRows, step.num_logit_rows, step.max_logit_row);
        self.gather(x, step, rows)
    }

    fn norm(
        &mut self,
        x: &CudaTensor<D>,
        norm: &Norm<CudaTensor<D>>,
        _step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        self.norm_into(x, norm, None)
    }

    fn linear(
        &mut self,
        x: &CudaTensor<D>,
        linear: &CudaLinear<D>,
        _step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        let out = CudaTensor::new(&self.device, x.rows, linear.outputs)?;
        self.multiply(x, linear, &out, Store::Replace)?;
        Ok(out)
    }

    fn split(&mut self, x: CudaTensor<D>, widths: &[usize]) -> Result<Vec<CudaTensor<D>>> {
        expect_equal("split widths", widths.iter().sum(), x.columns)?;
        let mut first = 0;
        let mut part = |width: usize| {
            let view = x.view(first, width);
            first += width;
            view
        };
        Ok(widths.iter().map(|width| part(*width)).collect())
    }

    fn rope(
        &mut self,
        x: &mut CudaTensor<D>,
        rope: &Rope<CudaTensor<D>>,
        step: &CudaStep<D>,
    ) -> Result<()> {
        Self::check_rope(x, rope, step)?;
        x.twin.replace(None);
        let args = [
            x.arg()?,
            rope.table.arg()?,
            step.arg(Column::Positions),
            int(x.pitch)?,
            int(x.columns / rope.head_dim)?,
            int(rope.head_dim)?,
            int(rope.rotary_dim / 2)?,
        ];
        self.launch_rows("rope", [x.rows, 1], &args)
    }

    fn store_kv(
        &mut self,
        cache: &mut CudaKvCache<D>,
        layer: usize,
        k: &CudaTensor<D>,
        v: &CudaTensor<D>,
        step: &CudaStep<D>,
    ) -> Result<()> {
        self.store(cache, layer, [None, Some(k), Some(v)], None, step)
    }

    fn attention(
        &mut self,
        q: &CudaTensor<D>,
        cache: &CudaKvCache<D>,
        layer: usize,
        spec: &AttentionSpec,
        step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        self.attend(q, cache, layer, spec, step)
    }

    fn activate(&mut self, x: &mut CudaTensor<D>, activation: Activation) -> Result<()> {
        let (kind, cap) = kernel_activation(activation);
        x.twin.replace(None);
        let args = [
            x.arg()?,
            int(x.pitch)?,
            int(x.columns)?,
            Arg::Int(kind),
            Arg::Float(cap),
        ];
        self.launch_rows("activate", [x.rows, 1], &args)
    }

    fn mul(&mut self, x: &mut CudaTensor<D>, y: &CudaTensor<D>) -> Result<()> {
        self.combine("mul", x, y)
    }

    fn add(&mut self, x: &mut CudaTensor<D>, y: &CudaTensor<D>) -> Result<()> {
        self.combine("add", x, y)
    }

    /// On the host: the rows are few and short.
    fn route(&mut self, logits: CudaTensor<D>, routing: &Routing) -> Result<CudaTensor<D>> {
        let (rows, columns) = (logits.rows, logits.columns);
        if routing.top_k > columns {
            return Err(BackendError::Shape(format!(
                "{} experts of {columns}",
                routing.top_k
            )));
        }
        self.notice_host();
        let mut values = logits.read(&self.device)?;
        for row in values.chunks_exact_mut(columns.max(1)) {
            route_row(row, routing);
        }
        self.upload(rows, columns, values)
    }

    /// Rows are gathered and summed on the host, expert by expert in their order; the products run on
    /// the device.
    fn mix_experts(
        &mut self,
        x: &CudaTensor<D>,
        weights: &CudaTensor<D>,
        experts: &Experts<CudaLinear<D>>,
        step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        let (columns, num_experts) = (x.columns, experts.experts.len());
        expect_equal("rows of weights", weights.rows, x.rows)?;
        expect_equal("experts", weights.columns, num_experts)?;
        self.notice_host();
        let (inputs, weights) = (x.read(&self.device)?, weights.read(&self.device)?);
        let mut out = vec![0.0; x.rows * columns];
        for (index, expert) in experts.experts.iter().enumerate() {
            let weight = |row: usize| weights[row * num_experts + index];
            let rows: Vec<usize> = (0..x.rows).filter(|row| weight(*row) != 0.0).collect();
            if rows.is_empty() {
                continue;
            }
            let chosen = rows.iter().map(|row| &inputs[row * columns..][..columns]);
            let chosen = self.upload(rows.len(), columns, chosen.flatten().copied().collect())?;
            let gate_up = self.linear(&chosen, &expert.gate_up, step)?;
            let hidden = self.gated(gate_up, experts.width, experts.activation)?;
            let y = self.linear(&hidden, &expert.down, step)?;
            expect_equal("expert output", y.columns, columns)?;
            let y = y.read(&self.device)?;
            for (row, y) in rows.into_iter().zip(y.chunks_exact(columns.max(1))) {
                let sums = out[row * columns..][..columns].iter_mut().zip(y);
                sums.for_each(|(sum, y)| *sum += weight(row) * y);
            }
        }
        self.upload(x.rows, columns, out)
    }

    fn sample(
        &mut self,
        logits: CudaTensor<D>,
        batch: &SampleBatch,
        step: CudaStep<D>,
    ) -> Result<SampleOutput> {
        if let Some(graphs) = &mut self.graphs {
            graphs.finish(&self.device, &logits)?;
        }
        let wanted = match step.key {
            Some(_) => step.num_wanted.min(logits.rows),
            None => logits.rows,
        };
        expect_equal("logit rows", wanted, batch.rows.len())?;
        sample(&self.device, &logits.share(wanted), batch)
    }

    fn norm_quant(
        &mut self,
        x: &CudaTensor<D>,
        norm: &Norm<CudaTensor<D>>,
        _step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        self.norm_into(x, norm, self.produced_form())
    }

    fn linear_add(
        &mut self,
        residual: &mut CudaTensor<D>,
        x: &CudaTensor<D>,
        linear: &CudaLinear<D>,
        _step: &CudaStep<D>,
    ) -> Result<()> {
        self.multiply(x, linear, residual, Store::Add)
    }

    fn rope_store_kv(
        &mut self,
        cache: &mut CudaKvCache<D>,
        layer: usize,
        q: &mut CudaTensor<D>,
        k: &mut CudaTensor<D>,
        v: &CudaTensor<D>,
        rope: Option<&Rope<CudaTensor<D>>>,
        step: &CudaStep<D>,
    ) -> Result<()> {
        self.store(cache, layer, [Some(q), Some(k), Some(v)], rope, step)
    }

    fn gated(
        &mut self,
        gate_up: CudaTensor<D>,
        width: usize,
        activation: Activation,
    ) -> Result<CudaTensor<D>> {
        expect_equal("gate and up", gate_up.columns, 2 * width)?;
        let (number, cap) = kernel_activation(activation);
        let form = self.produced_form();
        self.produce(
            gate_up.rows,
            width,
            form,
            |[out, q, step], [q_pitch, kind]| {
                let args = [
                    gate_up.arg()?,
                    out,
                    q,
                    step,
                    int(gate_up.pitch)?,
                    int(width)?,
                    Arg::Int(number),
                    Arg::Float(cap),
                    q_pitch,
                    kind,
                ];
                self.launch_rows("gated", [gate_up.rows, 1], &args)
            },
        )
    }
}
