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
    /// 8-bit integers with scales.
    Int8(Int8Data),
}

/// Integers with scales, as a quantised checkpoint stores them: `w = q · s`.
#[derive(Debug, Clone)]
pub struct Int8Data {
    /// `[rows, columns]`; −128 may occur.
    pub values: Vec<i8>,
    /// `[rows, groups]`, finite and not negative.
    pub scales: Vec<f32>,
    /// Integers of one row.
    pub columns: usize,
    /// Integers that share a scale, counted from the first of a row; `columns` for one scale per row.
    pub group_len: usize,
}

impl Int8Data {
    /// Scales of one row.
    pub fn groups(&self) -> usize {
        self.columns.div_ceil(self.group_len.max(1))
    }

    /// Whether a row has one scale.
    pub fn per_row(&self) -> bool {
        self.groups() == 1
    }

    /// The numbers of one row.
    fn widen_row(&self, row: usize, out: &mut [f32]) {
        let (values, groups) = (&self.values[row * self.columns..], self.groups());
        let scales = &self.scales[row * groups..(row + 1) * groups];
        let group_len = self.group_len.max(1);
        let runs = out.chunks_mut(group_len).zip(values.chunks(group_len));
        for ((out, values), scale) in runs.zip(scales) {
            for (out, q) in out.iter_mut().zip(values) {
                *out = f32::from(*q) * scale;
            }
        }
    }
}

impl WeightData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Int8(v) => v.values.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Widens one row of `out.len()` elements; integers become `q · s`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn widen_row(&self, row: usize, out: &mut [f32]) {
        let elements = row * out.len()..(row + 1) * out.len();
        match self {
            Self::F32(data) => out.copy_from_slice(&data[elements]),
            Self::Bf16(data) => widen(&data[elements], out, |w| w.to_f32()),
            Self::F16(data) => widen(&data[elements], out, |w| w.to_f32()),
            Self::Int8(data) => data.widen_row(row, out),
        }
    }

    /// Widens to 32-bit floats; exact for every float type, and `q · s` for integers.
    pub fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(v) => v,
            Self::Bf16(v) => v.into_iter().map(bf16::to_f32).collect(),
            Self::F16(v) => v.into_iter().map(f16::to_f32).collect(),
            Self::Int8(v) => {
                let mut out = vec![0.0; v.values.len()];
                let rows = out.chunks_mut(v.columns.max(1)).enumerate();
                rows.for_each(|(row, out)| v.widen_row(row, out));
                out
            }
        }
    }
}

fn widen<T: Copy>(from: &[T], out: &mut [f32], wide: fn(T) -> f32) {
    for (out, w) in out.iter_mut().zip(from) {
        *out = wide(*w);
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
    /// [`BackendError::Shape`] when `data` does not hold `rows · columns` elements, or integers do not
    /// come with a scale for each group.
    pub fn new(rows: usize, columns: usize, data: WeightData) -> Result<Self> {
        if rows.checked_mul(columns) != Some(data.len()) {
            return Err(BackendError::Shape(format!(
                "{} elements for [{rows}, {columns}]",
                data.len()
            )));
        }
        if let WeightData::Int8(int8) = &data
            && (int8.columns != columns || int8.scales.len() != rows * int8.groups())
        {
            return Err(BackendError::Shape(format!(
                "{} scales and rows of {} for [{rows}, {columns}]",
                int8.scales.len(),
                int8.columns
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
