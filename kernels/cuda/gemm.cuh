// The skeleton of both matrix kernels: the weight layout P64, fragments, and what happens to a sum.
//
// Y[M, N] = X[M, K] · W[N, K]ᵀ. P64 holds W as [N/16][K/64][half][lane][16 bytes], K counted in bytes:
// lane (g, q) of a half owns bytes 64·b + 16·q … + 15 of channel 8·half + g. A product may visit k in any
// order that both operands share, so the four words of a lane feed two steps: words 0 and 1, then 2
// and 3. X is row-major with rows padded to whole blocks by zeros; a lane reads the same sixteen bytes
// of its row.
#pragma once
#include "common.cuh"

#define BLOCK_BYTES 64
#define PANEL_CHANNELS 16
#define PANEL_BYTES 1024

// Everything a finished sum needs; `s_x` is null for 16-bit products.
struct Epilogue {
    const float* s_x;   // [M, groups]
    const float* s_w;   // [N]
    const float* bias;  // [N] or null
    float* y;           // [M, y_pitch]
    i32 m;
    i32 n;
    i32 y_pitch;
    i32 groups;
    i32 accumulate;  // 1 adds to y
};

DEV void finish(const Epilogue& e, i32 row, i32 channel, float y) {
    float* at = e.y + static_cast<i64>(row) * e.y_pitch + channel;
    *at = e.accumulate ? fadd(*at, y) : y;
}

// The last step of an 8-bit product: weight scale and bias.
DEV void finish_s8(const Epilogue& e, i32 row, i32 channel, float t) {
    if (row >= e.m || channel >= e.n) return;
    finish(e, row, channel, ffma(t, e.s_w[channel], e.bias ? e.bias[channel] : 0.0f));
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
