// The 8-bit product of many tokens, tensor-core-bound from about 150 tokens on.
//
// Scales for groups: an accumulator starts each group at the bits of 1.5·2²³, so that its bits, read as a
// float, are that number plus the group's sum, exactly; one subtraction and one fused step promote it, in
// the order of the groups. One scale per row: the sum is one integer, K may be divided among
// blocks (`split`), whose partial sums meet in `workspace`; the last block to arrive runs the epilogue and
// leaves workspace and counter zeroed for the next launch.
#include "gemm_i8.cuh"

struct ProductS8 {
    typedef i32 Sum;
    DEV_METHOD static void weights(u32 (&b)[2], const Words4& words, i32 s) { fragment_b(b, words, s); }
    DEV_METHOD static void mma(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_s8(c, a, b); }
};

template <typename T>
DEV void clear(i32 (&c)[T::TM][T::TN][4], i32 value) {
    for_each_output<T>([&](i32, i32, i32 i, i32 j, i32 k) { c[i][j][k] = value; });
}

// HALVES: a group is half a block, one step of it; otherwise it is one or more whole blocks.
template <typename T, bool HALVES>
DEV void grouped_tile(i8* ring, const i8* x, const i8* w, const Epilogue& e, i32 k_bytes) {
    Operands o = {x, w, e.m, panels_of(e.n), k_bytes, k_bytes};
    i32 blocks = k_bytes / BLOCK_BYTES;
    i32 group_blocks = HALVES ? 1 : e.group / BLOCK_BYTES;
    i32 c[T::TM][T::TN][4];
    float t[T::TM][T::TN][4] = {};
    clear<T>(c, ROUND_BITS);
    auto promote = [&](i32 i, i32 group) {
        for_each_of_rows<T>(i, [&](i32 row, i32 channel, i32, i32 j, i32 k) {
            float sum = fsub(float_of(static_cast<u32>(c[i][j][k])), ROUND_TO_INTEGER);
            t[i][j][k] = ffma(sum, group_scale(e, row, channel, group), t[i][j][k]);
            c[i][j][k] = ROUND_BITS;
        });
    };
    run_tile<T, ProductS8>(
        c, ring, o, 0, blocks,
        [&](i32 b, i32 i, i32 s) {
            if (HALVES && 2 * b + s < e.groups) promote(i, 2 * b + s);  // C14
        },
        [&](i32 b) {
            if (!HALVES && ((b + 1) % group_blocks == 0 || b + 1 == blocks)) {  // C6
                UNROLL
                for (i32 i = 0; i < T::TM; i++) promote(i, b / group_blocks);
            }
        });
    for_each_output<T>([&](i32 row, i32 channel, i32 i, i32 j, i32 k) { finish_s8(e, row, channel, t[i][j][k]); });
}

template <typename T>
DEV void row_tile(i8* ring, const i8* x, const i8* w, const Epilogue& e, i32 k_bytes, const Divided& divided) {
    Operands o = {x, w, e.m, panels_of(e.n), k_bytes, k_bytes};
    i32 blocks = k_bytes / BLOCK_BYTES;
    i32 share = (blocks + grid_z() - 1) / grid_z();
    i32 first = block_z() * share < blocks ? block_z() * share : blocks;
    i32 end = first + share < blocks ? first + share : blocks;
    i32 c[T::TM][T::TN][4] = {};
    run_tile<T, ProductS8>(c, ring, o, first, end, [](i32, i32, i32) {}, [](i32) {});
    finish_row_sums<T>(c, e, divided);
}

// x [m, k_bytes], w in P64; workspace [tiles][BM·BN] and counters [tiles] are zero before and after and
// are read when the grid has a depth above one. The form for groups of half a block is a kernel of its own,
// so that its registers do not burden the other.
#define GEMM_I8_TILE(BM, BN, WM, WN, STAGES, MIN_BLOCKS)                                                                          \
    KERNEL(32 * WM * WN, MIN_BLOCKS) gemm_i8_tile_##BM##x##BN(                                                                    \
        const i8* x, const i8* w, const float* s_x, const float* s_w, const float* bias, float* y, i32 m, i32 n, i32 k_bytes,     \
        i32 groups, i32 group, i32 grouped_weights, i32 y_pitch, i32 accumulate, i32* workspace, u32* counters, i32 tiles_n) {    \
        SHARED_DYNAMIC(i8, ring);                                                                                                 \
        typedef Tile<BM, BN, WM, WN, STAGES> T;                                                                                   \
        Epilogue e = {s_x, s_w, bias, y, m, n, y_pitch, groups, group, grouped_weights, accumulate};                              \
        if (is_one_sum(e)) {                                                                                                      \
            row_tile<T>(ring, x, w, e, k_bytes, {workspace, counters, block_y() * tiles_n + block_x()});                          \
        } else {                                                                                                                  \
            grouped_tile<T, false>(ring, x, w, e, k_bytes);                                                                       \
        }                                                                                                                         \
    }                                                                                                                             \
    REGISTER_KERNEL(gemm_i8_tile_##BM##x##BN, 32 * WM * WN)                                                                       \
    KERNEL(32 * WM * WN, MIN_BLOCKS) gemm_i8_blocks_##BM##x##BN(                                                                  \
        const i8* x, const i8* w, const float* s_x, const float* s_w, const float* bias, float* y, i32 m, i32 n, i32 k_bytes,     \
        i32 groups, i32 group, i32 grouped_weights, i32 y_pitch, i32 accumulate) {                                                \
        SHARED_DYNAMIC(i8, ring);                                                                                                 \
        Epilogue e = {s_x, s_w, bias, y, m, n, y_pitch, groups, group, grouped_weights, accumulate};                              \
        grouped_tile<Tile<BM, BN, WM, WN, STAGES>, true>(ring, x, w, e, k_bytes);                                                 \
    }                                                                                                                             \
    REGISTER_KERNEL(gemm_i8_blocks_##BM##x##BN, 32 * WM * WN)

GEMM_I8_TILE(32, 64, 2, 2, 4, 2)
GEMM_I8_TILE(64, 64, 2, 2, 4, 2)
GEMM_I8_TILE(128, 128, 2, 4, 3, 1)
