// activation(gate) ⊙ up, with the 8-bit form of the row for the projection that follows.
//
// x [rows, 2·columns] = [gate | up] → out [rows, columns]. One block per row; memory-bound.
#include "common.cuh"

struct Gated {
    const float* gate;
    const float* up;
    i32 kind;
    float cap;
    DEV_METHOD float operator()(i32 column) const {
        return fmul(activation_of(gate[column], kind, cap), up[column]);
    }
};

KERNEL(256, 4) gated(const float* x, float* out, i8* q, float* step, i32 pitch, i32 columns, i32 kind, float cap,
                     i32 q_pitch, i32 granularity) {
    after_earlier_kernels();
    SHARED_STATIC(u32, memory, ROW_WARPS);
    const float* gate = x + static_cast<i64>(block_x()) * pitch;
    Gated source = {gate, gate + columns, kind, cap};
    produce_row(source, row_output(out, q, step, block_x(), columns, q_pitch, granularity), memory);
}
REGISTER_KERNEL(gated, 256)
