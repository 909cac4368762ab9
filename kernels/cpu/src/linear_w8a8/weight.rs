//! 8-bit weight matrices in panels of 32 outputs, made once at load.
//!
//! Layout: `[panel][inputs / 4][32 outputs][4 inputs]`, a byte each, 128 added. One vector of 64 bytes
//! is sixteen outputs by four inputs, which meet four activations in one broadcast word. Inputs are
//! padded to fours and outputs to panels; activations are zero at padded inputs, and padded outputs
//! are not stored. Scales: `[panel][groups][32 outputs]`, one group where an output has one scale.

use std::sync::atomic::{AtomicUsize, Ordering};

use quant::{Granularity, Quantised};

use super::STEP_BYTES;
use crate::aligned::AlignedBuf;
use crate::dot::{OFFSET, STEP};
use crate::isa::Isa;
use crate::linear::PANEL_WIDTH;
use crate::quantise::{RowLayout, quantise};
use crate::runner::{TaskRunner, for_each_chunk_pair};

/// A weight matrix `[outputs, inputs]`: bytes in panels, and one scale per output or per output and
/// group of inputs.
#[derive(Debug)]
pub struct QuantisedWeight {
    outputs: usize,
    inputs: usize,
    granularity: Granularity,
    bytes: AlignedBuf<u8>,
    /// `[panel][groups][32]`, padding included.
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
    /// NaN or an infinity has no 8-bit form and is no scale.
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
    /// When a dimension is zero, or groups are not a multiple of sixteen inputs.
    pub fn quantise(
        isa: Isa,
        runner: &dyn TaskRunner,
        [outputs, inputs]: [usize; 2],
        granularity: Granularity,
        read_row: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<Self, PackError> {
        let layout = RowLayout::new(inputs, granularity);
        Self::pack(runner, [outputs, inputs], granularity, || {
            let mut row = vec![0.0; inputs];
            let mut words = vec![0; layout.row_words()];
            let read_row = &read_row;
            move |output, values: &mut [i8], scales: &mut [f32]| {
                read_row(output, &mut row);
                quantise(isa, layout, &row, &mut words);
                let integers = words.iter().flat_map(|word| word.to_ne_bytes());
                for (value, integer) in values.iter_mut().zip(integers) {
                    *value = integer as i8;
                }
                let found = &words[layout.first_scale()..layout.first_offset()];
                for (scale, found) in scales.iter_mut().zip(found) {
                    *scale = f32::from_bits(*found);
                }
            }
        })
    }

    /// Packs integers and scales that something else made, a panel per task; the integers may be
    /// anything in −128…127. `read_row` writes the integers of one output, `inputs` of them, and its
    /// scales, one per group.
    ///
    /// # Errors
    /// [`PackError`].
    ///
    /// # Panics
    /// When a dimension is zero, or groups are not a multiple of sixteen inputs.
    pub fn from_rows(
        runner: &dyn TaskRunner,
        shape: [usize; 2],
        granularity: Granularity,
        read_row: impl Fn(usize, &mut [i8], &mut [f32]) + Sync,
    ) -> Result<Self, PackError> {
        Self::pack(runner, shape, granularity, || &read_row)
    }

    /// As [`Self::from_rows`], from a whole matrix.
    ///
    /// # Errors
    /// [`PackError`].
    ///
    /// # Panics
    /// When a dimension is zero, or groups are not a multiple of sixteen inputs.
    pub fn from_quantised(runner: &dyn TaskRunner, weight: &Quantised) -> Result<Self, PackError> {
        let shape = [weight.rows(), weight.columns()];
        Self::from_rows(
            runner,
            shape,
            weight.granularity(),
            |output, values, scales| {
                values.copy_from_slice(weight.row(output));
                scales.copy_from_slice(weight.row_scales(output));
            },
        )
    }

    /// Packs; every task asks `reader` for what writes the integers and scales of an output.
    fn pack<R: FnMut(usize, &mut [i8], &mut [f32])>(
        runner: &dyn TaskRunner,
        [outputs, inputs]: [usize; 2],
        granularity: Granularity,
        reader: impl Fn() -> R + Sync,
    ) -> Result<Self, PackError> {
        assert!(outputs > 0 && inputs > 0, "a matrix has outputs and inputs");
        let groups = RowLayout::new(inputs, granularity).num_groups();
        let panels = outputs.div_ceil(PANEL_WIDTH);
        let panel_bytes = inputs.div_ceil(STEP).saturating_mul(STEP_BYTES);
        let panel_scales = groups * PANEL_WIDTH;
        let requested = panels.saturating_mul(panel_bytes);
        let memory = AlignedBuf::zeroed_for_streaming(requested)
            .zip(AlignedBuf::zeroed_for_streaming(panels * panel_scales));
        let (mut bytes, mut scales) = memory.ok_or(PackError::OutOfMemory { requested })?;
        let first_bad = AtomicUsize::new(usize::MAX);
        for_each_chunk_pair(
            runner,
            (&mut bytes, panel_bytes),
            (&mut scales, panel_scales),
            |panel, bytes, scales| {
                let mut read_row = reader();
                let (mut row, mut row_scales) = (vec![0; inputs], vec![0.0; groups]);
                let first = panel * PANEL_WIDTH;
                for column in 0..PANEL_WIDTH.min(outputs - first) {
                    read_row(first + column, &mut row, &mut row_scales);
                    if row_scales.iter().any(|scale| !scale.is_finite()) {
                        first_bad.fetch_min(first + column, Ordering::Relaxed);
                    }
                    put(bytes, column, &row);
                    let places = scales[column..].iter_mut().step_by(PANEL_WIDTH);
                    for (place, scale) in places.zip(&row_scales) {
                        *place = *scale;
                    }
                }
            },
        );
        match first_bad.into_inner() {
            usize::MAX => Ok(Self {
                outputs,
                inputs,
                granularity,
                bytes,
                scales,
            }),
            output => Err(PackError::NonFinite { output }),
        }
    }

    /// Rows of the matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns of the matrix.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Writes the weights of one output as floats, `integer · scale`.
    ///
    /// # Panics
    /// When there is no such output, or `out` is not as long as it has inputs.
    pub fn widen_row(&self, output: usize, out: &mut [f32]) {
        assert!(output < self.outputs, "output {output} of {}", self.outputs);
        assert_eq!(out.len(), self.inputs);
        let (panel, column) = (output / PANEL_WIDTH, output % PANEL_WIDTH);
        let scales = self.panel_scales(panel)[column..]
            .iter()
            .step_by(PANEL_WIDTH);
        let steps = self.panel(panel).chunks_exact(STEP_BYTES);
        let integers = steps.flat_map(|step| &step[column * STEP..(column + 1) * STEP]);
        let mut integers = integers.map(|byte| f32::from((byte ^ OFFSET).cast_signed()));
        let group_len = self.granularity.group_len(self.inputs);
        for (out, scale) in out.chunks_mut(group_len).zip(scales) {
            for (out, integer) in out.iter_mut().zip(&mut integers) {
                *out = integer * scale;
            }
        }
    }

    /// Which weights of an output share a scale.
    pub fn granularity(&self) -> Granularity {
        self.granularity
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

    /// `[groups, 32]`.
    pub(super) fn panel_scales(&self, panel: usize) -> &[f32] {
        let len = self.scales.len() / self.panels();
        &self.scales[panel * len..(panel + 1) * len]
    }
}

/// Writes one output's integers to its column of a panel.
fn put(panel: &mut [u8], column: usize, values: &[i8]) {
    for (step, values) in panel.chunks_exact_mut(STEP_BYTES).zip(values.chunks(STEP)) {
        let places = &mut step[column * STEP..(column + 1) * STEP];
        // Inputs of the last step that do not exist meet activations that are zero.
        places.fill(OFFSET);
        for (place, value) in places.iter_mut().zip(values) {
            *place = *value as u8 ^ OFFSET;
        }
    }
}
