// Causal attention over the paged cache, prefill and decode alike, grouped queries, windows, soft caps.
//
// Every (token, head) row has one order of float operations, the CPU target's: keys are split at
// absolute positions every 256; inside a split, scores as one fused chain over the features (over 16-bit
// keys with the query in 16 bits, features in pairs, the second first; over 8-bit keys an exact sum with
// the query in 8 bits, times both scales), their maximum, weights 2^(s − max), the sum of weights as a
// butterfly over each 32 keys and the blocks in order, the weighted values as one chain per feature over
// the visible keys (values of fewer than 32 bits with weights in 16 bits, keys in pairs, the second first);
// splits are merged in order.
//
// A block of 256 threads takes eight rows (tokens × the heads that share a key/value head) of one tile of
// tokens. The whole form runs through all splits; the partial form takes one split (grid z) and leaves
// (max, sum, values) to `attention_combine`, for few rows with long contexts. Bits are the same.
// Decode is bound by reading the cache.
#include "kv_cache.cuh"

#define SPLIT 256
#define ROWS 8

// Consecutive tokens of one sequence, at most eight; `table` is where the sequence's blocks start.
struct QueryTile {
    i32 first_row;
    i32 num_tokens;
    i32 first_position;
    i32 table;
};

struct Attention {
    i32 num_heads;
    i32 num_kv_heads;
    i32 head_dim;
    i32 q_pitch;
    i32 window;  // 0 is none
    float scale;
    float cap;  // 0 is none
    i32 max_splits;
    i32 first_split;  // of the partial form's workspace
};

DEV i32 first_visible(const Attention& a, i32 position) {
    return a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
}

// What one thread keeps of a row: its feature's value and the row's maximum and sum.
struct RowState {
    float max;
    float sum;
    float value;
    bool any;
};

DEV void merge(RowState& state, float max, float sum, float value) {
    if (!state.any) {
        state.max = max;
        state.sum = sum;
        state.value = value;
        state.any = true;
        return;
    }
    float larger = state.max > max ? state.max : max;
    float before = exp2_det(fsub(state.max, larger));
    float now = exp2_det(fsub(max, larger));
    state.max = larger;
    state.sum = fadd(fmul(state.sum, before), fmul(sum, now));
    state.value = ffma(state.value, before, fmul(value, now));
}

// Queries of up to eight rows in shared memory, in the form that keys are multiplied with: floats, or words
// of four bytes and their scales.
struct Queries {
    float* features;
    float* scales;  // what scores of a row are multiplied with
};

// Row `r` as warp `r` brings it; a null pointer is a row of zeros.
template <typename K>
DEV void load_query(const Queries& queries, i32 r, const float* row, const Attention& a) {
    float* to = queries.features + r * MAX_HEAD_DIM;
    for (i32 f = thread_index() % 32; f < key_words<K>(a.head_dim) * KvOf<K>::PER_WORD; f += 32) {
        to[f] = row && f < a.head_dim ? widen(KvOf<K>::to_stored(row[f])) : 0.0f;
    }
    if (thread_index() % 32 == 0) queries.scales[r] = a.scale;
}
template <>
DEV_METHOD void load_query<i8>(const Queries& queries, i32 r, const float* row, const Attention& a) {
    u32* to = reinterpret_cast<u32*>(queries.features + r * MAX_HEAD_DIM);
    Plain source = {row};
    Scale scale = {0.0f, 0.0f};
    if (row) scale = head_scale(source, a.head_dim);
    for (i32 w = thread_index() % 32; w < key_words<i8>(a.head_dim); w += 32) {
        to[w] = row ? quantised_word(source, a.head_dim, w, scale) : 0;
    }
    if (thread_index() % 32 == 0) queries.scales[r] = fmul(scale.step, a.scale);
}

