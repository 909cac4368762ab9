// What kernels share: functions of one variable, reductions over a warp and a block, and the
// quantisation of a row. Every float operation is spelled, so that no compiler fuses or reorders it
// and the bits are those of the CPU target.
#pragma once
#include "ptx.cuh"

// 1.5·2²³: a float near it holds a small integer in its low bits.
#define ROUND_TO_INTEGER 12582912.0f
#define ROUND_BITS 0x4B400000u
#define LOG2_E 1.44269504088896340736f
#define LN_2 0.693147180559945309417f

// 2^x: round, six fused steps, exponent add.
DEV float exp2_det(float x) {
    x = -127.0f > x ? -127.0f : x;
    x = 128.0f < x ? 128.0f : x;
    float shifted = fadd(x, ROUND_TO_INTEGER);
    float fraction = fsub(x, fsub(shifted, ROUND_TO_INTEGER));
    float p = 0.00015353362f;
    p = ffma(p, fraction, 0.0013398875f);
    p = ffma(p, fraction, 0.009618437f);
    p = ffma(p, fraction, 0.055503324f);
    p = ffma(p, fraction, 0.24022648f);
    p = ffma(p, fraction, LN_2);
    p = ffma(p, fraction, 1.0f);
    return fmul(p, float_of((bits_of(shifted) << 23) + 0x3f800000u));
}

DEV float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

DEV float one_plus_exp_neg(float x) { return fadd(1.0f, exp2_det(fmul(x, -LOG2_E))); }

DEV float tanh_det(float x) {
    float z = fmul(x, x);
    float p = -0.0055284344f;
    p = ffma(p, z, 0.020483317f);
    p = ffma(p, z, -0.053692967f);
    p = ffma(p, z, 0.13330899f);
    p = ffma(p, z, -0.33333263f);
    float near = ffma(fmul(x, z), p, x);
    float size = magnitude(x);
    float power = exp2_det(fmul(size, 2.0f * LOG2_E));
    float far = fsub(1.0f, fdiv(2.0f, fadd(power, 1.0f)));
    far = x < 0.0f ? fsub(0.0f, far) : far;
    return size < 0.625f ? near : far;
}

DEV float gelu_det(float x) {
    float a = magnitude(x);
    float t = fdiv(1.0f, ffma(a, 0.3f, 1.0f));
    float p = 0.035674807f;
    p = ffma(p, t, -0.15720321f);
    p = ffma(p, t, 0.20635372f);
    p = ffma(p, t, -0.05368374f);
    p = ffma(p, t, 0.12856172f);
    p = ffma(p, t, 0.09991346f);
    p = ffma(p, t, 0.12075396f);
    p = ffma(p, t, 0.1196293f);
    float power = exp2_det(fmul(fmul(a, a), -0.5f * LOG2_E));
    float below = fmul(x, fmul(fmul(p, t), power));
    return x < 0.0f ? below : fsub(x, below);
}

// Numbers of the activations, as the launcher passes them.
#define SILU 0
#define GELU 1
#define GELU_TANH 2
#define RELU 3
#define SOFT_CAP 4

DEV float activation_of(float x, i32 kind, float cap) {
    switch (kind) {
        case SILU:
            return fdiv(x, one_plus_exp_neg(x));
        case GELU:
            return gelu_det(x);
        case GELU_TANH: {
            float cube = fmul(fmul(x, x), x);
            return fdiv(x, one_plus_exp_neg(fmul(ffma(cube, 0.044715f, x), 1.595769f)));
        }
        case RELU:
            return x < 0.0f ? 0.0f : x;
        default:
            return fmul(cap, tanh_det(fdiv(x, cap)));
    }
}

DEV float warp_sum(float x) {
    UNROLL
    for (i32 distance = 16; distance > 0; distance /= 2) x = fadd(x, float_of(shfl_xor(bits_of(x), distance)));
    return x;
}

// Maximum of bit patterns over groups of neighbouring lanes: the order of floats that are not negative,
// with NaN above everything.
DEV u32 lanes_max(u32 x, i32 lanes) {
    for (i32 distance = lanes / 2; distance > 0; distance /= 2) {
        u32 other = shfl_xor(x, distance);
        x = other > x ? other : x;
    }
    return x;
}

// A block that works on one row.
#define ROW_THREADS 256
#define ROW_WARPS 8

// The canonical sum: 256 strided lanes, a butterfly in each warp, the warps in order. `memory` holds
// eight floats and is free again for the next sum.
DEV float row_sum(float lane_sum, float* memory) {
    i32 warp = thread_index() / 32;
    float x = warp_sum(lane_sum);
    if (thread_index() % 32 == 0) memory[warp] = x;
    block_sync();  // A1
    float total = memory[0];
    UNROLL
    for (i32 i = 1; i < ROW_WARPS; i++) total = fadd(total, memory[i]);
    block_sync();  // A2
    return total;
}

struct Scale {
    float step;
    float inverse;
};

