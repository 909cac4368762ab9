//! Weight matrices packed for `linear`: panels of 32 outputs, made once at load.

use half::bf16;

use crate::aligned::{AlignedBuf, Element};
use crate::runner::{TaskRunner, for_each_chunk};
use crate::simd::LEAST_BF16;

/// Outputs of one panel.
pub const PANEL_WIDTH: usize = 32;

/// A weight matrix `[outputs, inputs]` in panels; the last one is padded with zeros.
#[derive(Debug)]
pub struct LinearWeight {
    outputs: usize,
    inputs: usize,
    storage: Storage,
}

/// The panels, one after the other.
#[derive(Debug)]
pub(super) enum Storage {
    /// `[panel][input][32]`.
    F32(AlignedBuf<f32>),
    /// `[panel][input / 2][32]`, even inputs in the low halves.
    Bf16(AlignedBuf<u32>),
}

impl LinearWeight {
    /// Packs 32-bit weights, row-major `[outputs, inputs]`; none when memory cannot be had.
    ///
    /// # Panics
    /// When a dimension is zero or the length is not their product.
    pub fn pack_f32(
        runner: &dyn TaskRunner,
        weight: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Option<Self> {
        let words = pack(runner, weight, [outputs, inputs], inputs, |row, words| {
            for (k, w) in row.iter().enumerate() {
                words[k * PANEL_WIDTH] = *w;
            }
        })?;
        Some(Self {
            outputs,
            inputs,
            storage: Storage::F32(words),
        })
    }

    /// Packs 16-bit weights, row-major `[outputs, inputs]`; none when memory cannot be had.
    ///
    /// # Panics
    /// When a dimension is zero or the length is not their product.
    pub fn pack_bf16(
        runner: &dyn TaskRunner,
        weight: &[bf16],
        outputs: usize,
        inputs: usize,
    ) -> Option<Self> {
        let words = pack_pairs(runner, weight, outputs, inputs, |w| w)?;
        Some(Self {
            outputs,
            inputs,
            storage: Storage::Bf16(words),
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

    /// Bytes of the packed weights, padding included.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::F32(words) => size_of_val(&words[..]),
            Storage::Bf16(words) => size_of_val(&words[..]),
        }
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// A weight matrix for products with activations of 16 bits: panels as of [`LinearWeight`].
#[derive(Debug)]
pub struct Bf16Weight {
    outputs: usize,
    inputs: usize,
    words: AlignedBuf<u32>,
}

impl Bf16Weight {
    /// Packs weights, row-major `[outputs, inputs]`, with zeros for those below 2⁻⁵⁶; none when memory
    /// cannot be had.
    ///
    /// # Panics
    /// When a dimension is zero or the length is not their product.
    pub fn pack(
        runner: &dyn TaskRunner,
        weight: &[bf16],
        outputs: usize,
        inputs: usize,
    ) -> Option<Self> {
        let words = pack_pairs(runner, weight, outputs, inputs, |w| {
            if w.to_f32().abs() < LEAST_BF16 {
                bf16::ZERO
            } else {
                w
            }
        })?;
        Some(Self {
            outputs,
            inputs,
            words,
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

    /// Bytes of the packed weights, padding included.
    pub fn bytes(&self) -> usize {
        size_of_val(self.words())
    }

    pub(super) fn words(&self) -> &[u32] {
        &self.words
    }
}

/// Panels of pairs, each weight as `keep` leaves it.
fn pack_pairs(
    runner: &dyn TaskRunner,
    weight: &[bf16],
    outputs: usize,
    inputs: usize,
    keep: impl Fn(bf16) -> bf16 + Sync,
) -> Option<AlignedBuf<u32>> {
    let steps = inputs.div_ceil(2);
    pack(runner, weight, [outputs, inputs], steps, |row, words| {
        for (step, pair) in row.chunks(2).enumerate() {
            let high = pair.get(1).map_or(0, |w| keep(*w).to_bits());
            let low = keep(pair[0]).to_bits();
            words[step * PANEL_WIDTH] = u32::from(low) | u32::from(high) << 16;
        }
    })
}

/// Calls `fill` with every row of the matrix and the words of its panel from the row's column on.
fn pack<T: Sync, W: Element>(
    runner: &dyn TaskRunner,
    weight: &[T],
    [outputs, inputs]: [usize; 2],
    steps: usize,
    fill: impl Fn(&[T], &mut [W]) + Sync,
) -> Option<AlignedBuf<W>> {
    assert!(outputs > 0 && inputs > 0, "a matrix has outputs and inputs");
    assert_eq!(Some(weight.len()), outputs.checked_mul(inputs));
    let panel_len = steps * PANEL_WIDTH;
    let mut words =
        AlignedBuf::zeroed_for_streaming(outputs.div_ceil(PANEL_WIDTH).checked_mul(panel_len)?)?;
    for_each_chunk(runner, &mut words, panel_len, |panel, words| {
        let first = panel * PANEL_WIDTH;
        for column in 0..PANEL_WIDTH.min(outputs - first) {
            let row = &weight[(first + column) * inputs..(first + column + 1) * inputs];
            fill(row, &mut words[column..]);
        }
    });
    Some(words)
}
