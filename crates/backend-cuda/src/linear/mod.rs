//! Packed weight matrices and their products.

mod products;
mod random;
mod tiles;
mod weights;

use std::rc::Rc;

use backend::{BackendError, LinearRole, LinearWeight, Result};
use quant::{BLOCK, GROUP, Granularity, MAX_INPUTS};

use crate::Precision;
use crate::device::{Arg, Device};
use crate::pack::{PANEL_CHANNELS, pack, padded};
use crate::tensor::{CudaTensor, Form, PackedRows, bytes_of};
use crate::tuning::Problem;
pub(crate) use tiles::{
    BLOCK_TILES, INT8_TILES, MAX_SPLIT, Products, Tile, WARPGROUP_TILES, WARPGROUP_TOKENS, choose,
    division,
};
use weights::{by_group, pack_int8, quantise, to_bf16, to_f16};

/// A packed matrix with its bias.
pub struct CudaLinear<D: Device> {
    weight: Rc<D::Buffer>,
    /// One for each output, or for each group and output.
    scales: Option<Rc<D::Buffer>>,
    weights_by: Granularity,
    bias: Option<D::Buffer>,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) form: Form,
}

/// Whether a product replaces its output or is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Store {
    Replace,
    Add,
}

impl<D: Device> CudaLinear<D> {
    /// Quantises or rounds, and packs.
    pub(crate) fn load(device: &D, precision: Precision, linear: LinearWeight) -> Result<Self> {
        let (rows, columns) = (linear.weight.rows, linear.weight.columns);
        if rows == 0 || columns == 0 || linear.weight.data.len() != rows * columns {
            return Err(BackendError::Shape(format!(
                "{} elements for a weight matrix of [{rows}, {columns}]",
                linear.weight.data.len()
            )));
        }
        if linear.bias.as_ref().is_some_and(|b| b.len() != rows) {
            return Err(BackendError::Shape(format!("bias for {rows} outputs")));
        }
        let (form, weights, packed, scales) = match precision.activations(linear.role) {
            Some(wished) => {
                let wished = match columns > MAX_INPUTS {
                    true => Granularity::Groups(GROUP),
                    false => wished,
                };
                let matrix = quantise(precision, linear.weight.data, [rows, columns], wished)?;
                let activations = matrix.granularity().of_activations(wished);
                let packed = pack_int8(&matrix, activations);
                let scales = by_group(&matrix);
                let form = Form::Int8(activations);
                (form, matrix.granularity(), packed, Some(scales))
            }
            None if linear.role == LinearRole::Router => {
                let wide = linear.weight.data.into_f32();
                let by_input = (0..columns).flat_map(|k| wide.iter().skip(k).step_by(columns));
                let by_input: Vec<f32> = by_input.copied().collect();
                (Form::F32, Granularity::Row, bytes_of(&by_input), None)
            }
            None if precision == Precision::W8A16 => {
                let finest = Granularity::Groups(GROUP);
                let matrix = quantise(precision, linear.weight.data, [rows, columns], finest)?;
                // Permuted whatever the groups are: half a block of weights meets a block of activations.
                let packed = pack_int8(&matrix, Granularity::Groups(BLOCK));
                let scales = by_group(&matrix);
                (Form::F16, matrix.granularity(), packed, Some(scales))
            }
            None => {
                let (form, bytes) = match precision {
                    Precision::Bf16 => (Form::Bf16, to_bf16(linear.weight.data)),
                    _ => (Form::F16, to_f16(linear.weight.data)),
                };
                let packed = pack(&bytes, rows, columns * form.size());
                (form, Granularity::Row, packed, None)
            }
        };
        let upload = |bytes: &[u8]| {
            let buffer = device.alloc(bytes.len(), "weights")?;
            device.upload(&buffer, 0, bytes)?;
            Ok::<_, BackendError>(buffer)
        };
        Ok(Self {
            weight: Rc::new(upload(&packed)?),
            scales: match scales {
                Some(scales) => Some(Rc::new(upload(&bytes_of(&scales))?)),
                None => None,
            },
            weights_by: weights,
            bias: linear.bias.map(|b| upload(&bytes_of(&b))).transpose()?,
            outputs: rows,
            inputs: columns,
            form,
        })
    }

    /// The same with a bias.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`], or a bias that is not as long as there are outputs.
    pub fn with_bias(mut self, device: &D, bias: &[f32]) -> Result<Self> {
        if bias.len() != self.outputs {
            return Err(BackendError::Shape(format!(
                "{} biases for {} outputs",
                bias.len(),
                self.outputs
            )));
        }
        let buffer = device.alloc(bias.len() * 4, "weights")?;
        device.upload(&buffer, 0, &bytes_of(bias))?;
        self.bias = Some(buffer);
        Ok(self)
    }

    /// Bytes of the weights and their scales, which a product reads.
    pub fn bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, |_| {
            4 * self.outputs * self.weights_by.num_groups(self.inputs)
        });
        self.outputs.next_multiple_of(PANEL_CHANNELS) * self.k_bytes() + scales
    }

    /// What its 8-bit products are measured by.
    pub(crate) fn problem(&self) -> Option<Problem> {
        match self.form {
            Form::Int8(activations) => Some(Problem {
                outputs: self.outputs,
                inputs: self.inputs,
                group: Problem::group_of(activations),
                grouped_weights: self.weights_by != Granularity::Row,
            }),
            Form::F32 | Form::F16 | Form::Bf16 => None,
        }
    }

    /// The same weights without a bias, for measurements of 8-bit products.
    pub(crate) fn sample(&self) -> Option<(Problem, Self)> {
        let sample = Self {
            weight: Rc::clone(&self.weight),
            scales: self.scales.clone(),
            bias: None,
            ..*self
        };
        Some((self.problem()?, sample))
    }

    /// The matrix as a table of its rows, in the same memory, where it has 8 bits.
    pub(crate) fn table(&self) -> Option<CudaTensor<D>> {
        let packed = PackedRows {
            scales: Rc::clone(self.scales.as_ref()?),
            k_bytes: self.k_bytes(),
            group_len: self.weights_by.group_len(self.inputs),
            in_halves: self.in_halves(),
        };
        let shape = [self.outputs, self.inputs];
        Some(CudaTensor::of_matrix(
            Rc::clone(&self.weight),
            shape,
            packed,
        ))
    }

    /// Whether a block's bytes are permuted so that its halves can be told apart.
    fn in_halves(&self) -> bool {
        match self.form {
            Form::Int8(activations) => activations == Granularity::Groups(BLOCK),
            _ => self.scales.is_some(),
        }
    }

    /// Bytes of a row of weights: one for each input where they have scales.
    fn k_bytes(&self) -> usize {
        let size = self.scales.as_ref().map_or(self.form.size(), |_| 1);
        padded(self.inputs * size)
    }
}

/// A size as a kernel's argument.
pub(crate) fn int<B>(size: usize) -> Result<Arg<'static, B>> {
    match i32::try_from(size) {
        Ok(size) => Ok(Arg::Int(size)),
        Err(_) => Err(BackendError::Shape(format!(
            "a size of {size} (at most {})",
            i32::MAX
        ))),
    }
}
