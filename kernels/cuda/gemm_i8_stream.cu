// The 8-bit product of up to sixteen tokens: weights go from memory straight into fragments.
//
// One block of eight warps per 16 channels. Weights are the 16-row operand, tokens the 8 columns, so
// that one token wastes nothing that matters. Warps divide K by groups; their integer sums meet in
// shared memory, exact in any order, and one thread per output runs the float chain over the groups in
// order. Bound by reading W once.
#include "gemm.cuh"

#define STREAM_WARPS 8
#define CHUNK_GROUPS 32
// What a block asks for of its weights before it waits for the kernel that makes its activations: some
// microseconds of all blocks at the rate of the memory. Unmeasured.
#define STREAM_PREFETCH 32768

// Integer sums of blocks `first … end` of one panel, channels g, g + 8 by tokens; of each half of the
// blocks apart where there are two.
template <int PARTS, int TN>
DEV void stream_blocks(i32 (&c)[PARTS][TN][4], const i8* x, const i8* panel, i32 m, i32 k_bytes, i32 first, i32 end) {
    i32 lane = thread_index() % 32;
    i32 g = lane / 4;
    i32 q = lane % 4;
    for (i32 b = first; b < end; b++) {
        const i8* block = panel + static_cast<i64>(b) * PANEL_BYTES + lane * 16;
        Words4 low = ld_stream(block);
        Words4 high = ld_stream(block + PANEL_BYTES / 2);
        UNROLL
        for (i32 tile = 0; tile < TN; tile++) {
            i32 token = tile * 8 + g;
            Words4 words = {{0, 0, 0, 0}};
            if (token < m) {  // B1
                words = *reinterpret_cast<const Words4*>(x + static_cast<i64>(token) * k_bytes + b * BLOCK_BYTES + q * 16);
            }
            UNROLL
            for (i32 s = 0; s < 2; s++) {
                u32 a[4];
                u32 bx[2];
                fragment_a(a, low, high, s);
                fragment_b(bx, words, s);
                mma_s8(c[s % PARTS][tile], a, bx);
            }
        }
    }
}

// Where a fragment's element lies among the 16 · 8·TN outputs of a block.
template <int TN>
DEV void keep_sums(i32* sums, const i32 (&c)[TN][4]) {
    i32 lane = thread_index() % 32;
    UNROLL
    for (i32 tile = 0; tile < TN; tile++) {
        UNROLL
        for (i32 i = 0; i < 4; i++) {
            i32 channel = lane / 4 + (i / 2) * 8;
            i32 token = tile * 8 + lane % 4 * 2 + i % 2;
            sums[token * PANEL_CHANNELS + channel] = c[tile][i];
        }
    }
}

// One scale for a whole row: any division of K will do.
template <int TN>
DEV float stream_row(i32* sums, const i8* x, const i8* panel, const Epilogue& e, i32 k_bytes, i32 token) {
    constexpr i32 OUTPUTS = PANEL_CHANNELS * 8 * TN;
    i32 warp = thread_index() / 32;
    i32 blocks = k_bytes / BLOCK_BYTES;
    i32 c[1][TN][4] = {};
    for (i32 b = warp; b < blocks; b += STREAM_WARPS) stream_blocks(c, x, panel, e.m, k_bytes, b, b + 1);
    keep_sums<TN>(sums + warp * OUTPUTS, c[0]);
    block_sync();  // B2
    if (token >= e.m) return 0.0f;
    i32 sum = 0;
    UNROLL
    for (i32 i = 0; i < STREAM_WARPS; i++) sum += sums[i * OUTPUTS + thread_index()];
    return ffma(float_of_int(sum), e.s_x[token], 0.0f);
}

