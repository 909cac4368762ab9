//! The operations: shapes are checked, memory is taken, and kernels are launched.

use std::rc::Rc;

use ::backend::{
    Activation, AttentionSpec, BLOCK_SIZE, Backend, BackendError, Batch, BlockCopy, Experts,
    HostTensor, Ids, KvCacheSpec, LinearRole, LinearWeight, Norm, NormKind, Result, Rope, Routing,
    SampleBatch, SampleOutput, WeightData, route_row,
};

use crate::CudaBackend;
use crate::device::{Arg, Device, Launch};
use crate::kv_cache::CudaKvCache;
use crate::linear::{CudaLinear, Store, int};
use crate::pack::padded;
use crate::sampler::sample;
use crate::step::{Column, CudaStep, SPLIT};
use crate::tensor::{CudaTensor, Element, Form, Twin};

/// Threads of a block that works on one row.
const ROW_THREADS: u32 = 256;

impl<D: Device> CudaBackend<D> {
    /// Copies blocks of the device, in order.
    fn copy_on_device(&self, cache: &CudaKvCache<D>, copies: &[BlockCopy]) -> Result<()> {
        for layers in cache.alike() {
            let words = layers[0].record_bytes / 16;
            let grid = [words.div_ceil(ROW_THREADS as usize), layers.len()];
            for copy in copies.iter().filter(|copy| copy.from != copy.to) {
                let args = [
                    Arg::Buffer(&cache.memory, layers[0].offset),
                    int(copy.from as usize)?,
                    int(copy.to as usize)?,
                    int(cache.num_blocks)?,
                    int(words)?,
                ];
                self.launch_rows("copy_block", grid, &args)?;
            }
        }
        Ok(())
    }

    /// Launches one block per row; nothing for no rows.
    fn launch_rows(
        &self,
        kernel: &'static str,
        grid: [usize; 2],
        args: &[Arg<D::Buffer>],
    ) -> Result<()> {
        if grid.contains(&0) {
            return Ok(());
        }
        self.device.launch(&Launch {
            kernel,
            threads: ROW_THREADS,
            grid: [grid[0] as u32, grid[1] as u32, 1],
            dynamic_bytes: 0,
            args,
        })
    }

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

    /// The form that most products of this precision read, if producers make it.
    fn produced_form(&self) -> Option<Form> {
        let granularity = self.precision.activations(LinearRole::Projection);
        granularity.map(Form::Int8)
    }

    /// Room for rows in a form.
    fn new_twin(&self, rows: usize, columns: usize, form: Form) -> Result<Twin<D>> {
        let bytes = rows * padded(columns * form.size());
        let groups = match form {
            Form::Int8(granularity) => Some(granularity.num_groups(columns)),
            Form::F32 | Form::F16 | Form::Bf16 => None,
        };
        let alloc = |bytes: usize| self.device.scratch(bytes.max(16), "activations");
        Ok(Twin {
            form,
            values: alloc(bytes)?,
            steps: groups.map(|groups| alloc(rows * groups * 4)).transpose()?,
        })
    }

    /// The rows of `x` in a form, made now unless their producer has made it.
    fn twin(&self, x: &CudaTensor<D>, form: Form) -> Result<Rc<Twin<D>>> {
        if let Some(twin) = x.twin.borrow().as_ref().filter(|t| t.form == form) {
            return Ok(Rc::clone(twin));
        }
        let twin = Rc::new(self.new_twin(x.rows, x.columns, form)?);
        let values = Arg::Buffer(&twin.values, 0);
        let pitch = padded(x.columns * form.size()) / form.size();
        let shape = [int(x.pitch)?, int(x.columns)?, int(pitch)?];
        let [x_pitch, columns, pitch] = shape;
        match (form, &twin.steps) {
            (Form::F32, _) => {
                return Err(BackendError::Unsupported("a form of floats".into()));
            }
            (Form::F16, _) => self.launch_rows(
                "round_rows_f16",
                [x.rows, 1],
                &[x.arg()?, values, x_pitch, columns, pitch],
            )?,
            (_, None) => self.launch_rows(
                "round_rows_bf16",
                [x.rows, 1],
                &[x.arg()?, values, x_pitch, columns, pitch],
            )?,
            (_, Some(steps)) => self.launch_rows(
                "quant_rows",
                [x.rows, 1],
                &[
                    x.arg()?,
                    values,
                    Arg::Buffer(steps, 0),
                    x_pitch,
                    columns,
                    pitch,
                    Arg::Int(Form::granularity(Some(form))),
                ],
            )?,
        }
        x.twin.replace(Some(Rc::clone(&twin)));
        Ok(twin)
    }

