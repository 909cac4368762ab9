// Gathers rows of a table: embeddings by token or by position, and the rows whose logits are wanted.
//
// table [·, pitch] → out [rows, columns]; one block per row; memory-bound. Rows are checked by the
// launcher. A table that is a matrix of 8 bits as well is read where the products read it.
#include "common.cuh"

template <typename T>
DEV void gather_body(const T* table, const i32* rows, float* out, i32 pitch, i32 columns) {
    after_earlier_kernels();
    const T* from = table + static_cast<i64>(rows[block_x()]) * pitch;
    float* to = out + static_cast<i64>(block_x()) * columns;
    for (i32 i = thread_index(); i < columns; i += ROW_THREADS) to[i] = widen(from[i]);
}

KERNEL(256, 4) embed_f32(const float* table, const i32* rows, float* out, i32 pitch, i32 columns) {
    gather_body(table, rows, out, pitch, columns);
}
REGISTER_KERNEL(embed_f32, 256)

KERNEL(256, 4) embed_bf16(const bf16* table, const i32* rows, float* out, i32 pitch, i32 columns) {
    gather_body(table, rows, out, pitch, columns);
}
REGISTER_KERNEL(embed_bf16, 256)

KERNEL(256, 4) embed_f16(const f16* table, const i32* rows, float* out, i32 pitch, i32 columns) {
    gather_body(table, rows, out, pitch, columns);
}
REGISTER_KERNEL(embed_f16, 256)

// packed: panels of the matrix kernels (gemm.cuh), `k_bytes` to a row; scales [groups][num_rows]. `halves` is 1
// where every sixteen bytes have eight of each half of their block.
KERNEL(256, 4) embed_i8(const i8* packed, const float* scales, const i32* rows, float* out, i32 columns,
                        i32 num_rows, i32 k_bytes, i32 group_len, i32 halves) {
    after_earlier_kernels();
    i32 row = rows[block_x()];
    const i8* panel = packed + static_cast<i64>(row / 16) * 16 * k_bytes + row % 16 / 8 * 512 + row % 8 * 64;
    float* to = out + static_cast<i64>(block_x()) * columns;
    for (i32 i = thread_index(); i < columns; i += ROW_THREADS) {
        i32 byte = halves ? i % 32 / 8 * 16 + i % 64 / 32 * 8 + i % 8 : i % 64;
        float scale = scales[static_cast<i64>(i / group_len) * num_rows + row];
        to[i] = fmul(float_of_int(panel[i / 64 * 1024 + byte]), scale);
    }
}
REGISTER_KERNEL(embed_i8, 256)
