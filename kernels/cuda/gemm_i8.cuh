// What the 8-bit products of many tokens share: sums of one scale per row, whose K may be divided among
// blocks.
#pragma once
#include "gemm_tile.cuh"

// Where the blocks that divide a K meet: sums [tiles][BM·BN] and counters [tiles], zero before and after,
// read when the grid has a depth above one; and which tile this is.
struct Divided {
    i32* workspace;
    u32* counters;
    i32 tile;
};

// Adds up what the blocks of a tile have, where there are several; the last one writes the products.
template <typename T>
DEV void finish_row_sums(i32 (&c)[T::TM][T::TN][4], const Epilogue& e, const Divided& divided) {
    SHARED_STATIC(u32, arrived, 1);
    if (grid_z() > 1) {
        i32* sums = divided.workspace + static_cast<i64>(divided.tile) * T::BM * T::BN + thread_index();
        for_each_output<T>([&](i32, i32, i32 i, i32 j, i32 k) {
            red_add(sums + ((i * T::TN + j) * 4 + k) * T::THREADS, c[i][j][k]);  // C7
        });
        fence();       // C8
        block_sync();  // C9
        if (thread_index() == 0) arrived[0] = atomic_increment(divided.counters + divided.tile);
        block_sync();  // C10
        if (arrived[0] + 1 != static_cast<u32>(grid_z())) return;
        fence();  // C11
        for_each_output<T>([&](i32, i32, i32 i, i32 j, i32 k) {
            i32* at = sums + ((i * T::TN + j) * 4 + k) * T::THREADS;
            c[i][j][k] = ld_cg(at);
            *at = 0;  // C12
        });
        if (thread_index() == 0) divided.counters[divided.tile] = 0;  // C13
    }
    for_each_output<T>([&](i32 row, i32 channel, i32 i, i32 j, i32 k) {
        if (row >= e.m) return;
        finish_s8(e, row, channel, ffma(float_of_int(c[i][j][k]), e.s_x[row], 0.0f));
    });
}