    fn multiply(
        &mut self,
        x: &CudaTensor<D>,
        linear: &CudaLinear<D>,
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        expect_equal("linear input", x.columns, linear.inputs)?;
        expect_equal("linear output", y.columns, linear.outputs)?;
        expect_equal("linear rows", y.rows, x.rows)?;
        if linear.form == Form::F32 {
            return self.multiply_f32(x, linear, y, store);
        }
        let twin = self.twin(x, linear.form)?;
        y.twin.replace(None);
        linear.multiply(&self.device, &mut self.workspace, &twin, y, store)
    }

    fn multiply_f32(
        &mut self,
        x: &CudaTensor<D>,
        linear: &CudaLinear<D>,
        y: &CudaTensor<D>,
        store: Store,
    ) -> Result<()> {
        if x.rows == 0 {
            return Ok(());
        }
        if store == Store::Replace {
            y.twin.replace(None);
            return linear.multiply_f32(&self.device, x, y);
        }
        let product = CudaTensor::new(&self.device, y.rows, y.columns)?;
        linear.multiply_f32(&self.device, x, &product)?;
        self.combine("add", y, &product)
    }

    /// Output rows, and the pointers and sizes that kernels with an 8-bit twin end with.
    fn produce(
        &self,
        rows: usize,
        columns: usize,
        form: Option<Form>,
        launch: impl FnOnce([Arg<D::Buffer>; 3], [Arg<D::Buffer>; 2]) -> Result<()>,
    ) -> Result<CudaTensor<D>> {
        let out = CudaTensor::new(&self.device, rows, columns)?;
        let twin = form
            .map(|form| self.new_twin(rows, columns, form))
            .transpose()?;
        let pointers = match &twin {
            Some(Twin {
                values,
                steps: Some(steps),
                ..
            }) => [out.arg()?, Arg::Buffer(values, 0), Arg::Buffer(steps, 0)],
            _ => [out.arg()?, Arg::Null, Arg::Null],
        };
        launch(
            pointers,
            [int(padded(columns))?, Arg::Int(Form::granularity(form))],
        )?;
        out.twin.replace(twin.map(Rc::new));
        Ok(out)
    }

    fn norm_into(
        &self,
        x: &CudaTensor<D>,
        norm: &Norm<CudaTensor<D>>,
        form: Option<Form>,
    ) -> Result<CudaTensor<D>> {
        expect_equal("norm weight", norm.weight.columns, x.columns)?;
        if norm.width == 0 || !x.columns.is_multiple_of(norm.width) {
            return Err(BackendError::Shape(format!(
                "norm width {} of {} features",
                norm.width, x.columns
            )));
        }
        let bias = match &norm.bias {
            Some(bias) => {
                expect_equal("norm bias", bias.columns, x.columns)?;
                bias.arg()?
            }
            None => Arg::Null,
        };
        // Runs shorter than the row are normalised by a block each; the row is quantised afterwards.
        let form = form.filter(|_| norm.width == x.columns);
        self.produce(
            x.rows,
            x.columns,
            form,
            |[out, q, step], [q_pitch, kind]| {
                let args = [
                    x.arg()?,
                    norm.weight.arg()?,
                    bias,
                    out,
                    q,
                    step,
                    int(x.pitch)?,
                    int(x.columns)?,
                    int(norm.width)?,
                    Arg::Int(i32::from(norm.kind == NormKind::Layer)),
                    Arg::Float(norm.eps),
                    q_pitch,
                    kind,
                ];
                self.launch_rows("norm_rows", [x.rows, x.columns / norm.width], &args)
            },
        )
    }

    /// One row of `table` per entry of a column whose largest entry is `max`.
    fn gather(
        &self,
        table: &CudaTensor<D>,
        step: &CudaStep<D>,
        (column, rows, max): (Column, usize, usize),
    ) -> Result<CudaTensor<D>> {
        if rows > 0 && max >= table.rows {
            return Err(BackendError::Shape(format!("row {max} of {}", table.rows)));
        }
        let out = CudaTensor::new(&self.device, rows, table.columns)?;
        if let Some(packed) = &table.packed {
            let args = [
                Arg::Buffer(table.data.as_ref(), 0),
                Arg::Buffer(packed.scales.as_ref(), 0),
                step.arg(column),
                out.arg()?,
                int(table.columns)?,
                int(table.rows)?,
                int(packed.k_bytes)?,
                int(packed.group_len)?,
                Arg::Int(i32::from(packed.in_halves)),
            ];
            self.launch_rows("embed_i8", [rows, 1], &args)?;
            return Ok(out);
        }
        let (kernel, size) = match table.element {
            Element::F32 => ("embed_f32", 4),
            Element::Bf16 => ("embed_bf16", 2),
            Element::F16 => ("embed_f16", 2),
            Element::Int8 => {
                return Err(BackendError::Unsupported("a view of a packed table".into()));
            }
        };
        let args = [
            Arg::Buffer(table.data.as_ref(), table.offset * size),
            step.arg(column),
            out.arg()?,
            int(table.pitch)?,
            int(table.columns)?,
        ];
        self.launch_rows(kernel, [rows, 1], &args)?;
        Ok(out)
    }

