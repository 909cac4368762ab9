// Everything in which the device compiler and the host compiler of the emulation differ: entry points,
// indices, shared memory, barriers, warp operations, copies, matrix products and rounded arithmetic.
// The device half is one instruction or two per wrapper; the host half asks the emulator (emu/emu.h).
// No other file holds inline assembly or asks which compiler it meets.
#pragma once

typedef signed char i8;
typedef unsigned char u8;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

// 16-bit floats are their bits; no arithmetic is defined on them.
struct f16 {
    u16 bits;
};
struct bf16 {
    u16 bits;
};

// Sixteen bytes that move as one access.
struct alignas(16) Words4 {
    u32 w[4];
};

#ifdef __CUDACC__

#define DEV static __device__ __forceinline__
#define DEV_METHOD __device__ __forceinline__
#define KERNEL(threads, min_blocks) extern "C" __global__ void __launch_bounds__(threads, min_blocks)
#define REGISTER_KERNEL(name, threads)
#define SHARED_STATIC(T, name, n) \
    alignas(16) __shared__ T name##_memory[n]; \
    T* const name = name##_memory
#define SHARED_DYNAMIC(T, name) \
    extern __shared__ Words4 name##_memory[]; \
    T* const name = reinterpret_cast<T*>(name##_memory)
#define PTX_ARCH __CUDA_ARCH__
#define UNROLL _Pragma("unroll")

DEV i32 thread_index() { return threadIdx.x; }
DEV i32 block_x() { return blockIdx.x; }
DEV i32 block_y() { return blockIdx.y; }
DEV i32 block_z() { return blockIdx.z; }
DEV i32 grid_z() { return gridDim.z; }

DEV void block_sync() { __syncthreads(); }
DEV void warp_sync() { __syncwarp(); }
DEV u32 shfl_xor(u32 x, i32 distance) { return __shfl_xor_sync(~0u, x, distance); }
DEV void fence() { __threadfence(); }
DEV u32 atomic_increment(u32* at) { return atomicAdd(at, 1u); }
DEV void red_add(i32* at, i32 x) {
    asm volatile("red.global.add.s32 [%0], %1;" ::"l"(at), "r"(x) : "memory");
}

DEV u32 bits_of(float x) { return __float_as_uint(x); }
DEV float float_of(u32 x) { return __uint_as_float(x); }
DEV float fadd(float a, float b) { return __fadd_rn(a, b); }
DEV float fsub(float a, float b) { return __fsub_rn(a, b); }
DEV float fmul(float a, float b) { return __fmul_rn(a, b); }
DEV float ffma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEV float fdiv(float a, float b) { return __fdiv_rn(a, b); }
DEV float fsqrt(float a) { return __fsqrt_rn(a); }
DEV float float_of_int(i32 x) { return __int2float_rn(x); }
DEV u32 round_to_u32(float x) { return __float2uint_rn(x); }
DEV double wide_add(double a, double b) { return __dadd_rn(a, b); }
DEV double wide_mul(double a, double b) { return __dmul_rn(a, b); }
DEV double double_of(u64 x) { return __ull2double_rn(x); }
DEV u64 to_u64(double x) { return __double2ull_rz(x); }

DEV float widen(f16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h.bits));
    return x;
}
DEV f16 to_f16(float x) {
    f16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(x));
    return h;
}

// c + the four products of signed bytes.
DEV i32 dot4(u32 a, u32 b, i32 c) {
    i32 d;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// The signed bytes of a word as four halves: a byte with its sign turned is the low part of 1024 + 128 + x.
DEV void widen_bytes(u32 (&h)[2], u32 x) {
    asm("prmt.b32 %0, %1, 0x64646464, 0x4140;" : "=r"(h[0]) : "r"(x ^ 0x80808080u));
    asm("prmt.b32 %0, %1, 0x64646464, 0x4342;" : "=r"(h[1]) : "r"(x ^ 0x80808080u));
    for (i32 i = 0; i < 2; i++) asm("sub.rn.f16x2 %0, %0, %1;" : "+r"(h[i]) : "r"(0x64806480u));
}

// Weights pass once: they must not push activations and keys out of the caches.
DEV Words4 ld_stream(const void* at) {
    Words4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "l"(at));
    return v;
}
// Past the first cache: what another block has written.
DEV i32 ld_cg(const i32* at) {
    i32 x;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(x) : "l"(at) : "memory");
    return x;
}

