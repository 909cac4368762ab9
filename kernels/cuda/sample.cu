// Chooses or scores one token per row of logits, to the bits of the sampler on the CPU: mask, bias,
// penalties, temperature, min-p, top-k, top-p, draw.
//
// A token's mass is its probability relative to the best token's as a whole number of 2⁻³⁰, so sums have
// one value in any order. The border of a set is found by halving the range of masses, the token of a
// draw by dividing the row; nothing is sorted. One block per row. Some forty passes over the row where
// sets are asked for, three where not; a row stays in the second cache.
#include "common.cuh"

#define SAMPLE_THREADS 512
#define SAMPLE_WARPS 16
// Sums of exponentials, each of every sixteenth number.
#define LANES 16
#define CHUNK 2048
#define UNDERFLOW -87.0f
#define BEST_MASS (1u << 30)
// What the order of -∞ is.
#define ORDER_OF_NOTHING 0x007fffffu

struct SampleTask {
    double uniform;
    float temperature;  // 0 takes the largest
    float top_p;
    u32 floor;  // masses below it are dropped
    u32 top_k;
    i32 known;  // the token to score; none where negative
    i32 num_top;
    i32 first_edit;  // bans, then biases, then counts
    i32 num_bans;
    i32 num_biases;
    i32 num_counts;
    float repetition;
    float frequency;
    float presence;
    i32 first_top;
};

// A token whose logit is changed: what is added, or how often it was generated.
struct SampleEdit {
    u32 token;
    float amount;
};

struct SampleResult {
    double sum;  // of exp(logit − max)
    float max;
    float logit;  // of the token
    i32 token;
    i32 ok;
};

// e^x for x ≤ 0, the sampler's own function.
DEV float exp_nonpositive(float x) {
    float clamped = x > UNDERFLOW ? x : UNDERFLOW;
    float shifted = fadd(fmul(clamped, LOG2_E), ROUND_TO_INTEGER);
    float n = fsub(shifted, ROUND_TO_INTEGER);
    float r = fsub(fsub(clamped, fmul(n, 0.6933594f)), fmul(n, -2.1219444e-4f));
    float series = 1.0f / 5040.0f;
    series = fadd(fmul(series, r), 1.0f / 720.0f);
    series = fadd(fmul(series, r), 1.0f / 120.0f);
    series = fadd(fmul(series, r), 1.0f / 24.0f);
    series = fadd(fmul(series, r), 1.0f / 6.0f);
    series = fadd(fmul(series, r), 0.5f);
    series = fadd(fmul(series, r), 1.0f);
    series = fadd(fmul(series, r), 1.0f);
    float power = float_of((bits_of(shifted) - ROUND_BITS + 127u) << 23);
    return x > UNDERFLOW ? fmul(series, power) : 0.0f;
}

// Larger logits have larger keys, and of equal ones the first; NaN and +∞ have the largest.
DEV u64 key_of(float x, i32 index) {
    if (!(x < float_of(0x7f800000u))) return ~0ull;
    u32 bits = bits_of(fadd(x, 0.0f));
    u32 order = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (static_cast<u64>(order) << 32) | (0xffffffffu - static_cast<u32>(index));
}
DEV float logit_of(u64 key) {
    u32 order = static_cast<u32>(key >> 32);
    return float_of(order >> 31 ? order & 0x7fffffffu : ~order);
}
DEV i32 index_of(u64 key) { return static_cast<i32>(0xffffffffu - static_cast<u32>(key)); }
DEV bool is_finite(u64 key) { return key != ~0ull && static_cast<u32>(key >> 32) > ORDER_OF_NOTHING; }

DEV u64 shfl_xor_wide(u64 x, i32 distance) {
    u32 low = shfl_xor(static_cast<u32>(x), distance);
    u32 high = shfl_xor(static_cast<u32>(x >> 32), distance);
    return (static_cast<u64>(high) << 32) | low;
}
DEV u64 warp_total(u64 x) {
    for (i32 distance = 16; distance > 0; distance /= 2) x += shfl_xor_wide(x, distance);
    return x;
}

// A row, and memory that the block shares.
struct Row {
    const float* logits;
    u32* masses;
    i32 size;
    u64* totals;  // one for each warp
};

DEV u64 block_total(const Row& row, u64 x) {
    x = warp_total(x);
    if (thread_index() % 32 == 0) row.totals[thread_index() / 32] = x;
    block_sync();  // S1
    x = 0;
    for (i32 i = 0; i < SAMPLE_WARPS; i++) x += row.totals[i];
    block_sync();  // S2
    return x;
}
DEV u64 block_max(const Row& row, u64 x) {
    for (i32 distance = 16; distance > 0; distance /= 2) {
        u64 other = shfl_xor_wide(x, distance);
        x = other > x ? other : x;
    }
    if (thread_index() % 32 == 0) row.totals[thread_index() / 32] = x;
    block_sync();  // S3
    for (i32 i = 0; i < SAMPLE_WARPS; i++) x = row.totals[i] > x ? row.totals[i] : x;
    block_sync();  // S4
    return x;
}

