// The 8-bit product of many tokens by warpgroups, for compute capability 9.0 alone, whose tensor cores
// `mma.sync` does not fill.
//
// Tokens are the 64 rows of a warpgroup's product, 128 channels its columns; both operands are read from
// shared memory, where the copies leave them in the order that the tensor cores want: weights come from
// the same P64 as everywhere, no second layout is kept. A stage is two blocks of K, 128 bytes, which are
// one group of activations: its sum starts at zero and is promoted once. Groups of other lengths are
// gemm_i8_tile.cu's. Every sum is the same integer and every float step the same as there.
//
// Stages are filled by `cp.async`, by all threads. Copies by the tensor memory accelerator would free their
// registers and issue slots and could be shared within a cluster of blocks; they want a descriptor made by
// the driver for each tensor, and barriers in shared memory. Not before a device has shown what they gain.
#include "gemm_i8.cuh"
#include "ptx_hopper.cuh"

#define STAGE_ROW 128
#define STAGE_BLOCKS 2
#define PATTERN_BYTES 1024

// BM tokens × 128 channels × 128 bytes of K, a warpgroup for every 64 tokens. Stages are filled STAGES − 2
// ahead: one is being multiplied while the next product is asked for.
template <int BM, int STAGES>
struct WarpgroupTile : Tile<BM, 128, BM / 16, 1, STAGES> {
    static constexpr i32 X_BYTES = BM * STAGE_ROW;
    static constexpr i32 STAGE_BYTES = X_BYTES + 128 * STAGE_ROW;
    static constexpr i32 AHEAD = STAGES - 2;
};

DEV i32 blocks_of(const Operands& from) { return from.k_bytes / BLOCK_BYTES; }
DEV i32 stages_of(const Operands& from) { return (blocks_of(from) + 1) / STAGE_BLOCKS; }  // H16

// Which sixteen bytes of a stage's rows a thread copies, and of which block of K they are.
struct Share {
    i32 chunk;
    i32 block;
    bool inside;
};
DEV Share share_of(const Operands& from, i32 s) {
    i32 chunk = thread_index() % 8;
    i32 block = s * STAGE_BLOCKS + chunk / 4;
    return {chunk, block, block < blocks_of(from)};  // H3
}

// Copies the activations of stage `s` of K; what lies behind the last token or block becomes zero.
template <typename T>
DEV void fill_tokens_of(i8* stage, const Operands& from, i32 s) {
    Share share = share_of(from, s);
    for (i32 row = thread_index() / 8; row < T::BM; row += T::THREADS / 8) {
        i32 token = block_y() * T::BM + row;
        bool ok = share.inside && token < from.m;  // H4
        i64 at = (static_cast<i64>(token) * blocks_of(from) + share.block) * BLOCK_BYTES + share.chunk % 4 * 16;
        cp_async16(stage + swizzled(row, share.chunk), from.x + (ok ? at : 0), ok);
    }
}

// The same of the weights, and of panels.
template <typename T>
DEV void fill_weights_of(i8* stage, const Operands& from, i32 s) {
    Share share = share_of(from, s);
    for (i32 row = thread_index() / 8; row < T::BN; row += T::THREADS / 8) {
        i32 panel = block_x() * (T::BN / PANEL_CHANNELS) + row / PANEL_CHANNELS;
        bool ok = share.inside && panel < from.panels;  // H5
        i64 at = (static_cast<i64>(panel) * blocks_of(from) + share.block) * PANEL_BYTES + row % PANEL_CHANNELS * BLOCK_BYTES +
                 share.chunk % 4 * 16;
        cp_async16(stage + T::X_BYTES + swizzled(row, share.chunk), from.w + (ok ? at : 0), ok);
    }
}

// Runs stages `first … end` of K, leaving `in_flight` products of the last stage to the caller. `after(s)` is
// called when the products of stage s have been asked for; FRESH sums start at zero in every stage.
template <typename T, bool FRESH, typename After>
DEV void run_warpgroups(i32 (&c)[16][4], i8* ring, const Operands& from, i32 first, i32 end, After after) {
    UNROLL
    for (i32 s = 0; s < T::AHEAD; s++) {
        if (first + s < end) fill_weights_of<T>(ring + s * T::STAGE_BYTES, from, first + s);
    }
    after_earlier_kernels();
    UNROLL
    for (i32 s = 0; s < T::AHEAD; s++) {
        if (first + s < end) fill_tokens_of<T>(ring + s * T::STAGE_BYTES, from, first + s);
        cp_commit();
    }
    i32 rows = thread_index() / 128 * 64 * STAGE_ROW;  // H6
    for (i32 s = first; s < end; s++) {
        cp_wait<T::AHEAD - 1>();  // H7
        proxy_fence();            // H8
        block_sync();             // H9
        i32 next = s + T::AHEAD;
        if (next < end) {
            i8* stage = ring + (next - first) % T::STAGES * T::STAGE_BYTES;  // H10
            fill_tokens_of<T>(stage, from, next);
            fill_weights_of<T>(stage, from, next);
        }
        cp_commit();
        const i8* stage = ring + (s - first) % T::STAGES * T::STAGE_BYTES;
        u64 a = matrix_descriptor(stage + rows);
        u64 b = matrix_descriptor(stage + T::X_BYTES);
        wgmma_fence(c);  // H11
        UNROLL
        for (i32 k = 0; k < STAGE_ROW / 32; k++) wgmma_s8(c, a + 2 * k, b + 2 * k, !FRESH || k > 0);  // H12
        wgmma_commit();
        after(s);
    }
    cp_wait<0>();
}

