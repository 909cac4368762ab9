// Activations, products and sums of every element, in place. One block per row; memory-bound.
#include "common.cuh"

KERNEL(256, 4) activate(float* x, i32 pitch, i32 columns, i32 kind, float cap) {
    after_earlier_kernels();
    float* row = x + static_cast<i64>(block_x()) * pitch;
    for (i32 i = thread_index(); i < columns; i += ROW_THREADS) row[i] = activation_of(row[i], kind, cap);
}
REGISTER_KERNEL(activate, 256)

KERNEL(256, 4) mul(float* x, const float* y, i32 x_pitch, i32 y_pitch, i32 columns) {
    after_earlier_kernels();
    float* to = x + static_cast<i64>(block_x()) * x_pitch;
    const float* by = y + static_cast<i64>(block_x()) * y_pitch;
    for (i32 i = thread_index(); i < columns; i += ROW_THREADS) to[i] = fmul(to[i], by[i]);
}
REGISTER_KERNEL(mul, 256)

KERNEL(256, 4) add(float* x, const float* y, i32 x_pitch, i32 y_pitch, i32 columns) {
    after_earlier_kernels();
    float* to = x + static_cast<i64>(block_x()) * x_pitch;
    const float* by = y + static_cast<i64>(block_x()) * y_pitch;
    for (i32 i = thread_index(); i < columns; i += ROW_THREADS) to[i] = fadd(to[i], by[i]);
}
REGISTER_KERNEL(add, 256)