// The largest key up to `limit`.
DEV u64 best_of(const Row& row, const float* logits, u64 limit) {
    u64 best = 0;
    for (i32 i = thread_index(); i < row.size; i += SAMPLE_THREADS) {
        u64 key = key_of(logits[i], i);
        if (key <= limit) best = key > best ? key : best;
    }
    return block_max(row, best);
}

// The first index up to which `amount` adds up to `goal`, which the row reaches: each warp sums a part, and
// the part that reaches it is divided further.
template <typename Amount>
DEV i32 index_where(const Row& row, u64 goal, Amount amount) {
    i32 low = 0;
    i32 high = row.size;
    while (high - low > 1) {
        i32 part = (high - low + SAMPLE_WARPS - 1) / SAMPLE_WARPS;
        i32 first = low + thread_index() / 32 * part;
        i32 end = first + part < high ? first + part : high;
        u64 sum = 0;
        for (i32 i = first + thread_index() % 32; i < end; i += 32) sum += amount(i);
        sum = warp_total(sum);
        if (thread_index() % 32 == 0) row.totals[thread_index() / 32] = sum;
        block_sync();  // S5
        i32 which = 0;
        while (which + 1 < SAMPLE_WARPS && row.totals[which] < goal) {
            goal -= row.totals[which];
            which++;
        }
        block_sync();  // S6
        low += which * part;
        high = low + part < high ? low + part : high;
    }
    return low;
}

// What is kept: masses above the border, and equal ones up to an index.
struct Border {
    u32 mass;
    i32 last;
};

DEV u64 kept_mass(const Row& row, const Border& border, i32 i) {
    u32 mass = row.masses[i];
    return mass >= border.mass + (i > border.last) ? mass : 0;
}

DEV u64 kept_total(const Row& row, const Border& border) {
    u64 sum = 0;
    for (i32 i = thread_index(); i < row.size; i += SAMPLE_THREADS) sum += kept_mass(row, border, i);
    return block_total(row, sum);
}

// The number, or the mass, of the tokens from `least` on.
DEV u64 amount_from(const Row& row, u32 least, bool by_mass) {
    u64 sum = 0;
    for (i32 i = thread_index(); i < row.size; i += SAMPLE_THREADS) {
        u32 mass = row.masses[i];
        if (mass >= least) sum += by_mass ? mass : 1u;
    }
    return block_total(row, sum);
}

// Keeps the fewest best tokens whose amount reaches `goal`, or what there is.
DEV void keep(const Row& row, Border& border, u64 goal, bool by_mass) {
    if (amount_from(row, 1, by_mass) < goal) return;
    u32 mass = 1;
    u32 above = BEST_MASS + 1;
    while (above - mass > 1) {
        u32 middle = mass + (above - mass) / 2;
        if (amount_from(row, middle, by_mass) >= goal) {
            mass = middle;
        } else {
            above = middle;
        }
    }
    u64 missing = goal - amount_from(row, mass + 1, by_mass);
    u64 count = by_mass ? (missing + mass - 1) / mass : missing;
    border.last = index_where(row, count, [&](i32 i) { return static_cast<u64>(row.masses[i] == mass); });
    border.mass = mass;
}

// Copies the row and changes what bans, biases and penalties name.
DEV void edit(const Row& row, const SampleTask& task, const SampleEdit* edits) {
    float* edited = reinterpret_cast<float*>(row.masses);
    for (i32 i = thread_index(); i < row.size; i += SAMPLE_THREADS) edited[i] = row.logits[i];
    block_sync();  // S7
    u32 size = static_cast<u32>(row.size);
    const SampleEdit* bans = edits + task.first_edit;
    for (i32 i = thread_index(); i < task.num_bans; i += SAMPLE_THREADS) {
        if (bans[i].token < size) edited[bans[i].token] = float_of(0xff800000u);
    }
    block_sync();  // S8
    const SampleEdit* biases = bans + task.num_bans;
    for (i32 i = thread_index(); i < task.num_biases; i += SAMPLE_THREADS) {
        if (biases[i].token < size) edited[biases[i].token] = fadd(edited[biases[i].token], biases[i].amount);
    }
    block_sync();  // S9
    const SampleEdit* counts = biases + task.num_biases;
    for (i32 i = thread_index(); i < task.num_counts; i += SAMPLE_THREADS) {
        if (counts[i].token >= size) continue;
        float x = edited[counts[i].token];
        x = x > 0.0f ? fdiv(x, task.repetition) : fmul(x, task.repetition);
        if (counts[i].amount > 0.0f) x = fsub(x, fadd(fmul(task.frequency, counts[i].amount), task.presence));
        edited[counts[i].token] = x;
    }
    block_sync();  // S10
}