// Scores of one key, a lane's, for all rows.
template <typename K>
DEV void scores_of(float (&scores)[ROWS], const u8* keys, const Queries& queries, i32 lane, i32 head_dim) {
    float sums[ROWS] = {};
    const u32* words = reinterpret_cast<const u32*>(keys) + lane;
    constexpr i32 PER_WORD = KvOf<K>::PER_WORD;
    for (i32 w = 0; w < key_words<K>(head_dim); w++) {
        u32 word = words[w * KEY_BLOCK];
        UNROLL
        for (i32 i = PER_WORD - 1; i >= 0; i--) {
            float k = float_of(PER_WORD == 1 ? word : i == 1 ? word & 0xffff0000u : word << 16);
            UNROLL
            for (i32 r = 0; r < ROWS; r++) sums[r] = ffma(queries.features[r * MAX_HEAD_DIM + w * PER_WORD + i], k, sums[r]);
        }
    }
    UNROLL
    for (i32 r = 0; r < ROWS; r++) scores[r] = fmul(sums[r], queries.scales[r]);
}
template <>
DEV_METHOD void scores_of<i8>(float (&scores)[ROWS], const u8* keys, const Queries& queries, i32 lane, i32 head_dim) {
    i32 sums[ROWS] = {};
    const u32* words = reinterpret_cast<const u32*>(keys) + lane;
    for (i32 w = 0; w < key_words<i8>(head_dim); w++) {
        u32 word = words[w * KEY_BLOCK];
        UNROLL
        for (i32 r = 0; r < ROWS; r++) {
            sums[r] = dot4(word, reinterpret_cast<const u32*>(queries.features)[r * MAX_HEAD_DIM + w], sums[r]);
        }
    }
    float scale = key_scales<i8>(keys, head_dim)[lane];
    UNROLL
    for (i32 r = 0; r < ROWS; r++) scores[r] = fmul(fmul(float_of_int(sums[r]), queries.scales[r]), scale);
}

