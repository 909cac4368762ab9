// The instructions that compute capability 9.0 alone has (sm_90a): products of a warpgroup, four warps,
// that read their operands from shared memory while the warps go on. As in ptx.cuh, the device half is one
// instruction per wrapper and the host half asks the emulator.
//
// The order that a kernel keeps: what copies or stores wrote to shared memory is behind a `proxy_fence` of
// the thread that wrote and then behind a barrier; `wgmma_fence` comes before the products of a group, and
// after every other access to their sums; sums are read, and operands overwritten, behind the wait.
#pragma once
#include "ptx.cuh"

#ifdef __CUDACC__

#define SUMS4(j) "+r"(c[j][0]), "+r"(c[j][1]), "+r"(c[j][2]), "+r"(c[j][3])
#define SUMS64                                                                                                        \
    SUMS4(0), SUMS4(1), SUMS4(2), SUMS4(3), SUMS4(4), SUMS4(5), SUMS4(6), SUMS4(7), SUMS4(8), SUMS4(9), SUMS4(10),   \
        SUMS4(11), SUMS4(12), SUMS4(13), SUMS4(14), SUMS4(15)

// Where something lies in the window of shared memory.
DEV u32 shared_address(const void* at) { return static_cast<u32>(__cvta_generic_to_shared(at)); }
// What this thread has written to shared memory is there for warpgroup products too.
DEV void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The sums are operands so that the compiler moves no access to them across.
DEV void wgmma_fence(i32 (&c)[16][4]) { asm volatile("wgmma.fence.sync.aligned;" : SUMS64::"memory"); }
DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all but the newest N groups.
template <int N>
DEV void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
DEV void wgmma_wait_all(i32 (&c)[16][4]) { asm volatile("wgmma.wait_group.sync.aligned 0;" : SUMS64::"memory"); }
// c[64,128] = a[64,32] · b[128,32]ᵀ in 8-bit integers, added to c where `accumulate`; a and b by descriptor.
DEV void wgmma_s8(i32 (&c)[16][4], u64 a, u64 b, bool accumulate) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;"
        " wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8"
        " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23,"
        " %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45,"
        " %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, %64, %65, p;}"
        : SUMS64
        : "l"(a), "l"(b), "r"(static_cast<i32>(accumulate)));
}

#else  // the host compiler

DEV u32 shared_address(const void* at) { return ::emu::shared_address(at); }
DEV void proxy_fence() { ::emu::proxy_fence(); }
DEV void wgmma_fence(i32 (&)[16][4], SITE) { ::emu::warpgroup(::emu::WARPGROUP_FENCE, nullptr, {}, site); }
DEV void wgmma_commit(SITE) { ::emu::warpgroup(::emu::WARPGROUP_COMMIT, nullptr, {}, site); }
template <int N>
DEV void wgmma_wait(SITE) {
    ::emu::warpgroup(::emu::WARPGROUP_WAIT, nullptr, {0, 0, N}, site);
}
DEV void wgmma_wait_all(i32 (&)[16][4], SITE) { ::emu::warpgroup(::emu::WARPGROUP_WAIT, nullptr, {0, 0, 0}, site); }
DEV void wgmma_s8(i32 (&c)[16][4], u64 a, u64 b, bool accumulate, SITE) {
    ::emu::warpgroup(::emu::WARPGROUP_S8_N128, c[0], {a, b, accumulate}, site);
}

#endif

// Describes a matrix in shared memory: rows of 128 bytes of K, eight rows after eight, each sixteen bytes
// of a row exchanged with those that `swizzled` says. The first row lies at a multiple of 1024 bytes; the
// product at K + 32 begins 32 bytes further on. Fields of the PTX manual, in units of sixteen bytes: the start in bits
// 0–13, the distance in K (unused here) in 16–29, the distance of eight rows in 32–45, the mode of
// 128 bytes in 62–63.
DEV u64 matrix_descriptor(const void* at) {
    return (shared_address(at) & 0x3ffffu) >> 4 | 1ull << 16 | 1024ull / 16 << 32 | 1ull << 62;  // H1
}
// Where sixteen bytes `chunk` of a row lie.
DEV i32 swizzled(i32 row, i32 chunk) { return row * 128 + (chunk ^ row % 8) * 16; }  // H2