    fn combine(&self, kernel: &'static str, x: &CudaTensor<D>, y: &CudaTensor<D>) -> Result<()> {
        expect_equal("rows", y.rows, x.rows)?;
        expect_equal("features", y.columns, x.columns)?;
        x.twin.replace(None);
        let args = [
            x.arg()?,
            y.arg()?,
            int(x.pitch)?,
            int(y.pitch)?,
            int(x.columns)?,
        ];
        self.launch_rows(kernel, [x.rows, 1], &args)
    }

    fn check_rope(x: &CudaTensor<D>, rope: &Rope<CudaTensor<D>>, step: &CudaStep<D>) -> Result<()> {
        expect_equal("rotated tokens", x.rows, step.num_tokens)?;
        expect_equal("rope table", rope.table.columns, rope.rotary_dim)?;
        let fits = rope.head_dim > 0 && x.columns.is_multiple_of(rope.head_dim);
        if !fits || rope.rotary_dim > rope.head_dim || !rope.rotary_dim.is_multiple_of(2) {
            return Err(BackendError::Shape(format!(
                "{} rotated of {} in rows of {}",
                rope.rotary_dim, rope.head_dim, x.columns
            )));
        }
        if step.max_position >= rope.table.rows {
            return Err(BackendError::Shape(format!(
                "position {} of {}",
                step.max_position, rope.table.rows
            )));
        }
        Ok(())
    }

    /// Stores keys and values, rotating queries in place and keys on their way where asked.
    fn store(
        &self,
        cache: &CudaKvCache<D>,
        layer: usize,
        rows: [Option<&CudaTensor<D>>; 3],
        rope: Option<&Rope<CudaTensor<D>>>,
        step: &CudaStep<D>,
    ) -> Result<()> {
        let width = cache.num_kv_heads * cache.head_dim;
        let (layer, memory) = cache.layer(layer)?;
        let [q, Some(k), Some(v)] = rows else {
            return Err(BackendError::Shape("keys without values".into()));
        };
        for (what, rows) in [("keys", k), ("values", v)] {
            expect_equal(what, rows.columns, width)?;
            expect_equal("stored tokens", rows.rows, step.num_tokens)?;
        }
        check_block(step, cache.num_blocks)?;
        if let Some(rope) = rope {
            Self::check_rope(k, rope, step)?;
            expect_equal("rotated head", rope.head_dim, cache.head_dim)?;
            if let Some(q) = q {
                Self::check_rope(q, rope, step)?;
                q.twin.replace(None);
            }
        }
        let args = [
            q.map_or(Ok(Arg::Null), CudaTensor::arg)?,
            k.arg()?,
            v.arg()?,
            rope.map_or(Ok(Arg::Null), |rope| rope.table.arg())?,
            step.arg(Column::Positions),
            step.arg(Column::Slots),
            memory,
            int(q.map_or(0, |q| q.pitch))?,
            int(k.pitch)?,
            int(v.pitch)?,
            int(q.map_or(0, |q| q.columns / cache.head_dim))?,
            int(cache.num_kv_heads)?,
            int(cache.head_dim)?,
            int(rope.map_or(0, |rope| rope.rotary_dim / 2))?,
        ];
        self.launch_rows(layer.kernels.store, [step.num_tokens, 1], &args)
    }