template <typename K, typename V, bool PARTIAL>
DEV void attention_body(const float* q, const u8* cache, const QueryTile* tiles, const i32* tables, float* out,
                        float* part_stats, float* part_values, const Attention& a) {
    SHARED_STATIC(float, query_features, ROWS * MAX_HEAD_DIM);
    SHARED_STATIC(float, query_scales, ROWS);
    SHARED_STATIC(float, weights, ROWS * SPLIT);
    SHARED_STATIC(float, stats, ROWS * 2);
    SHARED_STATIC(i32, visible, ROWS * 2);
    after_earlier_kernels();
    QueryTile tile = tiles[block_x()];
    i32 share = a.num_heads / a.num_kv_heads;
    i32 kv_head = block_y() / share;
    i32 first_flat = block_y() % share * ROWS;
    i32 num_rows = tile.num_tokens * share - first_flat;
    if (num_rows <= 0) return;
    num_rows = num_rows < ROWS ? num_rows : ROWS;
    const i32* table = tables + tile.table;
    i32 warp = thread_index() / 32;
    i32 lane = thread_index() % 32;

    // Rows of this block: token-major, the heads of one key/value head inside.
    auto position_of = [&](i32 r) { return tile.first_position + (first_flat + r) / share; };
    auto head_of = [&](i32 r) { return kv_head * share + (first_flat + r) % share; };
    auto row_of = [&](i32 r) { return tile.first_row + (first_flat + r) / share; };

    Queries queries = {query_features, query_scales};
    const float* own = q + static_cast<i64>(row_of(warp)) * a.q_pitch + head_of(warp) * a.head_dim;
    load_query<K>(queries, warp, warp < num_rows ? own : nullptr, a);
    i32 first = first_visible(a, position_of(0));
    i32 end = position_of(num_rows - 1) + 1;

    // Features of a thread: feature `d` of rows r0, r0 + step, …
    i32 features = (a.head_dim + 31) / 32 * 32;
    i32 step = ROW_THREADS / features;
    i32 d = thread_index() % features;
    i32 r0 = thread_index() / features;
    bool owns = r0 < step && d < a.head_dim;
    RowState state[ROWS] = {};

    i32 split = first / SPLIT;
    i32 last_split = (end - 1) / SPLIT;
    if (PARTIAL) {
        split = a.first_split + block_z();
        if (split < first / SPLIT || split > last_split) return;
        last_split = split;
    }
    KvRecord<K, V> record = {a.num_kv_heads, a.head_dim};
    auto block_of = [&](i32 position) { return cache + table[position / KEY_BLOCK] * record.bytes(); };
    for (; split <= last_split; split++) {
        i32 start = split * SPLIT;
        if (thread_index() < ROWS) {
            i32 from = 0;
            i32 to = 0;
            if (thread_index() < num_rows) {
                i32 position = position_of(thread_index());
                from = first_visible(a, position) - start;
                from = from > 0 ? from : 0;
                to = position + 1 - start;
                to = to < SPLIT ? to : SPLIT;
                to = to > from ? to : from;
            }
            visible[thread_index() * 2] = from;
            visible[thread_index() * 2 + 1] = to;
        }
        block_sync();  // D1

        // Scores: a warp takes one block of keys, a lane one key, for all rows.
        i32 key = start + warp * KEY_BLOCK;
        if (key < end && key + KEY_BLOCK > first) {
            float scores[ROWS];
            scores_of<K>(scores, block_of(key) + record.keys(kv_head), queries, lane, a.head_dim);
            i32 column = warp * KEY_BLOCK + lane;
            UNROLL
            for (i32 r = 0; r < ROWS; r++) {
                float score = scores[r];
                if (a.cap != 0.0f) score = fmul(tanh_det(score), a.cap);
                bool sees = column >= visible[r * 2] && column < visible[r * 2 + 1];  // D2
                weights[r * SPLIT + column] = sees ? score : float_of(0xff800000u);
            }
        }
        block_sync();  // D3

        // Weights: a warp takes one row.
        i32 from = visible[warp * 2];
        i32 to = visible[warp * 2 + 1];
        if (from < to) {
            float* row = weights + warp * SPLIT;
            float max = float_of(0xff800000u);
            for (i32 b = from / KEY_BLOCK * KEY_BLOCK; b < to; b += KEY_BLOCK) {
                float x = row[b + lane];
                max = max > x ? max : x;
            }
            UNROLL
            for (i32 distance = 16; distance > 0; distance /= 2) {
                float other = float_of(shfl_xor(bits_of(max), distance));
                max = max > other ? max : other;
            }
            float sum = 0.0f;
            bool any = false;
            for (i32 b = from / KEY_BLOCK * KEY_BLOCK; b < to; b += KEY_BLOCK) {
                float weight = exp2_det(fsub(row[b + lane], max));
                float block = warp_sum(weight);
                if (KvOf<V>::PAIRED) {
                    i32 column = b + lane;
                    bool sees = column >= from && column < to;
                    if (sees && KvOf<V>::SCALED) {
                        const u8* values = block_of(start + column) + record.values(kv_head);
                        weight = fmul(weight, value_scales<V>(values, a.head_dim)[lane]);
                    }
                    weight = sees ? widen(to_operand(weight)) : 0.0f;
                }
                row[b + lane] = weight;
                sum = any ? fadd(sum, block) : block;
                any = true;
            }
            if (lane == 0) {
                stats[warp * 2] = max;
                stats[warp * 2 + 1] = sum;
            }
        }
        block_sync();  // D4

        // Values: a thread takes one feature of its rows, over the keys that any of them sees.
        if (owns) {
            i32 low = SPLIT;
            i32 high = 0;
            float values[ROWS] = {};
            for (i32 r = r0; r < num_rows; r += step) {
                low = visible[r * 2] < low ? visible[r * 2] : low;
                high = visible[r * 2 + 1] > high ? visible[r * 2 + 1] : high;
            }
            constexpr i32 TOKENS = KvOf<V>::PAIRED ? 2 : 1;
            for (i32 pair = low / TOKENS * TOKENS; pair < high; pair += TOKENS) {
                const V* block = reinterpret_cast<const V*>(block_of(start + pair) + record.values(kv_head));
                UNROLL
                for (i32 c = pair + TOKENS - 1; c >= pair; c--) {
                    if (c < low || c >= high) continue;
                    float v = widen(block[c % KEY_BLOCK * a.head_dim + d]);  // D5
                    UNROLL
                    for (i32 i = 0; i < ROWS; i++) {
                        i32 r = r0 + i * step;
                        if (r < num_rows && c >= visible[r * 2] && c < visible[r * 2 + 1]) {
                            values[i] = ffma(weights[r * SPLIT + c], v, values[i]);
                        }
                    }
                }
            }
            UNROLL
            for (i32 i = 0; i < ROWS; i++) {
                i32 r = r0 + i * step;
                if (r < num_rows && visible[r * 2] < visible[r * 2 + 1]) {
                    merge(state[i], stats[r * 2], stats[r * 2 + 1], values[i]);
                }
            }
        }
        block_sync();  // D6
    }
    if (!owns) return;
    UNROLL
    for (i32 i = 0; i < ROWS; i++) {
        i32 r = r0 + i * step;
        if (r >= num_rows || !state[i].any) continue;
        i64 row_head = static_cast<i64>(row_of(r)) * a.num_heads + head_of(r);
        if (PARTIAL) {
            i64 part = row_head * a.max_splits + block_z();
            if (d == 0) {
                part_stats[part * 2] = state[i].max;
                part_stats[part * 2 + 1] = state[i].sum;
            }
            part_values[part * a.head_dim + d] = state[i].value;
        } else {
            out[row_head * a.head_dim + d] = fmul(state[i].value, fdiv(1.0f, state[i].sum));
        }
    }
}

