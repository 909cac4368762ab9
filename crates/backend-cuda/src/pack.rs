//! The weight layout of the matrix kernels, P64 (`kernels/cuda/gemm.cuh`), and its inverse.

/// Bytes of K in one block.
pub(crate) const BLOCK_BYTES: usize = 64;
/// Channels of one panel.
pub(crate) const PANEL_CHANNELS: usize = 16;

/// Bytes of a row padded to whole blocks.
pub(crate) fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Where byte `k` of channel `n` lies: `[N/16][K/64][half][lane][16 bytes]`, lane `(g, q)` owning bytes
/// `16·q … + 15` of the block's channel `g` in its half.
fn place(n: usize, k: usize, k_bytes: usize) -> usize {
    let (panel, channel) = (n / PANEL_CHANNELS, n % PANEL_CHANNELS);
    let (block, byte) = (k / BLOCK_BYTES, k % BLOCK_BYTES);
    let (half, g) = (channel / 8, channel % 8);
    let lane = g * 4 + byte / 16;
    (((panel * (k_bytes / BLOCK_BYTES) + block) * 2 + half) * 32 + lane) * 16 + byte % 16
}

/// Packs rows of bytes; what is missing to whole panels and blocks becomes zero.
pub(crate) fn pack(rows: &[u8], num_rows: usize, row_bytes: usize) -> Vec<u8> {
    let k_bytes = padded(row_bytes);
    let mut packed = vec![0; num_rows.next_multiple_of(PANEL_CHANNELS) * k_bytes];
    for n in 0..num_rows {
        let row = &rows[n * row_bytes..(n + 1) * row_bytes];
        for (chunk, bytes) in row.chunks(16).enumerate() {
            let at = place(n, chunk * 16, k_bytes);
            packed[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    packed
}

/// Rows whose scales hold for half a block, permuted as the kernels' `place_of` does: every sixteen bytes
/// have eight of each half of their block. What is missing to whole blocks becomes zero.
pub(crate) fn halves(rows: &[u8], row_bytes: usize) -> Vec<u8> {
    let pitch = padded(row_bytes);
    let mut permuted = vec![0; rows.len() / row_bytes * pitch];
    for (row, to) in rows.chunks(row_bytes).zip(permuted.chunks_mut(pitch)) {
        for (index, bytes) in row.chunks(8).enumerate() {
            let (block, half, lane) = (index / 8, index / 4 % 2, index % 4);
            let at = block * BLOCK_BYTES + lane * 16 + half * 8;
            to[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
    permuted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_block_share_each_sixteen_bytes() {
        let rows: Vec<u8> = (1..=200).collect();
        let permuted = halves(&rows, 100);
        assert_eq!(permuted.len(), 2 * 128);
        for (k, byte) in rows[100..].iter().enumerate() {
            let (block, half, rest) = (k / 64, k % 64 / 32, k % 32);
            let at = 128 + block * 64 + rest / 8 * 16 + half * 8 + rest % 8;
            assert_eq!(permuted[at], *byte, "{k}");
        }
        assert_eq!(permuted.iter().filter(|byte| **byte == 0).count(), 56);
    }

    #[test]
    fn every_byte_has_one_place_and_padding_is_zero() {
        for (rows, bytes) in [(1, 1), (16, 64), (17, 65), (40, 200), (33, 128)] {
            let data: Vec<u8> = (0..rows * bytes).map(|i| (i % 251) as u8 + 1).collect();
            let packed = pack(&data, rows, bytes);
            let mut seen = vec![false; packed.len()];
            for n in 0..rows {
                for k in 0..bytes {
                    let at = place(n, k, padded(bytes));
                    assert_eq!(packed[at], data[n * bytes + k]);
                    assert!(!std::mem::replace(&mut seen[at], true), "{n} {k}");
                }
            }
            for (byte, seen) in packed.iter().zip(seen) {
                assert!(seen || *byte == 0);
            }
        }
    }
}