// A kernel may be launched while the one before it still runs (programmatic dependent launch, compute capability
// 9.0 and newer). `griddep_wait` returns when that one has ended and what it wrote is visible; every thread of
// every kernel calls it, before it reads what kernels write and before it writes anything. `griddep_launch` says
// that the next kernel may begin; it promises nothing about what is written by then.
#if PTX_ARCH >= 900
DEV void griddep_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEV void griddep_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
// Brings memory into the second cache, where a later write is seen: multiples of sixteen bytes.
DEV void prefetch(const void* at, i32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes) : "memory");
}
#else
DEV void griddep_wait() {}
DEV void griddep_launch() {}
DEV void prefetch(const void*, i32) {}
#endif

#if PTX_ARCH >= 800
// Sixteen bytes from global to shared memory; zeros where not `ok`.
DEV void cp_async16(void* to, const void* from, bool ok) {
    u32 address = static_cast<u32>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(ok ? 16 : 0) : "memory");
}
DEV void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the newest N groups of this thread.
template <int N>
DEV void cp_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
// c[16,8] += a[16,32] · b[8,32]ᵀ in 8-bit integers.
DEV void mma_s8(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c[16,8] += a[16,16] · b[8,16]ᵀ in half precision.
DEV void mma_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEV void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#else
// Turing copies through registers, at once.
DEV void cp_async16(void* to, const void* from, bool ok) {
    Words4 v = {{0, 0, 0, 0}};
    if (ok) v = *static_cast<const Words4*>(from);
    *static_cast<Words4*>(to) = v;
}
DEV void cp_commit() {}
template <int N>
DEV void cp_wait() {}
DEV void mma_s8_k16(i32& c0, i32& c1, u32 a, u32 b) {
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c0), "+r"(c1)
                 : "r"(a), "r"(b));
}
DEV void mma_f16_k8(float (&c)[4], u32 a0, u32 a1, u32 b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(b));
}
#endif

#else  // the host compiler

#define DEV static inline
#define DEV_METHOD inline
#define KERNEL(threads, min_blocks) static void
#define REGISTER_KERNEL(name, threads) static ::emu::Registration name##_entry(EMU_LIST, #name, threads, name);
#define SHARED_STATIC(T, name, n) T* const name = static_cast<T*>(::emu::shared_static((n) * sizeof(T), __LINE__))
#define SHARED_DYNAMIC(T, name) T* const name = static_cast<T*>(::emu::shared_dynamic())
#define UNROLL
#define SITE ::emu::Site site = ::emu::Site(__builtin_FILE(), __builtin_LINE())

DEV i32 thread_index() { return ::emu::thread_index(); }
DEV i32 block_x() { return ::emu::block_index(0); }
DEV i32 block_y() { return ::emu::block_index(1); }
DEV i32 block_z() { return ::emu::block_index(2); }
DEV i32 grid_z() { return ::emu::grid_size(2); }

DEV void block_sync(SITE) { ::emu::block_sync(site); }
DEV void warp_sync(SITE) { ::emu::warp_sync(site); }
DEV u32 shfl_xor(u32 x, i32 distance, SITE) { return ::emu::shfl_xor(x, distance, site); }
DEV void fence() { ::emu::fence(); }
DEV u32 atomic_increment(u32* at, SITE) { return ::emu::atomic_increment(at, site); }
DEV void red_add(i32* at, i32 x, SITE) { ::emu::red_add(at, x, site); }

DEV u32 bits_of(float x) { return __builtin_bit_cast(u32, x); }
DEV float float_of(u32 x) { return __builtin_bit_cast(float, x); }
DEV float fadd(float a, float b) { return a + b; }
DEV float fsub(float a, float b) { return a - b; }
DEV float fmul(float a, float b) { return a * b; }
DEV float ffma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEV float fdiv(float a, float b) { return a / b; }
DEV float fsqrt(float a) { return __builtin_sqrtf(a); }
DEV float float_of_int(i32 x) { return static_cast<float>(x); }
DEV u32 round_to_u32(float x) { return static_cast<u32>(__builtin_rintf(x)); }
DEV double wide_add(double a, double b) { return a + b; }
DEV double wide_mul(double a, double b) { return a * b; }
DEV double double_of(u64 x) { return static_cast<double>(x); }
DEV u64 to_u64(double x) { return static_cast<u64>(x); }

