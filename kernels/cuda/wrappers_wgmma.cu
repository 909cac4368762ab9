// As wrappers.cu, of the instructions that compute capability 9.0 alone has (sm_90a): one product of a warpgroup on
// memory and descriptors that the host lays out, and one on memory that is laid out as the product's kernel does it.
#include "common.cuh"
#include "ptx_hopper.cuh"

#define GROUP_THREADS 128
#define PATTERN_BYTES 1024

// The first byte of dynamic shared memory at which a pattern of rows may begin.
DEV i8* first_pattern(i8* memory) { return memory + (PATTERN_BYTES - shared_address(memory) % PATTERN_BYTES) % PATTERN_BYTES; }

// A thread's 64 sums lie next to each other; they are added to, or replaced.
DEV void wrapper_product(i32* sums, u64 a, u64 b, bool accumulate) {
    i32 c[16][4];
    i32* own = sums + thread_index() * 64;
    UNROLL
    for (i32 i = 0; i < 64; i++) c[i / 4][i % 4] = own[i];
    wgmma_fence(c);
    wgmma_s8(c, a, b, accumulate);
    wgmma_commit();
    wgmma_wait_all(c);
    UNROLL
    for (i32 i = 0; i < 64; i++) own[i] = c[i / 4][i % 4];
}

// image [words] becomes shared memory; both operands' descriptors in halves, the start relative to the image.
KERNEL(GROUP_THREADS, 1) wrapper_wgmma(const u32* image, i32* sums, i32 words, i32 a_low, i32 a_high, i32 b_low, i32 b_high, i32 accumulate) {
    SHARED_DYNAMIC(i8, memory);
    after_earlier_kernels();
    i8* at = first_pattern(memory);
    for (i32 i = thread_index(); i < words; i += GROUP_THREADS) reinterpret_cast<u32*>(at)[i] = image[i];
    proxy_fence();
    block_sync();
    u64 start = (shared_address(at) & 0x3ffffu) >> 4;
    u64 a = static_cast<u64>(static_cast<u32>(a_high)) << 32 | static_cast<u32>(a_low);
    u64 b = static_cast<u64>(static_cast<u32>(b_high)) << 32 | static_cast<u32>(b_low);
    wrapper_product(sums, a + start, b + start, accumulate != 0);
}
REGISTER_KERNEL(wrapper_wgmma, GROUP_THREADS)

// Rows of 128 bytes, 64 and 128 of them, as `swizzled` and `matrix_descriptor` lay them out; columns 32·step … + 31.
KERNEL(GROUP_THREADS, 1) wrapper_wgmma_rows(const Words4* a, const Words4* b, i32* sums, i32 step) {
    SHARED_DYNAMIC(i8, memory);
    after_earlier_kernels();
    i8* at = first_pattern(memory);
    i8* b_at = at + 64 * 128;
    for (i32 i = thread_index(); i < 64 * 8; i += GROUP_THREADS) *reinterpret_cast<Words4*>(at + swizzled(i / 8, i % 8)) = a[i];
    for (i32 i = thread_index(); i < 128 * 8; i += GROUP_THREADS) *reinterpret_cast<Words4*>(b_at + swizzled(i / 8, i % 8)) = b[i];
    proxy_fence();
    block_sync();
    wrapper_product(sums, matrix_descriptor(at) + 2 * step, matrix_descriptor(b_at) + 2 * step, true);
}
REGISTER_KERNEL(wrapper_wgmma_rows, GROUP_THREADS)
