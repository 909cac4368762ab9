//! Kernels over rows, what their operands are kept in, and the products that read them.

use std::rc::Rc;

use ::backend::{Activation, BackendError, BlockCopy, LinearRole, Norm, NormKind, Result};

use crate::CudaBackend;
use crate::device::{Arg, Device, Launch};
use crate::kv_cache::CudaKvCache;
use crate::linear::{CudaLinear, Store, int};
use crate::pack::padded;
use crate::step::{Column, CudaStep};
use crate::tensor::{CudaTensor, Element, Form, Twin};

/// Threads of a block that works on one row.
pub(crate) const ROW_THREADS: u32 = 256;

impl<D: Device> CudaBackend<D> {
    /// Copies blocks of the device, in order.
    pub(crate) fn copy_on_device(
        &self,
        cache: &CudaKvCache<D>,
        copies: &[BlockCopy],
    ) -> Result<()> {
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
    pub(crate) fn launch_rows(
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

    /// The form that most products of this precision read, if producers make it.
    pub(crate) fn produced_form(&self) -> Option<Form> {
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

    pub(crate) fn multiply(
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
        linear.multiply(&self.device, &mut self.products, None, &twin, y, store)
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
    pub(crate) fn produce(
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

    pub(crate) fn norm_into(
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
    pub(crate) fn gather(
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

    pub(crate) fn combine(
        &self,
        kernel: &'static str,
        x: &CudaTensor<D>,
        y: &CudaTensor<D>,
    ) -> Result<()> {
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
}

/// Fails with both numbers when they differ.
pub(crate) fn expect_equal(what: &str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(BackendError::Shape(format!(
        "{what}: {found} where {expected} is expected"
    )))
}

/// The kernels' number of an activation, and its cap.
pub(crate) fn kernel_activation(activation: Activation) -> (i32, f32) {
    match activation {
        Activation::Silu => (0, 0.0),
        Activation::Gelu => (1, 0.0),
        Activation::GeluTanh => (2, 0.0),
        Activation::Relu => (3, 0.0),
        Activation::SoftCap(cap) => (4, cap),
    }
}
