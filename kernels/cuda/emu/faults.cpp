// Small kernels, each right where `wrong` is zero and with one mistake otherwise: what every check of the emulator must
// report, and the nearest thing that it must let pass. The tests of this crate run them.
#include <cstddef>
#include <cstdint>

#include "emu.h"

namespace faults {
static ::emu::Entry* EMU_LIST_HEAD = nullptr;
#define EMU_LIST EMU_LIST_HEAD
#include "../ptx_hopper.cuh"

// `data` and `other` hold a word for each of 64 threads; the host wrote `other`.
#define FAULT(name) \
    static void name(i32* data, i32* other, i32 wrong); \
    REGISTER_KERNEL(name, 64) \
    static void name(i32* data, i32* other, i32 wrong)

FAULT(read_after_write) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    shared[i] = i;
    if (wrong) {
        warp_sync();
    } else {
        block_sync();
    }
    data[i] = shared[i % 32];
}

FAULT(neighbours_in_a_warp) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    shared[i] = i;
    if (!wrong) warp_sync();
    data[i] = shared[i % 32 ? i - 1 : i];
}

FAULT(write_after_read) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    if (i == 0) shared[0] = 1;
    block_sync();
    data[i] = shared[0];
    if (!wrong) block_sync();
    if (i == 62) shared[0] = 2;  // Goes on last from the barrier.
}

FAULT(write_after_write) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    if (i == 0 || (wrong && i == 32)) shared[0] = i;
}

FAULT(uninitialised_shared) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    if (!wrong || i != 7) shared[i] = i;
    data[i] = shared[i];
}

FAULT(shared_bounds) {
    SHARED_STATIC(i32, shared, 64);
    shared[thread_index() + wrong] = 1;
}

FAULT(global_bounds) { data[thread_index()] = other[thread_index() + wrong]; }

FAULT(global_bounds_of_writes) { data[thread_index() - wrong] = 1; }

FAULT(alignment) {
    if (thread_index() == 0) *reinterpret_cast<i64*>(data) = *reinterpret_cast<i64*>(other + wrong);
}

FAULT(uninitialised_global) {
    i32 i = thread_index();
    if (!wrong) data[i] = i;
    other[i] = data[i];
}

FAULT(global_race) {
    i32 i = thread_index();
    data[i] = i;
    if (!wrong) block_sync();
    other[i] = data[i % 32];
}

FAULT(copy_not_awaited) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    if (i < 16) cp_async16(shared + i * 4, other + i * 4, true);
    cp_commit();
    if (!wrong) cp_wait<0>();
    block_sync();
    data[i] = shared[i];
    cp_wait<0>();
}

FAULT(copy_of_a_group_too_new) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    for (i32 half = 0; half < 2; half++) {
        if (i < 8) cp_async16(shared + half * 32 + i * 4, other + half * 32 + i * 4, true);
        cp_commit();
    }
    cp_wait<1>();
    block_sync();
    data[i] = shared[i % 32 + 32 * wrong];
    cp_wait<0>();
}

FAULT(copy_without_a_barrier) {
    SHARED_STATIC(i32, shared, 64);
    i32 i = thread_index();
    if (i < 16) cp_async16(shared + i * 4, other + i * 4, true);
    cp_commit();
    cp_wait<0>();
    if (!wrong) block_sync();
    data[i] = shared[i / 16 * 4];
}

FAULT(copy_left_behind) {
    SHARED_STATIC(i32, shared, 64);
    if (thread_index() < 16) cp_async16(shared + thread_index() * 4, other, false);
    cp_commit();
    if (!wrong) cp_wait<0>();
}

FAULT(copy_from_nowhere) {
    SHARED_STATIC(i32, shared, 64);
    if (thread_index() == 0) cp_async16(shared, other + 64 * wrong, false);
    cp_commit();
    cp_wait<0>();
}

FAULT(barriers_apart) {
    if (wrong && thread_index() < 32) {
        block_sync();
    } else {
        block_sync();
    }
}

