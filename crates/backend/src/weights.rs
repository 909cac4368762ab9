//! Host tensors on their way to a target.

use half::{bf16, f16};

use crate::{BackendError, Result};

/// Elements in the type of the checkpoint, row-major.
#[derive(Debug, Clone)]
pub enum WeightData {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// bfloat16.
    Bf16(Vec<bf16>),
    /// IEEE half precision.
    F16(Vec<f16>),
}

impl WeightData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Widens to 32-bit floats; exact for every type.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(v) => v,
            Self::Bf16(v) => v.into_iter().map(bf16::to_f32).collect(),
            Self::F16(v) => v.into_iter().map(f16::to_f32).collect(),
        }
    }
}

/// A table `[rows, columns]` or a vector `[1, columns]`.
#[derive(Debug, Clone)]
pub struct HostTensor {
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Elements of one row.
    pub columns: usize,
    /// `rows · columns` elements, row-major.
    pub data: WeightData,
}

impl HostTensor {
    /// Checks the element count.
    ///
    /// # Errors
    /// [`BackendError::Shape`] when `data` does not hold `rows · columns` elements.
    pub fn new(rows: usize, columns: usize, data: WeightData) -> Result<Self> {
        if rows.checked_mul(columns) != Some(data.len()) {
            return Err(BackendError::Shape(format!(
                "{} elements for [{rows}, {columns}]",
                data.len()
            )));
        }
        Ok(Self {
            rows,
            columns,
            data,
        })
    }

    /// A vector of 32-bit floats.
    pub fn vector(data: Vec<f32>) -> Self {
        Self {
            rows: 1,
            columns: data.len(),
            data: WeightData::F32(data),
        }
    }
}

/// A weight matrix `[out, in]` with its optional bias `[out]`.
#[derive(Debug, Clone)]
pub struct LinearWeight {
    /// The matrix; `rows` are outputs.
    pub weight: HostTensor,
    /// As long as `weight.rows`.
    pub bias: Option<Vec<f32>>,
    /// What it is for.
    pub role: LinearRole,
}

/// Where a matrix stands in the model, which a quantising target may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinearRole {
    /// Inside a layer.
    #[default]
    Projection,
    /// Makes the logits.
    Head,
    /// Chooses experts: small, and a wrong choice changes everything behind it, so that no target
    /// quantises it.
    Router,
}

impl LinearWeight {
    /// Checks the bias against the matrix.
    ///
    /// # Errors
    /// [`BackendError::Shape`] when the bias is not as long as the matrix has rows.
    pub fn new(weight: HostTensor, bias: Option<Vec<f32>>) -> Result<Self> {
        match &bias {
            Some(b) if b.len() != weight.rows => Err(BackendError::Shape(format!(
                "bias of {} for {} outputs",
                b.len(),
                weight.rows
            ))),
            _ => Ok(Self {
                weight,
                bias,
                role: LinearRole::default(),
            }),
        }
    }

    /// The same matrix as one that chooses experts.
    pub fn into_router(self) -> Self {
        Self {
            role: LinearRole::Router,
            ..self
        }
    }

    /// The same matrix as the one that makes the logits.
    pub fn into_head(self) -> Self {
        Self {
            role: LinearRole::Head,
            ..self
        }
    }
}
