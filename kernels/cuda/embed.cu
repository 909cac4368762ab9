// Gathers rows of a table: embeddings by token or by position, and the rows whose logits are wanted.
//
// table [·, pitch] → out [rows, columns]; one block per row; memory-bound. Rows are checked by the
// launcher.
#include "common.cuh"

template <typename T>
DEV void gather_body(const T* table, const i32* rows, float* out, i32 pitch, i32 columns) {
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