    /// Splits on blocks of their own, for few rows with long contexts: partial results, then the merge.
    fn attend_in_parts(
        &self,
        q: &CudaTensor<D>,
        cache: &CudaKvCache<D>,
        layer: usize,
        spec: &AttentionSpec,
        step: &CudaStep<D>,
    ) -> Result<CudaTensor<D>> {
        let splits = step.max_split + 1;
        let parts = q.rows * spec.num_heads * splits;
        let stats = self.device.scratch(parts * 8, "attention")?;
        let values = self
            .device
            .scratch(parts * spec.head_dim * 4, "attention")?;
        let (found, _) = cache.layer(layer)?;
        let (inputs, sizes) = attention_args(q, cache, layer, spec, step)?;
        let mut args = inputs;
        args.extend([Arg::Buffer(&stats, 0), Arg::Buffer(&values, 0)]);
        args.extend(sizes);
        args.extend([int(splits)?, Arg::Int(0)]);
        self.device.launch(&Launch {
            kernel: found.kernels.partial,
            threads: ROW_THREADS,
            grid: [step.num_tiles as u32, spec.num_heads as u32, splits as u32],
            dynamic_bytes: 0,
            args: &args,
        })?;
        let form = self.produced_form();
        self.produce(
            q.rows,
            q.columns,
            form,
            |[out, twin, scales], [pitch, kind]| {
                let args = [
                    Arg::Buffer(&stats, 0),
                    Arg::Buffer(&values, 0),
                    step.arg(Column::Positions),
                    out,
                    twin,
                    scales,
                    int(spec.num_heads)?,
                    int(spec.head_dim)?,
                    int(spec.window.unwrap_or(0))?,
                    int(splits)?,
                    Arg::Int(0),
                    pitch,
                    kind,
                ];
                self.launch_rows("attention_combine", [q.rows, 1], &args)
            },
        )
    }
}

/// What both forms of attention begin with, and the sizes that follow their outputs.
type AttentionArgs<'a, B> = (Vec<Arg<'a, B>>, Vec<Arg<'a, B>>);

fn attention_args<'a, D: Device>(
    q: &'a CudaTensor<D>,
    cache: &'a CudaKvCache<D>,
    layer: usize,
    spec: &AttentionSpec,
    step: &'a CudaStep<D>,
) -> Result<AttentionArgs<'a, D::Buffer>> {
    // Scores become powers of two; a soft cap comes before, so its factor is the other one.
    let (scale, cap) = match spec.soft_cap {
        Some(cap) => (spec.scale / cap, cap * std::f32::consts::LOG2_E),
        None => (spec.scale * std::f32::consts::LOG2_E, 0.0),
    };
    let inputs = vec![
        q.arg()?,
        cache.layer(layer)?.1,
        step.arg(Column::Tiles),
        step.arg(Column::Tables),
    ];
    let sizes = vec![
        int(spec.num_heads)?,
        int(spec.num_kv_heads)?,
        int(spec.head_dim)?,
        int(q.pitch)?,
        int(spec.window.unwrap_or(0))?,
        Arg::Float(scale),
        Arg::Float(cap),
    ];
    Ok((inputs, sizes))
}

fn check_block<D: Device>(step: &CudaStep<D>, num_blocks: usize) -> Result<()> {
    if step.max_block < num_blocks {
        return Ok(());
    }
    Err(BackendError::Shape(format!(
        "block {} of {num_blocks}",
        step.max_block
    )))
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

/// The kernels' number of an activation, and its cap.
fn kernel_activation(activation: Activation) -> (i32, f32) {
    match activation {
        Activation::Silu => (0, 0.0),
        Activation::Gelu => (1, 0.0),
        Activation::GeluTanh => (2, 0.0),
        Activation::Relu => (3, 0.0),
        Activation::SoftCap(cap) => (4, cap),
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
        CudaLinear::load(&self.device, self.precision, weight)
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
        let (found, _) = cache.layer(layer)?;
        expect_equal("query tokens", q.rows, step.num_tokens)?;
        expect_equal("query width", q.columns, spec.num_heads * spec.head_dim)?;
        expect_equal("head features", spec.head_dim, cache.head_dim)?;
        expect_equal("key/value heads", spec.num_kv_heads, cache.num_kv_heads)?;
        if !spec.num_heads.is_multiple_of(spec.num_kv_heads) || spec.window == Some(0) {
            return Err(BackendError::Shape(format!("{spec:?}")));
        }
        check_block(step, cache.num_blocks)?;
        // A window beyond everything that the cache can hold is none.
        let spec = &AttentionSpec {
            window: spec
                .window
                .filter(|window| *window <= cache.num_blocks * BLOCK_SIZE),
            ..spec.clone()
        };
        let blocks = step.num_tiles * spec.num_kv_heads;
        let slots = 2 * self.device.properties().multiprocessors as usize;
        if step.max_split > 0 && blocks < slots {
            return self.attend_in_parts(q, cache, layer, spec, step);
        }
        let out = CudaTensor::new(&self.device, q.rows, q.columns)?;
        let (mut args, sizes) = attention_args(q, cache, layer, spec, step)?;
        args.push(out.arg()?);
        args.extend(sizes);
        let grid = [step.num_tiles, spec.num_heads];
        self.launch_rows(found.kernels.attention, grid, &args)?;
        drop(args);
        Ok(out)
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

const _: () = assert!(SPLIT.is_multiple_of(BLOCK_SIZE), "splits are whole blocks");
