// Rotary position embedding in half pairing, and the writing of keys and values to their slots.
//
// The table holds, for each position, the cosines and then the sines of `rotary / 2` angles. One block per
// token; memory-bound.
#include "kv_cache.cuh"

// Feature `f` of a rotated head.
DEV float rotated(const float* head, const float* angles, i32 f, i32 half) {
    if (f < half) return ffma(head[f], angles[f], fmul(fsub(0.0f, head[f + half]), angles[half + f]));
    if (f < 2 * half) return ffma(head[f], angles[f - half], fmul(head[f - half], angles[f]));
    return head[f];
}

// Rotates the heads of one row in place; a thread owns whole pairs.
DEV void rotate_row(float* row, const float* angles, i32 num_heads, i32 head_dim, i32 half) {
    for (i32 pair = thread_index(); pair < num_heads * half; pair += ROW_THREADS) {
        float* head = row + pair / half * head_dim;
        i32 f = pair % half;
        float low = rotated(head, angles, f, half);
        float high = rotated(head, angles, f + half, half);
        head[f] = low;
        head[f + half] = high;
    }
}

// x [rows, pitch], `num_heads` heads of `head_dim`, in place.
KERNEL(256, 4) rope(float* x, const float* table, const i32* positions, i32 pitch, i32 num_heads, i32 head_dim, i32 half) {
    after_earlier_kernels();
    const float* angles = table + static_cast<i64>(positions[block_x()]) * 2 * half;
    rotate_row(x + static_cast<i64>(block_x()) * pitch, angles, num_heads, head_dim, half);
}
REGISTER_KERNEL(rope, 256)

// One head's features, rotated on their way where `angles` is not null.
struct HeadSource {
    const float* head;
    const float* angles;
    i32 half;
    DEV_METHOD float operator()(i32 f) const { return angles ? rotated(head, angles, f, half) : head[f]; }
};

// Writes one token's keys of one head by a warp.
template <typename K>
DEV void store_key(u8* keys, i32 token, const HeadSource& source, i32 head_dim) {
    for (i32 f = thread_index() % 32; f < head_dim; f += 32) {
        constexpr i32 PER_WORD = KvOf<K>::PER_WORD;
        reinterpret_cast<K*>(keys)[(f / PER_WORD * KEY_BLOCK + token) * PER_WORD + f % PER_WORD] = KvOf<K>::to_stored(source(f));
    }
}
template <>
DEV_METHOD void store_key<i8>(u8* keys, i32 token, const HeadSource& source, i32 head_dim) {
    Scale scale = head_scale(source, head_dim);
    i32 words = key_words<i8>(head_dim);
    u32* to = reinterpret_cast<u32*>(keys) + token;
    for (i32 w = thread_index() % 32; w < words; w += 32) to[w * KEY_BLOCK] = quantised_word(source, head_dim, w, scale);
    if (thread_index() % 32 == 0) to[words * KEY_BLOCK] = bits_of(scale.step);
}

// The same for values.
template <typename V>
DEV void store_value(u8* values, i32 token, const HeadSource& source, i32 head_dim) {
    V* to = reinterpret_cast<V*>(values) + token * head_dim;
    for (i32 f = thread_index() % 32; f < head_dim; f += 32) to[f] = KvOf<V>::to_stored(source(f));
}
template <>
DEV_METHOD void store_value<i8>(u8* values, i32 token, const HeadSource& source, i32 head_dim) {
    Scale scale = head_scale(source, head_dim);
    u8* to = values + token * head_dim;
    for (i32 f = thread_index() % 32; f < head_dim; f += 32) to[f] = static_cast<u8>(quantised(source(f), scale));
    if (thread_index() % 32 == 0) reinterpret_cast<u32*>(values + head_dim * KEY_BLOCK)[token] = bits_of(scale.step);
}

// `q` may be null, and `half` zero: then nothing is rotated. A negative slot writes no key and no value:
// the padding rows of a captured step have none.
template <typename K, typename V>
DEV void rope_store_kv_body(float* q, const float* k, const float* v, const float* table, const i32* positions,
                            const i32* slots, u8* cache, i32 q_pitch, i32 k_pitch, i32 v_pitch, i32 num_heads,
                            i32 num_kv_heads, i32 head_dim, i32 half) {
    i32 row = block_x();
    after_earlier_kernels();
    const float* angles = half > 0 ? table + static_cast<i64>(positions[row]) * 2 * half : nullptr;
    if (q && half > 0) rotate_row(q + static_cast<i64>(row) * q_pitch, angles, num_heads, head_dim, half);
    i32 slot = slots[row];
    if (slot < 0) return;
    KvRecord<K, V> record = {num_kv_heads, head_dim};
    u8* block = cache + slot / KEY_BLOCK * record.bytes();
    for (i32 head = thread_index() / 32; head < num_kv_heads; head += ROW_WARPS) {
        HeadSource key = {k + static_cast<i64>(row) * k_pitch + head * head_dim, angles, half};
        HeadSource value = {v + static_cast<i64>(row) * v_pitch + head * head_dim, nullptr, 0};
        store_key<K>(block + record.keys(head), slot % KEY_BLOCK, key, head_dim);
        store_value<V>(block + record.values(head), slot % KEY_BLOCK, value, head_dim);
    }
}

#define ROPE_STORE_KV(NAME, K, V)                                                                                              \
    KERNEL(256, 4) rope_store_kv_##NAME(float* q, const float* k, const float* v, const float* table, const i32* positions,    \
                                        const i32* slots, u8* cache, i32 q_pitch, i32 k_pitch, i32 v_pitch, i32 num_heads,     \
                                        i32 num_kv_heads, i32 head_dim, i32 half) {                                            \
        rope_store_kv_body<K, V>(q, k, v, table, positions, slots, cache, q_pitch, k_pitch, v_pitch, num_heads, num_kv_heads,  \
                                 head_dim, half);                                                                              \
    }                                                                                                                          \
    REGISTER_KERNEL(rope_store_kv_##NAME, 256)

ROPE_STORE_KV(f32, float, float)
ROPE_STORE_KV(bf16, bf16, bf16)
ROPE_STORE_KV(int8, i8, i8)
ROPE_STORE_KV(bf16_int8, bf16, i8)
