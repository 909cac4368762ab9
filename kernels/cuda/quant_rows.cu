// The 8-bit form of rows that no producer has quantised, and their 16-bit forms for the products of the
// 16-bit fallback. One block per row; memory-bound.
#include "common.cuh"

// x [rows, pitch] → q [rows, q_pitch], step [rows, groups].
KERNEL(256, 4) quant_rows(const float* x, i8* q, float* step, i32 pitch, i32 columns, i32 q_pitch, i32 granularity) {
    after_earlier_kernels();
    SHARED_STATIC(u32, memory, ROW_WARPS);
    Plain source = {x + static_cast<i64>(block_x()) * pitch};
    produce_row(source, row_output(nullptr, q, step, block_x(), columns, q_pitch, granularity), memory);
}
REGISTER_KERNEL(quant_rows, 256)

template <typename T>
DEV void round_rows_body(const float* x, T* out, i32 pitch, i32 columns, i32 out_pitch) {
    after_earlier_kernels();
    const float* from = x + static_cast<i64>(block_x()) * pitch;
    T* to = out + static_cast<i64>(block_x()) * out_pitch;
    for (i32 i = thread_index(); i < out_pitch; i += ROW_THREADS) store_as(to + i, i < columns ? from[i] : 0.0f);
}

// x [rows, pitch] → out [rows, out_pitch] with zeros behind the last column.
KERNEL(256, 4) round_rows_f16(const float* x, f16* out, i32 pitch, i32 columns, i32 out_pitch) {
    round_rows_body(x, out, pitch, columns, out_pitch);
}
REGISTER_KERNEL(round_rows_f16, 256)

KERNEL(256, 4) round_rows_bf16(const float* x, bf16* out, i32 pitch, i32 columns, i32 out_pitch) {
    round_rows_body(x, out, pitch, columns, out_pitch);
}
REGISTER_KERNEL(round_rows_bf16, 256)
