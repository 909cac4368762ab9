//! Tensors, and the pool that their memory comes from and returns to.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use backend::{BackendError, HostTensor, Result, WeightData};
use half::bf16;
use kernels_cpu::{AlignedBuf, QuantisedWeight, RowLayout};
use quant::Granularity;

use crate::twin::{Twin, TwinShelves};

/// `[rows, columns]`, row-major: activations in 32 bits, or a loaded table.
#[derive(Debug)]
pub struct CpuTensor {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) data: Data,
    /// The 8-bit form of the elements, made by the operation that made them or by the first product
    /// that wants it. It goes when the elements change.
    twin: RefCell<Option<Twin>>,
}

/// Elements of a tensor.
#[derive(Debug)]
pub(crate) enum Data {
    /// Activations.
    Pooled(Buffer),
    /// Loaded vectors and tables.
    F32(AlignedBuf<f32>),
    /// Tables of bfloat16 checkpoints stay as they are; only gathering reads them.
    Bf16(AlignedBuf<bf16>),
    /// A table that is a matrix of 8 bits as well; only gathering reads it.
    Int8(Rc<QuantisedWeight>),
}

/// 32-bit floats that go back to their pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    /// Taken out in `drop` only.
    memory: Option<AlignedBuf<f32>>,
    len: usize,
    pool: Pool,
}

/// Free buffers by size. Activations have the same few sizes in every step, so after the first steps
/// nothing is allocated.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool(Rc<Shelves>);

#[derive(Debug, Default)]
struct Shelves {
    /// Entry `i` holds buffers of `2^i` elements.
    free: RefCell<Vec<Vec<AlignedBuf<f32>>>>,
    twins: Rc<TwinShelves>,
    num_allocations: Cell<usize>,
}

impl Pool {
    /// `len` elements with arbitrary values.
    pub(crate) fn take(&self, len: usize) -> Result<Buffer> {
        let class = class_of(len);
        let free = self.0.free.borrow_mut().get_mut(class).and_then(Vec::pop);
        let memory = match free {
            Some(memory) => memory,
            None => {
                self.0.num_allocations.set(self.0.num_allocations.get() + 1);
                zeroed(1 << class, "activations")?
            }
        };
        Ok(Buffer {
            memory: Some(memory),
            len,
            pool: self.clone(),
        })
    }

    /// A tensor with arbitrary elements.
    pub(crate) fn tensor(&self, rows: usize, columns: usize) -> Result<CpuTensor> {
        Ok(CpuTensor {
            rows,
            columns,
            data: Data::Pooled(self.take(rows * columns)?),
            twin: RefCell::default(),
        })
    }

    /// An 8-bit form of `rows` rows with arbitrary contents.
    pub(crate) fn twin(
        &self,
        rows: usize,
        columns: usize,
        granularity: Granularity,
    ) -> Result<Twin> {
        TwinShelves::take(
            &self.0.twins,
            rows,
            RowLayout::new(columns, granularity),
            || {
                self.0.num_allocations.set(self.0.num_allocations.get() + 1);
            },
        )
    }

    /// How often memory was asked for so far.
    #[cfg(test)]
    pub(crate) fn num_allocations(&self) -> usize {
        self.0.num_allocations.get()
    }
}

/// The shelf of buffers for `len` elements.
fn class_of(len: usize) -> usize {
    len.max(LEAST).next_power_of_two().trailing_zeros() as usize
}

/// Elements of the smallest buffer.
const LEAST: usize = 256;

/// Zeroed memory, or the error that says what it was for.
pub(crate) fn zeroed<T: kernels_cpu::Element>(
    len: usize,
    purpose: &'static str,
) -> Result<AlignedBuf<T>> {
    AlignedBuf::zeroed(len).ok_or(BackendError::OutOfMemory {
        requested: len.saturating_mul(size_of::<T>()),
        purpose,
    })
}

