// RMS norm and layer norm of runs of `width` features, with the 8-bit form of the row where a quantised
// product reads it next and a run is the whole row.
//
// x [rows, pitch], weight and bias [columns], out [rows, columns]; one block of 256 threads per row and
// run: the threads are the lanes of the canonical sum. Memory-bound: the row is read three times, from
// cache after the first.
#include "common.cuh"

// One run whose statistics are known.
struct Normalised {
    const float* x;
    const float* weight;
    const float* bias;
    float mean;
    float scale;
    DEV_METHOD float operator()(i32 column) const {
        float scaled = fmul(fsub(x[column], mean), scale);
        return bias ? ffma(scaled, weight[column], bias[column]) : fmul(scaled, weight[column]);
    }
};

// `layer` is 1 for layer norm and 0 for RMS norm. `granularity` quantises runs that are whole rows.
KERNEL(256, 4) norm_rows(const float* x, const float* weight, const float* bias, float* out, i8* q, float* step,
                    i32 pitch, i32 columns, i32 width, i32 layer, float eps, i32 q_pitch, i32 granularity) {
    after_earlier_kernels();
    SHARED_STATIC(float, memory, ROW_WARPS);
    SHARED_STATIC(u32, max_memory, ROW_WARPS);
    i32 row = block_x();
    i32 first = block_y() * width;
    const float* run = x + static_cast<i64>(row) * pitch + first;
    Normalised source = {run, weight + first, bias ? bias + first : nullptr, 0.0f, 0.0f};
    float count = float_of_int(width);
    if (layer) {
        float lane = 0.0f;
        for (i32 i = thread_index(); i < width; i += ROW_THREADS) lane = fadd(lane, run[i]);
        source.mean = fdiv(row_sum(lane, memory), count);
    }
    float lane = 0.0f;
    for (i32 i = thread_index(); i < width; i += ROW_THREADS) {
        float d = fsub(run[i], source.mean);
        lane = ffma(d, d, lane);
    }
    float variance = fdiv(row_sum(lane, memory), count);
    source.scale = fdiv(1.0f, fsqrt(fadd(variance, eps)));
    RowOutput output = row_output(out, q, step, row, columns, q_pitch, granularity);
    output.out += first;
    output.columns = width;
    produce_row(source, output, max_memory);
}
REGISTER_KERNEL(norm_rows, 256)
