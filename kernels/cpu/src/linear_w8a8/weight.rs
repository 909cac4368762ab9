//! 8-bit weight matrices in panels of 32 outputs, made once at load.
//!
//! Layout: `[panel][inputs / 4][32 outputs][4 inputs]`, a byte each, 128 added. One vector of 64 bytes
//! is sixteen outputs by four inputs, which meet four activations in one broadcast word. Inputs are
//! padded to fours and outputs to panels; activations are zero at padded inputs, and padded outputs
//! are not stored.

use std::sync::atomic::{AtomicUsize, Ordering};

use quant::{Granularity, Quantised};

use super::STEP_BYTES;
use crate::aligned::AlignedBuf;
use crate::dot::{OFFSET, STEP};
use crate::isa::Isa;
use crate::linear::PANEL_WIDTH;
use crate::quantise::{RowLayout, quantise};
use crate::runner::{TaskRunner, for_each_chunk_pair};

/// A weight matrix `[outputs, inputs]`: bytes in panels and one scale per output.
#[derive(Debug)]
pub struct QuantisedWeight {
    outputs: usize,
    inputs: usize,
    bytes: AlignedBuf<u8>,
    /// One per output, padding included.
    scales: AlignedBuf<f32>,
}

/// Why a matrix could not be packed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Memory cannot be had.
    #[error("{requested} bytes for weights cannot be had")]
    OutOfMemory {
        /// Bytes asked for.
        requested: usize,
    },
    /// NaN or an infinity has no 8-bit form.
    #[error("weights of output {output} are not finite")]
    NonFinite {
        /// The first such output.
        output: usize,
    },
}

impl QuantisedWeight {
    /// Quantises and packs, a panel per task. `read_row` writes the weights of one output, `inputs`
    /// numbers, so that no wide copy of the matrix is needed.
    ///
    /// # Errors
    /// [`PackError`].
    ///
    /// # Panics
    /// When a dimension is zero.
    pub fn quantise(
        isa: Isa,
        runner: &dyn TaskRunner,
        [outputs, inputs]: [usize; 2],
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, PackError> {
        let layout = RowLayout::new(inputs, Granularity::Row);
        let first_bad = AtomicUsize::new(usize::MAX);
        let packed = Self::pack(runner, [outputs, inputs], |first, panel, scales| {
            let mut row = vec![0.0; inputs];
            let mut words = vec![0; layout.row_words()];
            for (column, scale) in scales.iter_mut().enumerate() {
                let output = first + column;
                if output == outputs {
                    break;
                }
                read_row(output, &mut row);
                quantise(isa, layout, &row, &mut words);
                *scale = f32::from_bits(words[layout.first_scale()]);
                if scale.is_nan() {
                    first_bad.fetch_min(output, Ordering::Relaxed);
                }
                let values = words.iter().map(|word| word.to_ne_bytes());
                put(panel, column, values);
            }
        })?;
        match first_bad.into_inner() {
            usize::MAX => Ok(packed),
            output => Err(PackError::NonFinite { output }),
        }
    }

    /// Packs integers and scales that something else made.
    ///
    /// # Errors
    /// [`PackError::OutOfMemory`].
    ///
    /// # Panics
    /// When a dimension is zero, or rows have more than one scale.
    pub fn from_quantised(runner: &dyn TaskRunner, weight: &Quantised) -> Result<Self, PackError> {
        let (outputs, inputs) = (weight.rows(), weight.columns());
        assert_eq!(weight.scales().len(), outputs, "one scale per output");
        Self::pack(runner, [outputs, inputs], |first, panel, scales| {
            let known = &weight.scales()[first..];
            for (column, (scale, known)) in scales.iter_mut().zip(known).enumerate() {
                *scale = *known;
                let start = (first + column) * inputs;
                let values = weight.values()[start..start + inputs].chunks(STEP);
                let values = values.map(|values| {
                    std::array::from_fn(|i| values.get(i).map_or(0, |value| *value as u8))
                });
                put(panel, column, values);
            }
        })
    }

    /// Calls `fill` with the first output, the bytes and the scales of every panel.
    fn pack(
        runner: &dyn TaskRunner,
        [outputs, inputs]: [usize; 2],
        fill: impl Fn(usize, &mut [u8], &mut [f32]) + Sync,
    ) -> Result<Self, PackError> {
        assert!(outputs > 0 && inputs > 0, "a matrix has outputs and inputs");
        let panels = outputs.div_ceil(PANEL_WIDTH);
        let panel_bytes = inputs.div_ceil(STEP).saturating_mul(STEP_BYTES);
        let requested = panels.saturating_mul(panel_bytes);
        let memory = AlignedBuf::zeroed(requested).zip(AlignedBuf::zeroed(panels * PANEL_WIDTH));
        let (mut bytes, mut scales) = memory.ok_or(PackError::OutOfMemory { requested })?;
        for_each_chunk_pair(
            runner,
            (&mut bytes, panel_bytes),
            (&mut scales, PANEL_WIDTH),
            |panel, bytes, scales| fill(panel * PANEL_WIDTH, bytes, scales),
        );
        Ok(Self {
            outputs,
            inputs,
            bytes,
            scales,
        })
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes of the packed weights and their scales, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.bytes[..]) + size_of_val(&self.scales[..])
    }

    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL_WIDTH)
    }

    pub(super) fn panel(&self, panel: usize) -> &[u8] {
        let len = self.bytes.len() / self.panels();
        &self.bytes[panel * len..(panel + 1) * len]
    }

    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }
}

/// Writes one output's integers, four at a time, to its column of a panel.
fn put(panel: &mut [u8], column: usize, values: impl Iterator<Item = [u8; STEP]>) {
    for (step, values) in panel.chunks_exact_mut(STEP_BYTES).zip(values) {
        let stored = values.map(|value| value ^ OFFSET);
        step[column * STEP..(column + 1) * STEP].copy_from_slice(&stored);
    }
}