// One scale for each group of 128: the sum of a stage is promoted in the order of the stages.
template <typename T>
DEV void grouped_warpgroups(i8* ring, const Operands& from, const Epilogue& e) {
    i32 c[1][16][4] = {};
    float t[1][16][4] = {};
    i32 row = block_y() * T::BM + thread_index() / 32 * 16 + thread_index() % 32 / 4;
    run_warpgroups<T, true>(c[0], ring, from, 0, stages_of(from), [&](i32 group) {
        float scale[2];
        UNROLL
        for (i32 half = 0; half < 2; half++) {
            i32 token = row + half * 8;
            scale[half] = token < e.m ? e.s_x[token * e.groups + group] : 0.0f;
        }
        wgmma_wait_all(c[0]);  // H13
        for_each_output<T>([&](i32, i32 channel, i32 i, i32 j, i32 k) {
            float sum = fsub(float_of(static_cast<u32>(c[i][j][k] + static_cast<i32>(ROUND_BITS))), ROUND_TO_INTEGER);
            float by = scale[k / 2];
            if (e.grouped_weights && channel < e.n) by = fmul(by, e.s_w[static_cast<i64>(group) * e.n + channel]);
            t[i][j][k] = ffma(sum, by, t[i][j][k]);
        });
    });
    for_each_output<T>([&](i32 row, i32 channel, i32 i, i32 j, i32 k) { finish_s8(e, row, channel, t[i][j][k]); });
}

// One scale for each row: one integer, K divided where the grid is deep.
template <typename T>
DEV void row_warpgroups(i8* ring, const Operands& from, const Epilogue& e, const Divided& divided) {
    i32 c[1][16][4] = {};
    i32 stages = stages_of(from);
    i32 share = (stages + grid_z() - 1) / grid_z();
    i32 first = block_z() * share < stages ? block_z() * share : stages;
    i32 end = first + share < stages ? first + share : stages;
    run_warpgroups<T, false>(c[0], ring, from, first, end, [](i32) { wgmma_wait<1>(); });  // H14
    wgmma_wait_all(c[0]);  // H15
    finish_row_sums<T>(c, e, divided);
}

// As gemm_i8_tile's; `group` is 128 where there are groups, and the memory has 1024 bytes more than the ring.
#define GEMM_I8_WGMMA(BM, STAGES, MIN_BLOCKS)                                                                                 \
    KERNEL(2 * BM, MIN_BLOCKS) gemm_i8_wgmma_##BM##x128(                                                                      \
        const i8* x, const i8* w, const float* s_x, const float* s_w, const float* bias, float* y, i32 m, i32 n, i32 k_bytes, \
        i32 groups, i32 group, i32 grouped_weights, i32 y_pitch, i32 accumulate, i32* workspace, u32* counters, i32 tiles_n) { \
        SHARED_DYNAMIC(i8, memory);                                                                                           \
        typedef WarpgroupTile<BM, STAGES> T;                                                                                  \
        i8* ring = memory + (PATTERN_BYTES - shared_address(memory) % PATTERN_BYTES) % PATTERN_BYTES;                         \
        Epilogue e = {s_x, s_w, bias, y, m, n, y_pitch, groups, group, grouped_weights, accumulate};                          \
        Operands from = {x, w, m, panels_of(n), k_bytes, k_bytes};                                                             \
        if (is_one_sum(e)) {                                                                                                  \
            row_warpgroups<T>(ring, from, e, {workspace, counters, block_y() * tiles_n + block_x()});                         \
        } else {                                                                                                              \
            grouped_warpgroups<T>(ring, from, e);                                                                             \
        }                                                                                                                     \
    }                                                                                                                         \
    REGISTER_KERNEL(gemm_i8_wgmma_##BM##x128, 2 * BM)

GEMM_I8_WGMMA(64, 4, 2)
GEMM_I8_WGMMA(128, 4, 1)