#define ATTENTION(NAME, K, V)                                                                                                \
    KERNEL(256, 1) attention_##NAME(const float* q, const u8* cache, const QueryTile* tiles, const i32* tables, float* out,  \
                                    i32 num_heads, i32 num_kv_heads, i32 head_dim, i32 q_pitch, i32 window, float scale,     \
                                    float cap) {                                                                             \
        Attention a = {num_heads, num_kv_heads, head_dim, q_pitch, window, scale, cap, 0, 0};                                \
        attention_body<K, V, false>(q, cache, tiles, tables, out, nullptr, nullptr, a);                                      \
    }                                                                                                                        \
    REGISTER_KERNEL(attention_##NAME, 256)                                                                                   \
    KERNEL(256, 1) attention_##NAME##_partial(const float* q, const u8* cache, const QueryTile* tiles, const i32* tables,    \
                                              float* part_stats, float* part_values, i32 num_heads, i32 num_kv_heads,        \
                                              i32 head_dim, i32 q_pitch, i32 window, float scale, float cap,                 \
                                              i32 max_splits, i32 first_split) {                                             \
        Attention a = {num_heads, num_kv_heads, head_dim, q_pitch, window, scale, cap, max_splits, first_split};             \
        attention_body<K, V, true>(q, cache, tiles, tables, nullptr, part_stats, part_values, a);                            \
    }                                                                                                                        \
    REGISTER_KERNEL(attention_##NAME##_partial, 256)

ATTENTION(f32, float, float)
ATTENTION(bf16, bf16, bf16)
ATTENTION(int8, i8, i8)
ATTENTION(bf16_int8, bf16, i8)

// Merges the splits of one row in order; a feature at a time.
struct Combined {
    const float* stats;
    const float* values;
    i32 head_dim;
    i32 max_splits;
    i32 from;
    i32 to;
    DEV_METHOD float operator()(i32 column) const {
        RowState state = {};
        for (i32 split = from; split <= to; split++) {
            i64 part = static_cast<i64>(column / head_dim) * max_splits + split;
            merge(state, stats[part * 2], stats[part * 2 + 1], values[part * head_dim + column % head_dim]);
        }
        return fmul(state.value, fdiv(1.0f, state.sum));
    }
};

// One block per token: the result of all heads and its 8-bit form.
KERNEL(256, 4) attention_combine(const float* part_stats, const float* part_values, const i32* positions, float* out, i8* q,
                                 float* step, i32 num_heads, i32 head_dim, i32 window, i32 max_splits, i32 first_split,
                                 i32 q_pitch, i32 granularity) {
    after_earlier_kernels();
    SHARED_STATIC(u32, memory, ROW_WARPS);
    i64 first_part = static_cast<i64>(block_x()) * num_heads * max_splits;
    i32 position = positions[block_x()];
    i32 first = window > 0 && position + 1 > window ? position + 1 - window : 0;
    Combined source = {part_stats + first_part * 2, part_values + first_part * head_dim, head_dim, max_splits,
                       first / SPLIT - first_split, position / SPLIT - first_split};
    produce_row(source, row_output(out, q, step, block_x(), num_heads * head_dim, q_pitch, granularity), memory);
}
REGISTER_KERNEL(attention_combine, 256)