// PARTS groups in each block of K, or one group of one or more blocks.
template <int TN, int PARTS>
DEV float stream_groups(i32* sums, const i8* x, const i8* panel, const Epilogue& e, i32 k_bytes, i32 token, i32 channel) {
    constexpr i32 OUTPUTS = PANEL_CHANNELS * 8 * TN;
    i32 warp = thread_index() / 32;
    i32 blocks = k_bytes / BLOCK_BYTES;
    i32 group_blocks = PARTS == 2 ? 1 : e.group / BLOCK_BYTES;
    float t = 0.0f;
    for (i32 start = 0; start < e.groups; start += CHUNK_GROUPS) {
        i32 end = start + CHUNK_GROUPS < e.groups ? start + CHUNK_GROUPS : e.groups;
        for (i32 group = start + warp * PARTS; group < end; group += STREAM_WARPS * PARTS) {
            i32 c[PARTS][TN][4] = {};
            i32 first = group / PARTS * group_blocks;
            i32 last = first + group_blocks < blocks ? first + group_blocks : blocks;
            stream_blocks(c, x, panel, e.m, k_bytes, first, last);
            UNROLL
            for (i32 part = 0; part < PARTS; part++) {
                if (group + part < end) keep_sums<TN>(sums + (group + part - start) * OUTPUTS, c[part]);
            }
        }
        block_sync();  // B3
        if (token < e.m) {
            for (i32 group = start; group < end; group++) {
                float sum = float_of_int(sums[(group - start) * OUTPUTS + thread_index()]);
                t = ffma(sum, group_scale(e, token, channel, group), t);
            }
        }
        block_sync();  // B4
    }
    return t;
}

template <int TN>
DEV void stream_body(const i8* x, const i8* w, const Epilogue& e, i32 k_bytes) {
    constexpr i32 OUTPUTS = PANEL_CHANNELS * 8 * TN;
    SHARED_STATIC(i32, sums, CHUNK_GROUPS * OUTPUTS);
    const i8* panel = w + static_cast<i64>(block_x()) * k_bytes * PANEL_CHANNELS;
    // The thread's output; those behind the last take part with a token behind the last.
    i32 token = thread_index() < OUTPUTS ? thread_index() / PANEL_CHANNELS : e.m;
    i32 channel = block_x() * PANEL_CHANNELS + thread_index() % PANEL_CHANNELS;
    if (thread_index() == 0) {
        i32 bytes = k_bytes * PANEL_CHANNELS;
        prefetch(panel, bytes < STREAM_PREFETCH ? bytes : STREAM_PREFETCH);  // G3
    }
    after_earlier_kernels();
    float t;
    if (is_one_sum(e)) {
        t = stream_row<TN>(sums, x, panel, e, k_bytes, token);
    } else if (e.group == HALF_BLOCK) {
        t = stream_groups<TN, 2>(sums, x, panel, e, k_bytes, token, channel);
    } else {
        t = stream_groups<TN, 1>(sums, x, panel, e, k_bytes, token, channel);
    }
    finish_s8(e, token, channel, t);
}

// x [m, k_bytes], w in P64, k_bytes a multiple of 64.
KERNEL(256, 2) gemm_i8_stream_8(const i8* x, const i8* w, const float* s_x, const float* s_w, const float* bias, float* y,
                                i32 m, i32 n, i32 k_bytes, i32 groups, i32 group, i32 grouped_weights, i32 y_pitch,
                                i32 accumulate) {
    Epilogue e = {s_x, s_w, bias, y, m, n, y_pitch, groups, group, grouped_weights, accumulate};
    stream_body<1>(x, w, e, k_bytes);
}
REGISTER_KERNEL(gemm_i8_stream_8, 256)

KERNEL(256, 2) gemm_i8_stream_16(const i8* x, const i8* w, const float* s_x, const float* s_w, const float* bias, float* y,
                                 i32 m, i32 n, i32 k_bytes, i32 groups, i32 group, i32 grouped_weights, i32 y_pitch,
                                i32 accumulate) {
    Epilogue e = {s_x, s_w, bias, y, m, n, y_pitch, groups, group, grouped_weights, accumulate};
    stream_body<2>(x, w, e, k_bytes);
}
REGISTER_KERNEL(gemm_i8_stream_16, 256)