// From the bits of the largest magnitude; not a finite number gives a NaN step and zeros.
DEV Scale scale_of(u32 absmax) {
    Scale scale = {0.0f, 0.0f};
    if (absmax >= 0x7f800000u) {
        scale.step = float_of(0x7fc00000u);
    } else if (float_of(absmax) >= 1e-30f) {
        scale.step = fdiv(float_of(absmax), 127.0f);
        scale.inverse = fdiv(127.0f, float_of(absmax));
    }
    return scale;
}

DEV u32 quantised(float x, Scale scale) {
    if (scale.inverse == 0.0f) return 0;
    return (bits_of(fadd(fmul(x, scale.inverse), ROUND_TO_INTEGER)) - ROUND_BITS) & 0xffu;
}

// How rows are quantised: not, with one scale, or with one for each group of this many columns. A warp
// has 128 columns at a time, which are whole groups of 128, 64 or 32.
#define NOT_QUANTISED 0
#define PER_ROW 1
#define WARP_COLUMNS 128
// Groups that end inside one block of the matrix kernels (gemm.cuh).
#define HALF_BLOCK 32

// Where the results of a row go; any pointer may be null.
struct RowOutput {
    float* out;   // as 32-bit floats
    i8* q;        // as integers, `q_pitch` of them, zeros behind the last
    float* step;  // one per row or per group of columns
    i32 columns;
    i32 q_pitch;
    i32 granularity;
};

// Numbers as they are.
struct Plain {
    const float* x;
    DEV_METHOD float operator()(i32 i) const { return x[i]; }
};

// Where column `first`, a multiple of four, and the three after it lie. Groups of half a block lie so
// that each lane of the matrix kernels has eight columns of both in its sixteen bytes.
DEV i32 place_of(i32 first, i32 granularity) {
    if (granularity != HALF_BLOCK) return first;
    i32 in_half = first % 32;
    return first / 64 * 64 + in_half / 8 * 16 + first % 64 / 32 * 8 + in_half % 8;
}

// Four neighbouring numbers of one thread, as integers, zeros behind the last column.
DEV void quantise_four(const float (&y)[4], const RowOutput& row, i32 first, Scale scale) {
    u32 word = 0;
    UNROLL
    for (i32 i = 0; i < 4; i++) {
        if (first + i < row.columns) word |= quantised(y[i], scale) << (8 * i);
    }
    *reinterpret_cast<u32*>(row.q + place_of(first, row.granularity)) = word;
}

// Computes `source(column)` for a whole row by a block of ROW_THREADS, and its 8-bit form. Groups lie
// within a warp's columns and are quantised as they are made; a whole row in a second pass, which
// computes its numbers again. `memory` holds eight words.
template <typename Source>
DEV void produce_row(const Source& source, const RowOutput& row, u32* memory) {
    u32 row_max = 0;
    i32 end = row.granularity == NOT_QUANTISED ? row.columns : row.q_pitch;
    // All lanes of a warp go round together: groups are a warp's affair.
    for (i32 base = thread_index() / 32 * WARP_COLUMNS; base < end; base += ROW_WARPS * WARP_COLUMNS) {
        i32 first = base + thread_index() % 32 * 4;
        u32 absmax = 0;
        float y[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        UNROLL
        for (i32 i = 0; i < 4; i++) {
            i32 column = first + i;
            if (column < row.columns) {
                y[i] = source(column);
                if (row.out) row.out[column] = y[i];
                u32 size = bits_of(y[i]) & 0x7fffffffu;
                absmax = size > absmax ? size : absmax;
            }
        }
        if (row.granularity > PER_ROW) {
            Scale scale = scale_of(lanes_max(absmax, row.granularity / 4));
            if (first < row.q_pitch) quantise_four(y, row, first, scale);  // A4
            if (first % row.granularity == 0 && first < row.columns) row.step[first / row.granularity] = scale.step;
        }
        row_max = absmax > row_max ? absmax : row_max;
    }
    if (row.granularity != PER_ROW) return;
    row_max = lanes_max(row_max, 32);
    if (thread_index() % 32 == 0) memory[thread_index() / 32] = row_max;
    block_sync();  // A3
    UNROLL
    for (i32 i = 0; i < ROW_WARPS; i++) row_max = memory[i] > row_max ? memory[i] : row_max;
    Scale scale = scale_of(row_max);
    for (i32 first = thread_index() * 4; first < row.q_pitch; first += ROW_THREADS * 4) {
        float y[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        UNROLL
        for (i32 i = 0; i < 4; i++) {
            if (first + i < row.columns) y[i] = source(first + i);
        }
        quantise_four(y, row, first, scale);
    }
    if (thread_index() == 0) row.step[0] = scale.step;
}

// The output of one row of a tensor [rows, columns] whose 8-bit twin lies beside it.
DEV RowOutput row_output(float* out, i8* q, float* step, i32 row, i32 columns, i32 q_pitch, i32 granularity) {
    RowOutput output = {nullptr, nullptr, nullptr, columns, q_pitch, granularity};
    if (out) output.out = out + static_cast<i64>(row) * columns;
    if (granularity != NOT_QUANTISED) {
        i32 steps = granularity == PER_ROW ? 1 : (columns + granularity - 1) / granularity;
        output.q = q + static_cast<i64>(row) * q_pitch;
        output.step = step + static_cast<i64>(row) * steps;
    }
    return output;
}