// The token that the draw falls on; `logits` may be the row's masses, which replace them.
DEV i32 draw(const Row& row, const SampleTask& task, const float* logits, float max) {
    u64 sum = 0;
    for (i32 i = thread_index(); i < row.size; i += SAMPLE_THREADS) {
        float weight = exp_nonpositive(fdiv(fsub(logits[i], max), task.temperature));
        u32 mass = round_to_u32(fmul(weight, 1073741824.0f));
        mass = mass < task.floor ? 0 : mass;
        row.masses[i] = mass;
        sum += mass;
    }
    u64 total = block_total(row, sum);
    Border border = {1, row.size};
    if (task.top_k > 0) keep(row, border, task.top_k, false);
    if (task.top_p < 1.0f) {
        if (task.top_k > 0) total = kept_total(row, border);
        double share = wide_mul(task.top_p, double_of(total));
        u64 goal = to_u64(share);
        goal += double_of(goal) < share;
        keep(row, border, goal > 0 ? goal : 1, true);
    }
    u64 mark = to_u64(wide_mul(task.uniform, double_of(kept_total(row, border))));
    return index_where(row, mark + 1, [&](i32 i) { return kept_mass(row, border, i); });
}

// Number i goes to sum i mod 16, and the sums are added in order; every thread returns the result.
DEV double sum_exp(const Row& row, float max, float* chunk, double* sums) {
    double sum = 0.0;
    for (i32 start = 0; start < row.size; start += CHUNK) {
        for (i32 i = thread_index(); i < CHUNK; i += SAMPLE_THREADS) {
            chunk[i] = start + i < row.size ? exp_nonpositive(fsub(row.logits[start + i], max)) : 0.0f;
        }
        block_sync();  // S11
        if (thread_index() < LANES) {
            for (i32 i = thread_index(); i < CHUNK; i += LANES) sum = wide_add(sum, chunk[i]);
        }
        block_sync();  // S12
    }
    if (thread_index() < LANES) sums[thread_index()] = sum;
    block_sync();  // S13
    sum = 0.0;
    for (i32 i = 0; i < LANES; i++) sum = wide_add(sum, sums[i]);
    return sum;
}

// logits [rows, pitch], masses [rows, size]; one block per row.
KERNEL(512, 1) sample_rows(const float* logits, i32 pitch, i32 size, const SampleTask* tasks, const SampleEdit* edits,
                           u32* masses, SampleResult* results, i32* top_ids, float* top_logits) {
    after_earlier_kernels();
    SHARED_STATIC(u64, totals, SAMPLE_WARPS);
    SHARED_STATIC(float, chunk, CHUNK);
    SHARED_STATIC(double, sums, LANES);
    const SampleTask& task = tasks[block_x()];
    const float* raw = logits + static_cast<i64>(block_x()) * pitch;
    Row row = {raw, masses + static_cast<i64>(block_x()) * size, size, totals};
    u64 best = best_of(row, raw, ~0ull);
    bool ok = is_finite(best);
    float max = logit_of(best);
    i32 token = task.known >= 0 ? task.known : index_of(best);
    if (ok && task.known < 0) {
        const float* source = raw;
        if (task.num_bans + task.num_biases + task.num_counts > 0) {
            edit(row, task, edits);
            source = reinterpret_cast<const float*>(row.masses);
            best = best_of(row, source, ~0ull);
            ok = is_finite(best);
            token = index_of(best);
        }
        if (ok && task.temperature > 0.0f) token = draw(row, task, source, logit_of(best));
    }
    if (!ok) {
        if (thread_index() == 0) results[block_x()].ok = 0;
        return;
    }
    double sum = sum_exp(row, max, chunk, sums);
    if (thread_index() == 0) {
        SampleResult& result = results[block_x()];
        result.sum = sum;
        result.max = max;
        result.logit = raw[token];
        result.token = token;
        result.ok = 1;
    }
    u64 limit = ~0ull;
    for (i32 n = task.first_top; n < task.first_top + task.num_top; n++) {
        u64 key = best_of(row, raw, limit);
        if (thread_index() == 0) {
            top_ids[n] = index_of(key);
            top_logits[n] = raw[index_of(key)];
        }
        limit = key - 1;
    }
}
REGISTER_KERNEL(sample_rows, 512)
