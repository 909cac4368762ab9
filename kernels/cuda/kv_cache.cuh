// How keys and values lie in the cache, and how each type is multiplied, as on the CPU target.
//
// A block of 32 tokens of one layer is one record [K | V][kv_head]. Keys of a head are words
// [words][32], so that a warp reads one word of 32 keys at once: a feature in 32 bits, two in 16 bits,
// four in 8 bits. Values of a head are [32][head_dim]. Behind keys and behind values in 8 bits stand the
// 32 scales of the tokens, so that whatever moves a block moves them with it.
#pragma once
#include "common.cuh"

#define KEY_BLOCK 32
#define MAX_HEAD_DIM 256

// To bfloat16 as operands of products have it on the CPU, whose instruction takes denormal sums for
// zero: without numbers below 2⁻⁵⁶ there are none.
DEV bf16 to_operand(float x) {
    return to_bf16(magnitude(x) < float_of((127u - 56u) << 23) ? 0.0f : x);
}

template <typename T>
struct KvOf;

template <>
struct KvOf<float> {
    static constexpr i32 PER_WORD = 1;
    static constexpr bool SCALED = false;
    // Whether tokens are added in pairs, of each pair the second first, with weights in 16 bits.
    static constexpr bool PAIRED = false;
    DEV_METHOD static float to_stored(float x) { return x; }
};
template <>
struct KvOf<bf16> {
    static constexpr i32 PER_WORD = 2;
    static constexpr bool SCALED = false;
    static constexpr bool PAIRED = true;
    DEV_METHOD static bf16 to_stored(float x) { return to_operand(x); }
};
template <>
struct KvOf<i8> {
    static constexpr i32 PER_WORD = 4;
    static constexpr bool SCALED = true;
    static constexpr bool PAIRED = true;
};

// Words of a head's keys.
template <typename T>
DEV i32 key_words(i32 head_dim) {
    return (head_dim + KvOf<T>::PER_WORD - 1) / KvOf<T>::PER_WORD;
}
// Bytes of a head's keys, and values, of a block.
template <typename T>
DEV i32 key_bytes(i32 head_dim) {
    return (key_words<T>(head_dim) + KvOf<T>::SCALED) * KEY_BLOCK * 4;
}
template <typename T>
DEV i32 value_bytes(i32 head_dim) {
    return (head_dim * static_cast<i32>(sizeof(T)) + KvOf<T>::SCALED * 4) * KEY_BLOCK;
}

// Where a head's keys and values of a block are.
template <typename K, typename V>
struct KvRecord {
    i32 num_kv_heads;
    i32 head_dim;
    DEV_METHOD i64 bytes() const {
        return static_cast<i64>(num_kv_heads) * (key_bytes<K>(head_dim) + value_bytes<V>(head_dim));
    }
    DEV_METHOD i64 keys(i32 head) const { return static_cast<i64>(head) * key_bytes<K>(head_dim); }
    DEV_METHOD i64 values(i32 head) const {
        return static_cast<i64>(num_kv_heads) * key_bytes<K>(head_dim) + static_cast<i64>(head) * value_bytes<V>(head_dim);
    }
};

// The scales behind the keys or values of a head.
template <typename K>
DEV const float* key_scales(const u8* keys, i32 head_dim) {
    return reinterpret_cast<const float*>(keys + key_words<K>(head_dim) * KEY_BLOCK * 4);
}
template <typename V>
DEV const float* value_scales(const u8* values, i32 head_dim) {
    return reinterpret_cast<const float*>(values + static_cast<i32>(sizeof(V)) * head_dim * KEY_BLOCK);
}

// The scale of one head's features, by a whole warp; `source(f)` is feature `f`.
template <typename Source>
DEV Scale head_scale(const Source& source, i32 head_dim) {
    u32 absmax = 0;
    for (i32 f = thread_index() % 32; f < head_dim; f += 32) {
        u32 size = bits_of(source(f)) & 0x7fffffffu;
        absmax = size > absmax ? size : absmax;
    }
    return scale_of(lanes_max(absmax, 32));
}

// Features `4·w … 4·w + 3` in 8 bits, zeros behind the last.
template <typename Source>
DEV u32 quantised_word(const Source& source, i32 head_dim, i32 w, Scale scale) {
    u32 word = 0;
    UNROLL
    for (i32 i = 0; i < 4; i++) {
        if (w * 4 + i < head_dim) word |= quantised(source(w * 4 + i), scale) << (8 * i);
    }
    return word;
}
