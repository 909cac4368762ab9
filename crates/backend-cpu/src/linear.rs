//! Packed weight matrices: how a checkpoint's matrix is brought to the target's precision, and which
//! kernel multiplies with it.

use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backend::{BackendError, HostTensor, LinearRole, LinearWeight, Result, WeightData};
use half::bf16;
use kernels_cpu::{
    Bf16Weight, Epilogue, PackError, QuantisedWeight, TaskRunner, linear, linear_bf16, linear_w8a8,
};
use quant::{BLOCK, GROUP, Granularity, MAX_INPUTS, guard};

use crate::tensor::CpuTensor;
use crate::{CpuBackend, Precision};

/// A packed weight matrix with its bias.
#[derive(Debug)]
pub struct CpuLinear {
    weight: Packed,
    bias: Option<Vec<f32>>,
}

#[derive(Debug)]
enum Packed {
    /// 32 or 16 bits, multiplied with 32-bit activations.
    Float(kernels_cpu::LinearWeight),
    /// 16 bits, multiplied with activations rounded to 16 bits.
    Bf16(Bf16Weight),
    /// 8 bits; nothing wider is kept.
    Int8 {
        weight: Rc<QuantisedWeight>,
        /// How the activations that it meets are quantised.
        activations: Granularity,
    },
}

/// In what matrices are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightSummary {
    /// Matrices with 8-bit weights and one scale for each output.
    pub rows: usize,
    /// Matrices with 8-bit weights and scales for groups of inputs.
    pub groups: usize,
    /// Matrices with wider weights.
    pub floats: usize,
    /// Bytes of all of them, scales and padding included.
    pub bytes: usize,
}

impl WeightSummary {
    pub(crate) fn add(&mut self, linear: &CpuLinear) {
        self.bytes += linear.bytes();
        *match &linear.weight {
            Packed::Float(_) | Packed::Bf16(_) => &mut self.floats,
            Packed::Int8 { weight, .. } => match weight.granularity() {
                Granularity::Row => &mut self.rows,
                Granularity::Groups(_) => &mut self.groups,
            },
        } += 1;
    }
}

impl fmt::Display for WeightSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rows,
            groups,
            floats,
            bytes,
        } = self;
        write!(
            f,
            "matrices in 8 bits: {rows} with a scale per output, {groups} with scales per group; in \
             floats: {floats}; {} MB",
            bytes / 1_000_000
        )
    }
}

impl CpuLinear {
    /// Packs, and quantises where the precision says so.
    pub(crate) fn load(backend: &CpuBackend, linear: LinearWeight) -> Result<Self> {
        let HostTensor {
            rows,
            columns,
            data,
        } = linear.weight;
        if rows == 0 || columns == 0 {
            return Err(BackendError::Shape(format!(
                "a weight matrix of [{rows}, {columns}]"
            )));
        }
        let weight = match backend.precision.granularity(linear.role) {
            Some(_) if columns > MAX_INPUTS => {
                pack_int8(backend, data, [rows, columns], Granularity::Groups(GROUP))?
            }
            Some(activations) => pack_int8(backend, data, [rows, columns], activations)?,
            None => {
                let packed = pack_float(backend, data, [rows, columns], linear.role);
                packed.ok_or_else(|| out_of_memory(4 * rows.saturating_mul(columns)))?
            }
        };
        Ok(Self {
            weight,
            bias: linear.bias,
        })
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        match &self.weight {
            Packed::Float(weight) => weight.outputs(),
            Packed::Bf16(weight) => weight.outputs(),
            Packed::Int8 { weight, .. } => weight.outputs(),
        }
    }

    /// Columns of the matrix.
    pub fn inputs(&self) -> usize {
        match &self.weight {
            Packed::Float(weight) => weight.inputs(),
            Packed::Bf16(weight) => weight.inputs(),
            Packed::Int8 { weight, .. } => weight.inputs(),
        }
    }

    /// The matrix of 8 bits, to be shared with a table.
    pub(crate) fn table(&self) -> Option<Rc<QuantisedWeight>> {
        match &self.weight {
            Packed::Float(_) | Packed::Bf16(_) => None,
            Packed::Int8 { weight, .. } => Some(Rc::clone(weight)),
        }
    }

    /// Bytes that the packed matrix takes, padding and scales included.
    pub fn bytes(&self) -> usize {
        match &self.weight {
            Packed::Float(weight) => weight.bytes(),
            Packed::Bf16(weight) => weight.bytes(),
            Packed::Int8 { weight, .. } => weight.bytes(),
        }
    }