impl Buffer {
    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.memory.as_ref().expect("present until drop")[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.memory.as_mut().expect("present until drop")[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = self.memory.take().expect("present until drop");
        let class = class_of(self.len);
        let mut free = self.pool.0.free.borrow_mut();
        if free.len() <= class {
            free.resize_with(class + 1, Vec::new);
        }
        free[class].push(memory);
    }
}

impl CpuTensor {
    /// A loaded table. Vectors and 32-bit tables are kept in 32 bits, bfloat16 tables as they are;
    /// half-precision tables are widened.
    pub(crate) fn load(tensor: HostTensor) -> Result<Self> {
        let data = match tensor.data {
            WeightData::Bf16(table) if tensor.rows > 1 => Data::Bf16(copy(&table)?),
            data => Data::F32(copy(&data.into_f32())?),
        };
        Ok(Self {
            rows: tensor.rows,
            columns: tensor.columns,
            data,
            twin: RefCell::default(),
        })
    }

    /// A quantised matrix as a table of its rows.
    pub(crate) fn of_matrix(matrix: Rc<QuantisedWeight>) -> Self {
        Self {
            rows: matrix.outputs(),
            columns: matrix.inputs(),
            data: Data::Int8(matrix),
            twin: RefCell::default(),
        }
    }

    /// The elements of an activation, a vector or a 32-bit table.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] for a 16-bit or 8-bit table.
    pub fn elements(&self) -> Result<&[f32]> {
        match &self.data {
            Data::Pooled(buffer) => Ok(buffer.as_slice()),
            Data::F32(memory) => Ok(memory),
            Data::Bf16(_) | Data::Int8(_) => Err(narrow_table()),
        }
    }

    /// As [`Self::elements`], to be changed; the 8-bit form goes.
    pub(crate) fn elements_mut(&mut self) -> Result<&mut [f32]> {
        *self.twin.get_mut() = None;
        match &mut self.data {
            Data::Pooled(buffer) => Ok(buffer.as_mut_slice()),
            Data::F32(memory) => Ok(memory),
            Data::Bf16(_) | Data::Int8(_) => Err(narrow_table()),
        }
    }

    /// The 8-bit form, made now by `make` where there is none of this granularity.
    pub(crate) fn twin(
        &self,
        granularity: Granularity,
        make: impl FnOnce() -> Result<Twin>,
    ) -> Result<Ref<'_, Twin>> {
        let known = self.twin.borrow();
        if known
            .as_ref()
            .is_none_or(|twin| twin.granularity() != granularity)
        {
            drop(known);
            self.twin.replace(Some(make()?));
        }
        Ok(Ref::map(self.twin.borrow(), |twin| {
            twin.as_ref().expect("present or just made")
        }))
    }

    /// Keeps the 8-bit form of the elements as they are now.
    pub(crate) fn set_twin(&mut self, twin: Twin) {
        *self.twin.get_mut() = Some(twin);
    }

    /// Number of rows, usually tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Features of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }
}

fn copy<T: kernels_cpu::Element>(from: &[T]) -> Result<AlignedBuf<T>> {
    let mut memory = zeroed(from.len(), "tables")?;
    memory.copy_from_slice(from);
    Ok(memory)
}

fn narrow_table() -> BackendError {
    BackendError::Unsupported("computing on a 16-bit or 8-bit table".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back() {
        let pool = Pool::default();
        for _ in 0..3 {
            let _large = pool.take(5000).expect("memory");
            let _small = pool.take(10).expect("memory");
            let other = pool.take(4097).expect("memory");
            assert_eq!(other.as_slice().len(), 4097);
        }
        assert_eq!(pool.num_allocations(), 3);
        assert!(matches!(
            pool.take(1 << 60),
            Err(BackendError::OutOfMemory { .. })
        ));
    }

    #[test]
    fn tables_keep_their_type_and_vectors_are_widened() {
        let halves = || WeightData::Bf16(vec![bf16::ONE; 4]);
        let load = |rows, data| CpuTensor::load(HostTensor::new(rows, 4 / rows, data)?);
        let vector = load(1, halves()).expect("a vector");
        assert_eq!(vector.elements().expect("32 bits"), [1.0; 4]);
        let table = load(2, halves()).expect("a table");
        assert!(matches!(table.data, Data::Bf16(_)));
        assert!(table.elements().is_err());
    }
}
