//! Weights on the host: quantised or rounded, and in the order that the kernels read.

use backend::{BackendError, Result, WeightData};
use half::{bf16, f16};
use quant::{BLOCK, Granularity, QuantError, Quantised, guard, quantise_row};

use crate::Precision;
use crate::pack::{halves, pack, padded};

/// Takes stored integers as they are where the kernels know their groups; quantises everything else row by
/// row, each widened alone. Weights in groups choose the groups of activations, so where one scale for
/// each token is wished they are quantised again, with one scale for each row.
pub(super) fn quantise(
    precision: Precision,
    data: WeightData,
    [rows, columns]: [usize; 2],
    wished: Granularity,
) -> Result<Quantised> {
    let stored = stored_granularity(&data)
        .filter(|stored| *stored == Granularity::Row || wished != Granularity::Row);
    let (granularity, values, scales) = match (data, stored) {
        (WeightData::Int8(data), Some(stored)) => (stored, data.values, data.scales),
        (data, _) => {
            let granularity = granularity_of_weights(precision, &data, [rows, columns]);
            let groups = granularity.num_groups(columns);
            let (mut values, mut scales) = (vec![0; rows * columns], vec![0.0; rows * groups]);
            let mut wide = vec![0.0; columns];
            let outputs = values.chunks_mut(columns).zip(scales.chunks_mut(groups));
            for (row, (values, scales)) in outputs.enumerate() {
                data.widen_row(row, &mut wide);
                let count = quantise_row(&wide, granularity, values, scales);
                if count > 0 {
                    let error = QuantError::NonFinite { row, count };
                    return Err(BackendError::InvalidWeights(error.to_string()));
                }
            }
            (granularity, values, scales)
        }
    };
    Quantised::from_parts(values, scales, rows, columns, granularity)
        .map_err(|error| BackendError::InvalidWeights(error.to_string()))
}

/// Which integers of a row share a scale, where the kernels know such groups.
fn stored_granularity(data: &WeightData) -> Option<Granularity> {
    match data {
        WeightData::Int8(data) if data.per_row() => Some(Granularity::Row),
        WeightData::Int8(data) if [32, 64, 128].contains(&data.group_len) => {
            Some(Granularity::Groups(data.group_len))
        }
        _ => None,
    }
}

/// Which weights share a scale where this target quantises them, as on the CPU.
fn granularity_of_weights(
    precision: Precision,
    data: &WeightData,
    [rows, columns]: [usize; 2],
) -> Granularity {
    match precision {
        Precision::Int8Blocks => Granularity::Groups(BLOCK),
        Precision::Int8Guarded | Precision::W8A16 => {
            let sample = guard::sample(rows);
            let mut wide = vec![0.0; columns];
            let mut is_poor = |row: &usize| {
                data.widen_row(*row, &mut wide);
                guard::is_poor(&wide)
            };
            let poor = sample.iter().filter(|row| is_poor(row)).count();
            guard::granularity(poor, sample.len())
        }
        _ => Granularity::Row,
    }
}

/// The integers in the order of the kernels.
pub(super) fn pack_int8(matrix: &Quantised, activations: Granularity) -> Vec<u8> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let values = matrix.values().iter().map(|q| q.cast_unsigned());
    let bytes: Vec<u8> = values.collect();
    match activations {
        Granularity::Groups(BLOCK) => pack(&halves(&bytes, columns), rows, padded(columns)),
        _ => pack(&bytes, rows, columns),
    }
}

/// Scales group by group: neighbouring threads work on neighbouring outputs.
pub(super) fn by_group(matrix: &Quantised) -> Vec<f32> {
    let groups = matrix.granularity().num_groups(matrix.columns());
    let scales = matrix.scales();
    (0..groups)
        .flat_map(|group| scales.iter().skip(group).step_by(groups))
        .copied()
        .collect()
}

pub(super) fn to_f16(data: WeightData) -> Vec<u8> {
    let wide = data.into_f32();
    wide.iter()
        .flat_map(|w| f16::from_f32(*w).to_le_bytes())
        .collect()
}

pub(super) fn to_bf16(data: WeightData) -> Vec<u8> {
    let wide = data.into_f32();
    wide.iter()
        .flat_map(|w| bf16::from_f32(*w).to_le_bytes())
        .collect()
}
