// The tile kernel: tokens are the 16-row operand, channels the columns; a ring of stages is filled by
// asynchronous copies while older stages are multiplied. Rows behind the last token are zeros.
//
// BM tokens × BN channels × one block of 64 bytes of the weights' K per stage; WARPS_M × WARPS_N warps.
// X_SLABS is how many times as wide as a weight an activation is: a stage has so many blocks of rows.
#pragma once
#include "gemm.cuh"

template <int BM_, int BN_, int WARPS_M_, int WARPS_N_, int STAGES_, int X_SLABS_ = 1>
struct Tile {
    static constexpr i32 BM = BM_;
    static constexpr i32 BN = BN_;
    static constexpr i32 WARPS_N = WARPS_N_;
    static constexpr i32 STAGES = STAGES_;
    static constexpr i32 X_SLABS = X_SLABS_;
    static constexpr i32 THREADS = 32 * WARPS_M_ * WARPS_N_;
    // Fragments of a warp: 16 tokens and 8 channels each.
    static constexpr i32 TM = BM / 16 / WARPS_M_;
    static constexpr i32 TN = BN / 8 / WARPS_N_;
    static constexpr i32 SLAB_BYTES = BM * BLOCK_BYTES;
    static constexpr i32 X_BYTES = X_SLABS * SLAB_BYTES;
    static constexpr i32 STAGE_BYTES = X_BYTES + BN * BLOCK_BYTES;
    static constexpr i32 SHARED_BYTES = STAGES * STAGE_BYTES;
};

// Where both operands lie and how far they go; a row of activations may end inside the last block of weights.
struct Operands {
    const i8* x;  // [m, x_bytes]
    const i8* w;  // [panels] in P64
    i32 m;
    i32 panels;
    i32 x_bytes;
    i32 k_bytes;  // of a row of weights
};

// Copies the activations of block `b` of K into stage memory.
template <typename T>
DEV void fill_tokens(i8* stage, const Operands& o, i32 b) {
    for (i32 i = thread_index(); i < T::X_BYTES / 16; i += T::THREADS) {
        i32 row = block_y() * T::BM + i / 4 % T::BM;
        i32 byte = (b * T::X_SLABS + i / (T::BM * 4)) * BLOCK_BYTES + i % 4 * 16;
        bool ok = row < o.m && (T::X_SLABS == 1 || byte < o.x_bytes);
        const i8* from = o.x + (ok ? static_cast<i64>(row) * o.x_bytes + byte : 0);  // C1
        cp_async16(stage + i * 16, from, ok);
    }
}

// The same of the weights.
template <typename T>
DEV void fill_weights(i8* stage, const Operands& o, i32 b) {
    i32 blocks = o.k_bytes / BLOCK_BYTES;
    for (i32 i = thread_index(); i < T::BN * 4; i += T::THREADS) {
        i32 panel = block_x() * (T::BN / PANEL_CHANNELS) + i / 64;
        bool ok = panel < o.panels;
        const i8* from = o.w + (static_cast<i64>(ok ? panel : 0) * blocks + b) * PANEL_BYTES + i % 64 * 16;  // C2
        cp_async16(stage + T::X_BYTES + i * 16, from, ok);
    }
}

// Multiplies one stage into the accumulators; `between(i, s)` is called when row fragment `i` has made
// step `s`, of two for each slab.
template <typename T, typename Product, typename Between>
DEV void multiply_stage(typename Product::Sum (&c)[T::TM][T::TN][4], const i8* stage, Between between) {
    i32 lane = thread_index() % 32;
    i32 warp = thread_index() / 32;
    i32 first_row = warp / T::WARPS_N * T::TM * 16;
    i32 first_half = warp % T::WARPS_N * T::TN;
    i32 at = lane / 4 * BLOCK_BYTES + lane % 4 * 16;
    Words4 channels[T::TN];
    UNROLL
    for (i32 j = 0; j < T::TN; j++) {
        channels[j] = *reinterpret_cast<const Words4*>(stage + T::X_BYTES + (first_half + j) * (PANEL_BYTES / 2) + lane * 16);
    }
    UNROLL
    for (i32 slab = 0; slab < T::X_SLABS; slab++) {
        UNROLL
        for (i32 i = 0; i < T::TM; i++) {
            const i8* rows = stage + slab * T::SLAB_BYTES + (first_row + i * 16) * BLOCK_BYTES + at;
            Words4 low = *reinterpret_cast<const Words4*>(rows);
            Words4 high = *reinterpret_cast<const Words4*>(rows + 8 * BLOCK_BYTES);
            UNROLL
            for (i32 s = 0; s < 2; s++) {
                u32 a[4];
                fragment_a(a, low, high, s);
                UNROLL
                for (i32 j = 0; j < T::TN; j++) {
                    u32 b[2];
                    Product::weights(b, channels[j], slab * 2 + s);
                    Product::mma(c[i][j], a, b);
                }
                between(i, slab * 2 + s);
            }
        }
    }
}

// Runs blocks `first … end` of K; weights are no kernel's result, so that the first of them are asked for before
// the kernels that make the activations have ended. `between(b, i, s)` is called when row fragment `i` has made step `s` of
// block b, and `after(b)` when all have made both.
template <typename T, typename Product, typename Between, typename After>
DEV void run_tile(typename Product::Sum (&c)[T::TM][T::TN][4], i8* ring, const Operands& o, i32 first, i32 end,
                  Between between, After after) {
    UNROLL
    for (i32 s = 0; s < T::STAGES - 1; s++) {
        if (first + s < end) fill_weights<T>(ring + s * T::STAGE_BYTES, o, first + s);
    }
    after_earlier_kernels();  // G4
    UNROLL
    for (i32 s = 0; s < T::STAGES - 1; s++) {
        if (first + s < end) fill_tokens<T>(ring + s * T::STAGE_BYTES, o, first + s);
        cp_commit();
    }
    for (i32 b = first; b < end; b++) {
        cp_wait<T::STAGES - 2>();  // C3
        block_sync();              // C4
        i32 next = b + T::STAGES - 1;
        if (next < end) {
            i8* stage = ring + (next - first) % T::STAGES * T::STAGE_BYTES;  // C5
            fill_tokens<T>(stage, o, next);
            fill_weights<T>(stage, o, next);
        }
        cp_commit();
        const i8* stage = ring + (b - first) % T::STAGES * T::STAGE_BYTES;
        multiply_stage<T, Product>(c, stage, [&](i32 i, i32 s) { between(b, i, s); });
        after(b);
    }
    cp_wait<0>();
}

// Calls `f(row, channel, i, j, k)` for every element that a thread has of row fragment `i`.
template <typename T, typename F>
DEV void for_each_of_rows(i32 i, F f) {
    i32 lane = thread_index() % 32;
    i32 warp = thread_index() / 32;
    i32 first_row = block_y() * T::BM + warp / T::WARPS_N * T::TM * 16;
    i32 first_channel = block_x() * T::BN + warp % T::WARPS_N * T::TN * 8;
    UNROLL
    for (i32 j = 0; j < T::TN; j++) {
        UNROLL
        for (i32 k = 0; k < 4; k++) {
            f(first_row + i * 16 + lane / 4 + k / 2 * 8, first_channel + j * 8 + lane % 4 * 2 + k % 2, i, j, k);
        }
    }
}

// The same for all of a thread's accumulators.
template <typename T, typename F>
DEV void for_each_output(F f) {
    UNROLL
    for (i32 i = 0; i < T::TM; i++) for_each_of_rows<T>(i, f);
}
