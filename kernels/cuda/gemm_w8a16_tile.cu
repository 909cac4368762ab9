// The product of 16-bit activations with 8-bit weights: where half precision must run and does not fit into
// memory.
//
// The same skeleton; a stage has two blocks of activations for one of weights, which are permuted as for
// scales of 32 columns (`place_of`), so that the first eight of a lane's sixteen bytes meet the first block. A
// byte becomes a half exactly, a group's sum is multiplied with the scale of its weights, and the groups are
// chained in order. Every output adds its products in one order, whatever the number of tokens; K is never
// divided. Bound by reading W once for few tokens, by the 16-bit tensor cores for many.
#include "gemm_tile.cuh"

struct ProductW8A16 {
    typedef float Sum;
    DEV_METHOD static void weights(u32 (&b)[2], const Words4& words, i32 s) { widen_bytes(b, words.w[s]); }
    DEV_METHOD static void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(c, a, b); }
};

template <typename T>
DEV void tile_w8a16(i8* ring, const Operands& o, const Epilogue& e) {
    i32 blocks = o.k_bytes / BLOCK_BYTES;
    bool halves = e.group == HALF_BLOCK;
    i32 group_blocks = halves ? 1 : e.group / BLOCK_BYTES;
    float c[T::TM][T::TN][4] = {};
    float t[T::TM][T::TN][4] = {};
    auto promote = [&](i32 i, i32 group) {
        for_each_of_rows<T>(i, [&](i32, i32 channel, i32, i32 j, i32 k) {
            float scale = channel < e.n ? e.s_w[static_cast<i64>(group) * e.n + channel] : 0.0f;  // W1
            t[i][j][k] = ffma(c[i][j][k], scale, t[i][j][k]);
            c[i][j][k] = 0.0f;  // W2
        });
    };
    run_tile<T, ProductW8A16>(
        c, ring, o, 0, blocks,
        [&](i32 b, i32 i, i32 s) {
            if (halves && s % 2 == 1 && 2 * b + s / 2 < e.groups) promote(i, 2 * b + s / 2);  // W3
        },
        [&](i32 b) {
            if (!halves && ((b + 1) % group_blocks == 0 || b + 1 == blocks)) {  // W4
                UNROLL
                for (i32 i = 0; i < T::TM; i++) promote(i, b / group_blocks);
            }
        });
    for_each_output<T>([&](i32 row, i32 channel, i32 i, i32 j, i32 k) {
        if (row >= e.m || channel >= e.n) return;
        finish(e, row, channel, fadd(t[i][j][k], e.bias ? e.bias[channel] : 0.0f));
    });
}

// x [m, x_bytes] in half precision, w in P64 permuted by halves, s_w [groups, n]; `group` columns of K share a
// scale: 32, whole blocks, or all of `k_bytes`.
#define GEMM_W8A16_TILE(BM, BN, WM, WN, STAGES)                                                                         \
    KERNEL(32 * WM * WN, 2) gemm_w8a16_tile_##BM##x##BN(const i8* x, const i8* w, const float* s_w, const float* bias,  \
                                                        float* y, i32 m, i32 n, i32 x_bytes, i32 k_bytes, i32 groups,   \
                                                        i32 group, i32 y_pitch, i32 accumulate) {                       \
        SHARED_DYNAMIC(i8, ring);                                                                                       \
        Operands o = {x, w, m, panels_of(n), x_bytes, k_bytes};                                                         \
        Epilogue e = {nullptr, s_w, bias, y, m, n, y_pitch, groups, group, 1, accumulate};                              \
        tile_w8a16<Tile<BM, BN, WM, WN, STAGES, 2>>(ring, o, e);                                                        \
    }                                                                                                                   \
    REGISTER_KERNEL(gemm_w8a16_tile_##BM##x##BN, 32 * WM * WN)

GEMM_W8A16_TILE(16, 64, 1, 4, 4)
GEMM_W8A16_TILE(64, 64, 2, 2, 4)
