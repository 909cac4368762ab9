//! Mistakes in what lets a kernel begin before the one before has ended: waits that are missing, come too late or are
//! not everybody's, and what is fetched before them.

use super::list::{Mutant, Suite, mutant};

const WAIT: &str = "    after_earlier_kernels();\n";

const fn wrong(
    name: &'static str,
    file: &'static str,
    text: &'static str,
    replacement: &'static str,
) -> Mutant {
    mutant(name, file, Suite::Dependent, text, replacement)
}

/// A kernel that never waits.
const fn no_wait(name: &'static str, file: &'static str) -> Mutant {
    wrong(name, file, WAIT, "")
}

pub const MUTANTS: &[Mutant] = &[
    wrong(
        "early-nobody-waits",
        "ptx.cuh",
        "    griddep_wait();    // G1\n",
        "",
    ),
    no_wait("early-norm-no-wait", "norm.cu"),
    no_wait("early-gated-no-wait", "gated.cu"),
    no_wait("early-stream-no-wait", "gemm_i8_stream.cu"),
    no_wait("early-warpgroups-no-wait", "gemm_i8_wgmma.cu"),
    no_wait("early-sampler-no-wait", "sample.cu"),
    wrong(
        "early-tile-no-wait",
        "gemm_tile.cuh",
        "    after_earlier_kernels();  // G4\n",
        "",
    ),
    wrong(
        "early-attention-no-wait",
        "attention.cu",
        "    after_earlier_kernels();\n    QueryTile tile",
        "    QueryTile tile",
    ),
    wrong(
        "early-merge-no-wait",
        "attention.cu",
        "    after_earlier_kernels();\n    SHARED_STATIC(u32, memory, ROW_WARPS);\n",
        "    SHARED_STATIC(u32, memory, ROW_WARPS);\n",
    ),
    // Reads what the host wrote alone, and breaks the chain for who comes next.
    wrong(
        "early-embed-no-wait",
        "embed.cu",
        "i32 pitch, i32 columns) {\n    after_earlier_kernels();\n    const T* from",
        "i32 pitch, i32 columns) {\n    const T* from",
    ),
    wrong(
        "early-embed-waits-at-the-end",
        "embed.cu",
        "    after_earlier_kernels();\n    const T* from = table + static_cast<i64>(rows[block_x()]) * pitch;\n    \
         float* to = out + static_cast<i64>(block_x()) * columns;\n    \
         for (i32 i = thread_index(); i < columns; i += ROW_THREADS) to[i] = widen(from[i]);\n",
        "    const T* from = table + static_cast<i64>(rows[block_x()]) * pitch;\n    \
         float* to = out + static_cast<i64>(block_x()) * columns;\n    \
         for (i32 i = thread_index(); i < columns; i += ROW_THREADS) to[i] = widen(from[i]);\n    \
         after_earlier_kernels();\n",
    ),
    wrong(
        "early-rotation-before-the-wait",
        "rope_store_kv.cu",
        "    after_earlier_kernels();\n    const float* angles = half > 0 ? table + static_cast<i64>(positions[row]) * 2 * half : nullptr;\n    \
         if (q && half > 0) rotate_row(q + static_cast<i64>(row) * q_pitch, angles, num_heads, head_dim, half);\n",
        "    const float* angles = half > 0 ? table + static_cast<i64>(positions[row]) * 2 * half : nullptr;\n    \
         if (q && half > 0) rotate_row(q + static_cast<i64>(row) * q_pitch, angles, num_heads, head_dim, half);\n    \
         after_earlier_kernels();\n",
    ),
    wrong(
        "early-exit-before-the-wait",
        "attention.cu",
        "    after_earlier_kernels();\n    QueryTile tile = tiles[block_x()];\n    i32 share = a.num_heads / a.num_kv_heads;\n    \
         i32 kv_head = block_y() / share;\n    i32 first_flat = block_y() % share * ROWS;\n    \
         i32 num_rows = tile.num_tokens * share - first_flat;\n    if (num_rows <= 0) return;\n",
        "    QueryTile tile = tiles[block_x()];\n    i32 share = a.num_heads / a.num_kv_heads;\n    \
         i32 kv_head = block_y() / share;\n    i32 first_flat = block_y() % share * ROWS;\n    \
         i32 num_rows = tile.num_tokens * share - first_flat;\n    if (num_rows <= 0) return;\n    after_earlier_kernels();\n",
    ),
    wrong(
        "early-tokens-before-the-wait",
        "gemm_tile.cuh",
        "        if (first + s < end) fill_weights<T>(ring + s * T::STAGE_BYTES, o, first + s);\n",
        "        if (first + s < end) fill_weights<T>(ring + s * T::STAGE_BYTES, o, first + s);\n        \
         if (s == 0 && first < end) fill_tokens<T>(ring, o, first);\n",
    ),
    wrong(
        "early-tokens-of-warpgroups",
        "gemm_i8_wgmma.cu",
        "        if (first + s < end) fill_weights_of<T>(ring + s * T::STAGE_BYTES, from, first + s);\n",
        "        if (first + s < end) fill_weights_of<T>(ring + s * T::STAGE_BYTES, from, first + s);\n        \
         if (s == 0 && first < end) fill_tokens_of<T>(ring, from, first);\n",
    ),
    wrong(
        "early-one-thread-waits",
        "gemm_i8_stream.cu",
        "    after_earlier_kernels();\n    float t;\n",
        "    if (thread_index() == 0) after_earlier_kernels();\n    block_sync();\n    float t;\n",
    ),
    wrong(
        "early-prefetch-behind-the-weights",
        "gemm_i8_stream.cu",
        "bytes < STREAM_PREFETCH ? bytes : STREAM_PREFETCH);  // G3",
        "STREAM_PREFETCH);",
    ),
    wrong(
        "early-scale-before-the-wait",
        "gemm_i8_stream.cu",
        "    after_earlier_kernels();\n    float t;\n",
        "    if (e.s_x[0] == -1.0f) return;\n    after_earlier_kernels();\n    float t;\n",
    ),
];
