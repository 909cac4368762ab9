// Rotary position embedding in half pairing, and the writing of keys and values to their slots.
//
// A cache block is one record [K | V][kv_head]: keys as [head_dim][32], so that a warp reads one feature
// of 32 keys at once, values as [32][head_dim]. The table holds, for each position, the cosines and then
// the sines of `rotary / 2` angles. One block per token; memory-bound.
#include "common.cuh"

#define KEY_BLOCK 32

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
    const float* angles = table + static_cast<i64>(positions[block_x()]) * 2 * half;
    rotate_row(x + static_cast<i64>(block_x()) * pitch, angles, num_heads, head_dim, half);
}
REGISTER_KERNEL(rope, 256)

// `q` may be null, and `half` zero: then nothing is rotated. A negative slot writes no key and no value:
// the padding rows of a captured step have none.
template <typename T>
DEV void rope_store_kv_body(float* q, const float* k, const float* v, const float* table, const i32* positions,
                            const i32* slots, T* cache, i32 q_pitch, i32 k_pitch, i32 v_pitch, i32 num_heads,
                            i32 num_kv_heads, i32 head_dim, i32 half) {
    i32 row = block_x();
    const float* angles = half > 0 ? table + static_cast<i64>(positions[row]) * 2 * half : nullptr;
    if (q && half > 0) rotate_row(q + static_cast<i64>(row) * q_pitch, angles, num_heads, head_dim, half);
    i32 slot = slots[row];
    if (slot < 0) return;
    i32 width = num_kv_heads * head_dim;
    T* keys = cache + static_cast<i64>(slot / KEY_BLOCK) * 2 * width * KEY_BLOCK;
    T* values = keys + width * KEY_BLOCK;
    i32 token = slot % KEY_BLOCK;
    const float* new_key = k + static_cast<i64>(row) * k_pitch;
    const float* new_value = v + static_cast<i64>(row) * v_pitch;
    for (i32 i = thread_index(); i < width; i += ROW_THREADS) {
        i32 head = i / head_dim;
        i32 f = i % head_dim;
        float key = half > 0 ? rotated(new_key + head * head_dim, angles, f, half) : new_key[i];
        store_as(keys + (head * head_dim + f) * KEY_BLOCK + token, key);
        store_as(values + (head * KEY_BLOCK + token) * head_dim + f, new_value[i]);
    }
}

KERNEL(256, 4) rope_store_kv_f32(float* q, const float* k, const float* v, const float* table, const i32* positions,
                                 const i32* slots, float* cache, i32 q_pitch, i32 k_pitch, i32 v_pitch, i32 num_heads,
                                 i32 num_kv_heads, i32 head_dim, i32 half) {
    rope_store_kv_body(q, k, v, table, positions, slots, cache, q_pitch, k_pitch, v_pitch, num_heads, num_kv_heads, head_dim, half);
}
REGISTER_KERNEL(rope_store_kv_f32, 256)

KERNEL(256, 4) rope_store_kv_bf16(float* q, const float* k, const float* v, const float* table, const i32* positions,
                                  const i32* slots, bf16* cache, i32 q_pitch, i32 k_pitch, i32 v_pitch, i32 num_heads,
                                  i32 num_kv_heads, i32 head_dim, i32 half) {
    rope_store_kv_body(q, k, v, table, positions, slots, cache, q_pitch, k_pitch, v_pitch, num_heads, num_kv_heads, head_dim, half);
}
REGISTER_KERNEL(rope_store_kv_bf16, 256)
