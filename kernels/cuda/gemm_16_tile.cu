// The product with 16-bit weights: the fallback where 8-bit tensor cores are missing or not faster.
//
// The same skeleton, two bytes per element. Every output adds its products in one order, whatever the
// number of tokens, so a row does not depend on its neighbours; K is never divided.
#include "gemm_tile.cuh"

struct ProductF16 {
    typedef float Sum;
    DEV_METHOD static void weights(u32 (&b)[2], const Words4& words, i32 s) { fragment_b(b, words, s); }
    DEV_METHOD static void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_f16(c, a, b); }
};

template <typename T, typename Product>
DEV void tile_16(i8* ring, const i8* x, const i8* w, const Epilogue& e, i32 k_bytes) {
    Operands o = {x, w, e.m, panels_of(e.n), k_bytes, k_bytes};
    float c[T::TM][T::TN][4] = {};
    run_tile<T, Product>(c, ring, o, 0, k_bytes / BLOCK_BYTES, [](i32, i32, i32) {}, [](i32) {});
    for_each_output<T>([&](i32 row, i32 channel, i32 i, i32 j, i32 k) {
        if (row >= e.m || channel >= e.n) return;
        finish(e, row, channel, fadd(c[i][j][k], e.bias ? e.bias[channel] : 0.0f));
    });
}

#define GEMM_16_TILE(NAME, PRODUCT, BM, BN, WM, WN, STAGES)                                                                 \
    KERNEL(32 * WM * WN, 2) gemm_##NAME##_tile_##BM##x##BN(const i8* x, const i8* w, const float* bias, float* y, i32 m,    \
                                                          i32 n, i32 k_bytes, i32 y_pitch, i32 accumulate) {                \
        SHARED_DYNAMIC(i8, ring);                                                                                           \
        Epilogue e = {nullptr, nullptr, bias, y, m, n, y_pitch, 1, k_bytes, 0, accumulate};                                 \
        tile_16<Tile<BM, BN, WM, WN, STAGES>, PRODUCT>(ring, x, w, e, k_bytes);                                             \
    }                                                                                                                       \
    REGISTER_KERNEL(gemm_##NAME##_tile_##BM##x##BN, 32 * WM * WN)

GEMM_16_TILE(f16, ProductF16, 16, 64, 1, 4, 4)
GEMM_16_TILE(f16, ProductF16, 64, 64, 2, 2, 4)

#if PTX_ARCH >= 800
// Turing has no bfloat16.
struct ProductBf16 {
    typedef float Sum;
    DEV_METHOD static void weights(u32 (&b)[2], const Words4& words, i32 s) { fragment_b(b, words, s); }
    DEV_METHOD static void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma_bf16(c, a, b); }
};

GEMM_16_TILE(bf16, ProductBf16, 16, 64, 1, 4, 4)
GEMM_16_TILE(bf16, ProductBf16, 64, 64, 2, 2, 4)
#endif
