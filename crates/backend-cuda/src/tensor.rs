//! Activations and tables on the device, views of their columns, and the forms that products read.

use std::cell::RefCell;
use std::rc::Rc;

use backend::{BackendError, HostTensor, Result, WeightData};
use quant::Granularity;

use crate::device::{Arg, Device};

/// Element types of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    Bf16,
    F16,
    /// The packed matrix of a head; only gathering reads it.
    Int8,
}

/// What is needed to read rows of a packed 8-bit matrix.
pub(crate) struct PackedRows<D: Device> {
    pub scales: Rc<D::Buffer>,
    /// Bytes of a row.
    pub k_bytes: usize,
    /// Columns that share a scale.
    pub group_len: usize,
    /// Whether rows are permuted for scales of half a block.
    pub in_halves: bool,
}

/// How rows are written for a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// 8 bits, which of them share a scale: a row, or 32, 64 or 128 columns.
    Int8(Granularity),
    /// As they are: for routers.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// Rows in the form of a product, beside the 32-bit floats they stand for.
pub(crate) struct Twin<D: Device> {
    pub form: Form,
    pub values: D::Buffer,
    /// Scales of 8-bit forms.
    pub steps: Option<D::Buffer>,
}

/// `[rows, columns]` on the device. Views share memory with what they were split from.
pub struct CudaTensor<D: Device> {
    pub(crate) data: Rc<D::Buffer>,
    pub(crate) element: Element,
    /// First element.
    pub(crate) offset: usize,
    /// Elements from one row to the next.
    pub(crate) pitch: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Beside [`Element::Int8`].
    pub(crate) packed: Option<Rc<PackedRows<D>>>,
    pub(crate) twin: RefCell<Option<Rc<Twin<D>>>>,
}

impl Form {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Int8(_) => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The kernels' `granularity` of the rows that a producer writes, if it writes any.
    pub fn granularity(form: Option<Self>) -> i32 {
        match form {
            Some(Self::Int8(Granularity::Row)) => 1,
            Some(Self::Int8(Granularity::Groups(len))) => len as i32,
            Some(Self::F32 | Self::F16 | Self::Bf16) | None => 0,
        }
    }
}

impl<D: Device> CudaTensor<D> {
    /// Activations with arbitrary contents.
    pub(crate) fn new(device: &D, rows: usize, columns: usize) -> Result<Self> {
        let bytes = (rows * columns).max(1) * size_of::<f32>();
        Ok(Self {
            data: Rc::new(device.scratch(bytes, "activations")?),
            element: Element::F32,
            offset: 0,
            pitch: columns,
            rows,
            columns,
            packed: None,
            twin: RefCell::new(None),
        })
    }

    /// A table keeps its 16-bit type; vectors are widened.
    pub(crate) fn load(device: &D, tensor: HostTensor) -> Result<Self> {
        let HostTensor {
            rows,
            columns,
            data,
        } = HostTensor::new(tensor.rows, tensor.columns, tensor.data)?;
        let (element, bytes) = match data {
            WeightData::Bf16(data) if rows > 1 => (
                Element::Bf16,
                data.iter()
                    .flat_map(|x| x.to_le_bytes())
                    .collect::<Vec<u8>>(),
            ),
            WeightData::F16(data) if rows > 1 => (
                Element::F16,
                data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            ),
            data => (Element::F32, bytes_of(&data.into_f32())),
        };
        let buffer = device.alloc(bytes.len().max(1), "tables")?;
        device.upload(&buffer, 0, &bytes)?;
        Ok(Self {
            data: Rc::new(buffer),
            element,
            offset: 0,
            pitch: columns,
            rows,
            columns,
            packed: None,
            twin: RefCell::new(None),
        })
    }

    /// The rows of a head's packed matrix.
    pub(crate) fn of_matrix(
        matrix: Rc<D::Buffer>,
        shape: [usize; 2],
        packed: PackedRows<D>,
    ) -> Self {
        Self {
            data: matrix,
            element: Element::Int8,
            offset: 0,
            pitch: packed.k_bytes,
            rows: shape[0],
            columns: shape[1],
            packed: Some(Rc::new(packed)),
            twin: RefCell::new(None),
        }
    }

    /// Columns `first … first + columns` of the same rows.
    pub(crate) fn view(&self, first: usize, columns: usize) -> Self {
        Self {
            data: Rc::clone(&self.data),
            element: self.element,
            offset: self.offset + first,
            pitch: self.pitch,
            rows: self.rows,
            columns,
            packed: None,
            twin: RefCell::new(None),
        }
    }

    /// The first rows, in the same memory.
    pub(crate) fn share(&self, rows: usize) -> Self {
        Self {
            data: Rc::clone(&self.data),
            element: self.element,
            offset: self.offset,
            pitch: self.pitch,
            rows,
            columns: self.columns,
            packed: self.packed.clone(),
            twin: RefCell::new(None),
        }
    }

    /// The argument of a kernel that computes in 32 bits.
    pub(crate) fn arg(&self) -> Result<Arg<'_, D::Buffer>> {
        if self.element != Element::F32 {
            return Err(BackendError::Unsupported(
                "computing on a table of 8 or 16 bits".into(),
            ));
        }
        Ok(Arg::Buffer(&self.data, self.offset * size_of::<f32>()))
    }

    /// Rows, usually tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Features of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The elements of activations, row-major, on the host.
    ///
    /// # Errors
    /// [`BackendError::Device`], or [`BackendError::Unsupported`] for a table of 8 or 16 bits.
    pub fn read(&self, device: &D) -> Result<Vec<f32>> {
        self.arg()?;
        let mut values = Vec::with_capacity(self.rows * self.columns);
        let mut bytes = vec![0; self.columns * size_of::<f32>()];
        for row in 0..self.rows {
            let at = (self.offset + row * self.pitch) * size_of::<f32>();
            device.download(&self.data, at, &mut bytes)?;
            let (words, _) = bytes.as_chunks::<4>();
            values.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
        }
        Ok(values)
    }
}

/// Little-endian bytes, as devices read them.
pub(crate) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