    /// `x · Wᵀ + bias` into or onto `out`; the shapes fit.
    pub(crate) fn multiply(
        &self,
        backend: &CpuBackend,
        x: &CpuTensor,
        out: &mut [f32],
        epilogue: Epilogue,
    ) -> Result<()> {
        let (isa, team, bias) = (backend.isa, &backend.team, self.bias.as_deref());
        match &self.weight {
            Packed::Float(weight) => {
                linear(isa, team, x.elements()?, weight, bias, out, epilogue);
            }
            Packed::Bf16(weight) => {
                let elements = x.elements()?;
                let mut rows = backend.rounded.borrow_mut();
                let runner = backend.runner_for(elements.len());
                let rounded = rows.round(isa, runner, elements, weight.inputs());
                rounded.ok_or(BackendError::OutOfMemory {
                    requested: 2 * elements.len(),
                    purpose: "16-bit activations",
                })?;
                linear_bf16(isa, team, &rows, weight, bias, out, epilogue);
            }
            Packed::Int8 {
                weight,
                activations,
            } => {
                let twin = x.twin(*activations, || backend.quantise(x, *activations))?;
                linear_w8a8(backend.int8, team, twin.rows(), weight, bias, out, epilogue);
            }
        }
        Ok(())
    }
}

/// Bfloat16 stays so, and everything is rounded to it where the precision says so. Routers choose by
/// small differences: their activations are never rounded.
fn pack_float(
    backend: &CpuBackend,
    data: WeightData,
    [rows, columns]: [usize; 2],
    role: LinearRole,
) -> Option<Packed> {
    use kernels_cpu::LinearWeight;
    let team = &backend.team;
    let halves = match (data, backend.precision) {
        (WeightData::Bf16(data), _) => data,
        (data, Precision::Bf16) => {
            let wide = data.into_f32();
            wide.iter().map(|w| bf16::from_f32(*w)).collect()
        }
        (data, _) => {
            let packed = LinearWeight::pack_f32(team, &data.into_f32(), rows, columns);
            return packed.map(Packed::Float);
        }
    };
    if backend.precision == Precision::Bf16 && role != LinearRole::Router {
        Bf16Weight::pack(team, &halves, rows, columns).map(Packed::Bf16)
    } else {
        LinearWeight::pack_bf16(team, &halves, rows, columns).map(Packed::Float)
    }
}

/// Takes stored integers as they are; quantises everything else row by row, each widened alone.
/// Weights in groups choose the groups of activations, so where one scale for each token is wished they
/// are quantised again, with one scale for each row.
fn pack_int8(
    backend: &CpuBackend,
    data: WeightData,
    shape: [usize; 2],
    wished: Granularity,
) -> Result<Packed> {
    let stored = stored_granularity(&data)
        .filter(|stored| *stored == Granularity::Row || wished != Granularity::Row);
    let team = &backend.team;
    let packed = match (&data, stored) {
        (WeightData::Int8(data), Some(granularity)) => {
            QuantisedWeight::from_rows(team, shape, granularity, |row, values, scales| {
                values.copy_from_slice(&data.values[row * values.len()..][..values.len()]);
                scales.copy_from_slice(&data.scales[row * scales.len()..][..scales.len()]);
            })
        }
        _ => {
            let granularity = granularity_of_weights(backend, &data, shape);
            QuantisedWeight::quantise(backend.isa, team, shape, granularity, |row, out| {
                data.widen_row(row, out)
            })
        }
    };
    let weight = packed.map_err(|error| match error {
        PackError::OutOfMemory { requested } => out_of_memory(requested),
        PackError::NonFinite { .. } => BackendError::InvalidWeights(error.to_string()),
    })?;
    Ok(Packed::Int8 {
        activations: weight.granularity().of_activations(wished),
        weight: Rc::new(weight),
    })
}

/// Which weights share a scale where this target quantises them.
fn granularity_of_weights(
    backend: &CpuBackend,
    data: &WeightData,
    [rows, columns]: [usize; 2],
) -> Granularity {
    match backend.precision {
        Precision::Int8Blocks => Granularity::Groups(BLOCK),
        Precision::Int8Guarded => {
            let sample = guard::sample(rows);
            let poor = AtomicUsize::new(0);
            backend.team.run(sample.len(), &|index| {
                let mut wide = vec![0.0; columns];
                data.widen_row(sample[index], &mut wide);
                poor.fetch_add(usize::from(guard::is_poor(&wide)), Ordering::Relaxed);
            });
            guard::granularity(poor.into_inner(), sample.len())
        }
        _ => Granularity::Row,
    }
}

/// Which integers of a row share a scale, where the matrix holds integers in groups that the kernels
/// know.
fn stored_granularity(data: &WeightData) -> Option<Granularity> {
    match data {
        WeightData::Int8(data) if data.per_row() => Some(Granularity::Row),
        WeightData::Int8(data) if data.group_len.is_multiple_of(LEAST_GROUP) => {
            Some(Granularity::Groups(data.group_len))
        }
        _ => None,
    }
}

/// Groups of weights are multiples of this.
const LEAST_GROUP: usize = 16;

fn out_of_memory(requested: usize) -> BackendError {
    BackendError::OutOfMemory {
        requested,
        purpose: "weights",
    }
}
