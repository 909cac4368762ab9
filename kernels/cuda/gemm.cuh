// The skeleton of both matrix kernels: the weight layout P64, fragments, and what happens to a sum.
//
// Y[M, N] = X[M, K] · W[N, K]ᵀ. P64 holds W as [N/16][K/64][half][lane][16 bytes], K counted in bytes:
// lane (g, q) of a half owns bytes 64·b + 16·q … + 15 of channel 8·half + g. A product may visit k in any
// order that both operands share, so the four words of a lane feed two steps: words 0 and 1, then 2
// and 3. X is row-major with rows padded to whole blocks by zeros; a lane reads the same sixteen bytes
// of its row. Where scales hold for 32 bytes of K, both operands have K permuted inside each block
// (`place_of`), so that the first step is one group and the second the next.
#pragma once
#include "common.cuh"

#define BLOCK_BYTES 64
#define PANEL_CHANNELS 16
#define PANEL_BYTES 1024

// Everything a finished sum needs; `s_x` is null for 16-bit products.
struct Epilogue {
    const float* s_x;   // [M, groups]
    const float* s_w;   // [N], or [groups, N] where weights have scales for groups
    const float* bias;  // [N] or null
    float* y;           // [M, y_pitch]
    i32 m;
    i32 n;
    i32 y_pitch;
    i32 groups;
    i32 group;            // bytes of K of one group: 32 or whole blocks
    i32 grouped_weights;  // 1 where weights have scales for groups
    i32 accumulate;       // 1 adds to y
};

DEV void finish(const Epilogue& e, i32 row, i32 channel, float y) {
    float* at = e.y + static_cast<i64>(row) * e.y_pitch + channel;
    *at = e.accumulate ? fadd(*at, y) : y;
}

// Whether a product is one integer times two scales.
DEV bool is_one_sum(const Epilogue& e) { return e.groups == 1 && !e.grouped_weights; }

// What the sum of a group is multiplied with.
DEV float group_scale(const Epilogue& e, i32 row, i32 channel, i32 group) {
    if (row >= e.m || channel >= e.n) return 0.0f;
    float scale = e.s_x[row * e.groups + group];
    return e.grouped_weights ? fmul(scale, e.s_w[static_cast<i64>(group) * e.n + channel]) : scale;  // E1
}

// The last step of an 8-bit product: weight scale and bias.
DEV void finish_s8(const Epilogue& e, i32 row, i32 channel, float t) {
    if (row >= e.m || channel >= e.n) return;
    float bias = e.bias ? e.bias[channel] : 0.0f;
    finish(e, row, channel, e.grouped_weights ? fadd(t, bias) : ffma(t, e.s_w[channel], bias));
}

// The two fragments of step `s` from a lane's words of one row and of the row eight below.
DEV void fragment_a(u32 (&a)[4], const Words4& low, const Words4& high, i32 s) {
    a[0] = low.w[2 * s];
    a[1] = high.w[2 * s];
    a[2] = low.w[2 * s + 1];
    a[3] = high.w[2 * s + 1];
}
DEV void fragment_b(u32 (&b)[2], const Words4& words, i32 s) {
    b[0] = words.w[2 * s];
    b[1] = words.w[2 * s + 1];
}

DEV i32 panels_of(i32 channels) { return (channels + PANEL_CHANNELS - 1) / PANEL_CHANNELS; }