DEV float widen(f16 h) { return ::emu::widen_f16(h.bits); }
DEV f16 to_f16(float x) { return f16{::emu::to_f16(x)}; }

DEV i32 dot4(u32 a, u32 b, i32 c) {
    for (i32 i = 0; i < 32; i += 8) c += static_cast<i8>(a >> i) * static_cast<i8>(b >> i);
    return c;
}

DEV void widen_bytes(u32 (&h)[2], u32 x) {
    h[0] = h[1] = 0;
    for (i32 i = 0; i < 4; i++) {
        h[i / 2] |= static_cast<u32>(::emu::to_f16(static_cast<i8>(x >> 8 * i))) << 16 * (i % 2);
    }
}

DEV Words4 ld_stream(const void* at) { return *static_cast<const Words4*>(at); }
DEV i32 ld_cg(const i32* at) { return *at; }

#if PTX_ARCH >= 900
DEV void griddep_wait(SITE) { ::emu::griddep_wait(site); }
DEV void griddep_launch() { ::emu::griddep_launch(); }
DEV void prefetch(const void* at, i32 bytes, SITE) { ::emu::prefetch(at, bytes, site); }
#else
DEV void griddep_wait() {}
DEV void griddep_launch() {}
DEV void prefetch(const void*, i32) {}
#endif

#if PTX_ARCH >= 800
DEV void cp_async16(void* to, const void* from, bool ok, SITE) { ::emu::cp_async16(to, from, ok, site); }
DEV void cp_commit() { ::emu::cp_commit(); }
template <int N>
DEV void cp_wait() {
    ::emu::cp_wait(N);
}
DEV void mma_s8(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2], SITE) { ::emu::mma(::emu::MMA_S8_K32, c, a, b, site); }
DEV void mma_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], SITE) { ::emu::mma(::emu::MMA_F16_K16, c, a, b, site); }
DEV void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2], SITE) { ::emu::mma(::emu::MMA_BF16_K16, c, a, b, site); }
#else
DEV void cp_async16(void* to, const void* from, bool ok) {
    Words4 v = {{0, 0, 0, 0}};
    if (ok) v = *static_cast<const Words4*>(from);
    *static_cast<Words4*>(to) = v;
}
DEV void cp_commit() {}
template <int N>
DEV void cp_wait() {}
DEV void mma_s8_k16(i32& c0, i32& c1, u32 a, u32 b, SITE) {
    i32 c[2] = {c0, c1};
    ::emu::mma(::emu::MMA_S8_K16, c, &a, &b, site);
    c0 = c[0];
    c1 = c[1];
}
DEV void mma_f16_k8(float (&c)[4], u32 a0, u32 a1, u32 b, SITE) {
    u32 a[2] = {a0, a1};
    ::emu::mma(::emu::MMA_F16_K8, c, a, &b, site);
}
#endif

#endif  // common to both compilers from here on

// How a kernel begins, or goes on when it has fetched weights. The next one begins behind the wait, not before,
// so that no more than two run side by side.
DEV void after_earlier_kernels() {
    griddep_wait();    // G1
    griddep_launch();  // G2
}

#if PTX_ARCH < 800
// The same product in the pieces that Turing has: both have k = 4q… in the first word and k + 16 in
// the second, rows g and g + 8.
DEV void mma_s8(i32 (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_s8_k16(c[0], c[1], a[0], b[0]);
    mma_s8_k16(c[2], c[3], a[1], b[0]);
    mma_s8_k16(c[0], c[1], a[2], b[1]);
    mma_s8_k16(c[2], c[3], a[3], b[1]);
}
DEV void mma_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_f16_k8(c, a[0], a[1], b[0]);
    mma_f16_k8(c, a[2], a[3], b[1]);
}
#endif

DEV float widen(float x) { return x; }
DEV float widen(bf16 h) { return float_of(static_cast<u32>(h.bits) << 16); }
// To nearest, ties to even; NaN keeps its sign and upper bits and becomes quiet.
DEV bf16 to_bf16(float x) {
    u32 bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16{static_cast<u16>((bits >> 16) | 0x40u)};
    return bf16{static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
DEV float widen(i8 x) { return float_of_int(x); }
DEV void store_as(float* at, float x) { *at = x; }
DEV void store_as(bf16* at, float x) { *at = to_bf16(x); }
DEV void store_as(f16* at, float x) { *at = to_f16(x); }
