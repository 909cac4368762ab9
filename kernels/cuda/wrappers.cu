// Each wrapper of an instruction alone, on operands that the host gives lane by lane: whether device and emulator
// do what the PTX manual says is asked before anything rests on it. Nothing of the product runs these.
#include "common.cuh"

// A lane's words of both operands and its four sums lie next to each other; c += a · bᵀ.
template <typename Sum, int A, int B, typename F>
DEV void wrapper_mma(const u32* a, const u32* b, Sum* c, F multiply) {
    after_earlier_kernels();
    i32 lane = thread_index();
    u32 of_a[A];
    u32 of_b[B];
    Sum sums[4];
    for (i32 i = 0; i < A; i++) of_a[i] = a[lane * A + i];
    for (i32 i = 0; i < B; i++) of_b[i] = b[lane * B + i];
    for (i32 i = 0; i < 4; i++) sums[i] = c[lane * 4 + i];
    multiply(sums, of_a, of_b);
    for (i32 i = 0; i < 4; i++) c[lane * 4 + i] = sums[i];
}

KERNEL(32, 1) wrapper_mma_s8(const u32* a, const u32* b, i32* c) {
    wrapper_mma<i32, 4, 2>(a, b, c, [](i32 (&sums)[4], const u32 (&x)[4], const u32 (&y)[2]) { mma_s8(sums, x, y); });
}
REGISTER_KERNEL(wrapper_mma_s8, 32)

KERNEL(32, 1) wrapper_mma_f16(const u32* a, const u32* b, float* c) {
    wrapper_mma<float, 4, 2>(a, b, c, [](float (&sums)[4], const u32 (&x)[4], const u32 (&y)[2]) { mma_f16(sums, x, y); });
}
REGISTER_KERNEL(wrapper_mma_f16, 32)

#if PTX_ARCH >= 800
KERNEL(32, 1) wrapper_mma_bf16(const u32* a, const u32* b, float* c) {
    wrapper_mma<float, 4, 2>(a, b, c, [](float (&sums)[4], const u32 (&x)[4], const u32 (&y)[2]) { mma_bf16(sums, x, y); });
}
REGISTER_KERNEL(wrapper_mma_bf16, 32)
#else
// The pieces that Turing has; of the first, two of the four sums.
KERNEL(32, 1) wrapper_mma_s8_k16(const u32* a, const u32* b, i32* c) {
    wrapper_mma<i32, 1, 1>(a, b, c, [](i32 (&sums)[4], const u32 (&x)[1], const u32 (&y)[1]) {
        mma_s8_k16(sums[0], sums[1], x[0], y[0]);
    });
}
REGISTER_KERNEL(wrapper_mma_s8_k16, 32)

KERNEL(32, 1) wrapper_mma_f16_k8(const u32* a, const u32* b, float* c) {
    wrapper_mma<float, 2, 1>(a, b, c, [](float (&sums)[4], const u32 (&x)[2], const u32 (&y)[1]) {
        mma_f16_k8(sums, x[0], x[1], y[0]);
    });
}
REGISTER_KERNEL(wrapper_mma_f16_k8, 32)
#endif

// Two groups of copies, of which the first `count` are real: from [64][16 bytes] → to [64], each sixteen bytes
// written by the neighbour of who asked for them.
KERNEL(32, 1) wrapper_cp_async(const Words4* from, Words4* to, i32 count) {
    after_earlier_kernels();
    SHARED_STATIC(Words4, stages, 64);
    i32 i = thread_index();
    for (i32 at = i; at < 64; at += 32) {
        cp_async16(stages + at, from + at, at < count);
        cp_commit();
    }
    cp_wait<1>();
    block_sync();
    to[i ^ 1] = stages[i ^ 1];
    cp_wait<0>();
    block_sync();
    to[32 + (i ^ 1)] = stages[32 + (i ^ 1)];
}
REGISTER_KERNEL(wrapper_cp_async, 32)

// Every thread of every block adds its number, and notes what it found in the counter.
KERNEL(32, 1) wrapper_atomics(i32* sum, u32* counter, u32* found) {
    after_earlier_kernels();
    i32 i = block_x() * 32 + thread_index();
    red_add(sum, i - 20);
    found[i] = atomic_increment(counter);
}
REGISTER_KERNEL(wrapper_atomics, 32)

// Sixteen bytes past the caches, and four.
KERNEL(32, 1) wrapper_loads(const Words4* from, const i32* words, Words4* to, i32* words_to) {
    after_earlier_kernels();
    to[thread_index()] = ld_stream(from + thread_index());
    words_to[thread_index()] = ld_cg(words + thread_index());
}
REGISTER_KERNEL(wrapper_loads, 32)

// Two words in, six out: the four products, the bytes as halves, the low half widened, the first word as a float
// rounded to a half, and that of the lane whose number differs in `distance`.
KERNEL(32, 1) wrapper_scalars(const u32* in, u32* out, i32 distance) {
    after_earlier_kernels();
    i32 i = thread_index();
    u32 x = in[2 * i];
    u32 halves[2];
    widen_bytes(halves, x);
    out[6 * i] = static_cast<u32>(dot4(x, in[2 * i + 1], 7));
    out[6 * i + 1] = halves[0];
    out[6 * i + 2] = halves[1];
    out[6 * i + 3] = bits_of(widen(f16{static_cast<u16>(x)}));
    out[6 * i + 4] = to_f16(float_of(x)).bits;
    out[6 * i + 5] = shfl_xor(x, distance);
}
REGISTER_KERNEL(wrapper_scalars, 32)