FAULT(barrier_of_some) {
    // Who has returned is not waited for; who waits elsewhere is.
    if (thread_index() == 63 && !wrong) return;
    if (thread_index() == 62 && wrong) {
        warp_sync();
        return;
    }
    block_sync();
}

FAULT(shuffles_apart) {
    u32 x;
    if (wrong && thread_index() % 2) {
        x = shfl_xor(1, 1);
    } else {
        x = shfl_xor(2, 1);
    }
    data[thread_index()] = static_cast<i32>(x);
}

FAULT(shuffle_of_some) {
    if (wrong && thread_index() == 5) return;
    data[thread_index()] = static_cast<i32>(shfl_xor(2, 1));
}

// Of two blocks the last to arrive reads what the first wrote; `other` begins with a counter of zero.
FAULT(between_blocks) {
    SHARED_STATIC(u32, arrived, 1);
    i32 i = thread_index();
    if (i < 32) data[block_x() * 32 + i] = i;
    if (wrong != 1) fence();
    if (wrong != 2) block_sync();
    if (i == 0) arrived[0] = atomic_increment(reinterpret_cast<u32*>(other));
    block_sync();
    if (arrived[0] != 1) return;
    if (wrong != 3) fence();
    i32 theirs = data[(1 - block_x()) * 32 + i % 32];
    block_sync();
    if (i < 32) data[block_x() * 32 + i] = theirs;
}

FAULT(atomics_between_blocks) {
    if (thread_index() > 0) return;
    if (wrong) {
        other[0] = other[0] + 1;
    } else {
        red_add(other, 1);
    }
}

// What a kernel does that is launched while the one before it runs: 1 reads what that one writes, 2 writes,
// 3 returns, 4 adds, all before it has waited, 5 waits in one thread for all.
FAULT(early) {
    i32 i = thread_index();
    i32 x = other[i];
    prefetch(data, 16);
    if (wrong == 1) x = data[i];
    if (wrong == 2) data[i] = 1;
    if (wrong == 3 && i == 5) return;
    if (wrong == 4) red_add(data, 1);
    if (wrong != 5 || i == 0) griddep_wait();
    block_sync();
    griddep_launch();
    data[i] = data[i] + x;
}

// Fills `data`; lets the next kernel begin before it has waited where `wrong`, which is none of its own mistakes.
FAULT(fills) {
    if (wrong) griddep_launch();
    griddep_wait();
    griddep_launch();
    data[thread_index()] = 3;
}

// A product of a warpgroup with zeros, in 25 KB of dynamic memory.
static void warpgroup(i32* data, i32* other, i32 wrong);
REGISTER_KERNEL(warpgroup, 128)
static void warpgroup(i32* data, i32*, i32 wrong) {
    SHARED_DYNAMIC(i8, memory);
    i8* a = memory + (1024 - shared_address(memory) % 1024) % 1024;
    i8* b = a + 64 * 128;
    i32 i = thread_index();
    for (i32 at = i * 16; at < 192 * 128; at += 128 * 16) *reinterpret_cast<Words4*>(a + at) = Words4{{0, 0, 0, 0}};
    if (wrong != 1) proxy_fence();
    if (wrong != 2) block_sync();
    i32 c[16][4] = {};
    if (wrong != 3) wgmma_fence(c);
    wgmma_s8(c, matrix_descriptor(a), matrix_descriptor(b), true);
    wgmma_commit();
    if (wrong == 4) *reinterpret_cast<u32*>(a + i * 4) = 0;
    if (wrong == 5) data[i % 64] = c[0][0];
    if (wrong != 6) wgmma_wait_all(c);
    if (wrong != 6 && i < 64) data[i] = c[0][0];
}
}  // namespace faults

extern "C" __attribute__((no_sanitize("thread"))) const emu::Entry* faults_kernels() { return faults::EMU_LIST_HEAD; }
