// Product of 32-bit floats, for routers: their outputs choose among experts by small differences, so they are
// computed as the CPU target computes them.
//
// x [rows, x_pitch] · w [inputs, outputs] + bias → y [rows, outputs]; one thread per output. The CPU's order:
// one running sum for each 256 inputs, the sums added in order, then the bias. Routers are small: no tiles.
#include "common.cuh"

#define K_BLOCK 256

KERNEL(256, 4) linear_f32(const float* x, const float* w, const float* bias, float* y, i32 x_pitch, i32 inputs,
                          i32 outputs, i32 y_pitch) {
    after_earlier_kernels();
    i32 n = block_y() * ROW_THREADS + thread_index();
    if (n >= outputs) return;
    const float* row = x + static_cast<i64>(block_x()) * x_pitch;
    float total = 0.0f;
    for (i32 first = 0; first < inputs; first += K_BLOCK) {
        i32 end = first + K_BLOCK < inputs ? first + K_BLOCK : inputs;
        float sum = 0.0f;
        for (i32 k = first; k < end; k++) sum = ffma(row[k], w[static_cast<i64>(k) * outputs + n], sum);
        total = first == 0 ? sum : fadd(total, sum);
    }
    y[static_cast<i64>(block_x()) * y_pitch + n] = bias ? fadd(total, bias[n]) : total;
}
REGISTER_KERNEL(linear_f32, 256)
