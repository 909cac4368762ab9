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

#[cfg(test)]
mod tests {
    use super::*;

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
