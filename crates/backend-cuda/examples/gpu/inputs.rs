//! Numbers and batches that every machine makes alike.

use backend::{Backend, Batch, BatchSequence, HostTensor, Result, WeightData};

/// Numbers in [-1, 1).
pub fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// One sequence's next `count` tokens, its blocks in reverse.
pub fn tokens(position: usize, count: usize) -> Batch {
    Batch {
        token_ids: vec![0; count],
        sequences: vec![BatchSequence {
            num_tokens: count,
            num_computed_tokens: position,
            block_table: (0..(position + count).div_ceil(32) as u32).rev().collect(),
        }],
        logit_rows: Vec::new(),
        copies: Vec::new(),
    }
}

/// A loaded matrix of such numbers.
pub fn tensor<B: Backend>(
    target: &mut B,
    rows: usize,
    columns: usize,
    seed: u32,
) -> Result<B::Tensor> {
    let data = WeightData::F32(numbers(seed, rows * columns));
    target.load_tensor(HostTensor::new(rows, columns, data)?)
}

/// Equality of bits.
pub fn same(found: &[f32], expected: &[f32]) -> bool {
    let pairs = found.iter().zip(expected);
    found.len() == expected.len() && pairs.into_iter().all(|(a, b)| a.to_bits() == b.to_bits())
}
