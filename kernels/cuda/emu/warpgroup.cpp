// Products of a warpgroup. One that is asked for reads shared memory, and its sums, until somebody waits for
// its group: the sums hold garbage meanwhile, what is written over its operands is reported (or, unchecked,
// multiplied), and so is an operand that no fence of the proxy has made visible.
#include "warpgroup.h"

#include <cstring>
#include <deque>
#include <vector>

#include "shadow.h"

namespace emu {

constexpr int ROWS = 64, COLUMNS = 128, K = 32;
constexpr int SUMS = ROWS * COLUMNS / WARPGROUP_THREADS;
constexpr int GARBAGE = int(0xA5A5A5A5);
// Where dynamic shared memory begins in its window: at no multiple of what descriptors want.
constexpr uint32_t WINDOW = 1040;

struct Matrix {
    const uint8_t* chunks[COLUMNS][K / 16];  // sixteen bytes each
    int rows;
};

struct Product {
    int* sums[WARPGROUP_THREADS];
    Matrix a, b;
    bool added;
};

// Sums that products in flight are to leave; threads find garbage in their own until then.
struct Live {
    int* sums[WARPGROUP_THREADS];
    int values[WARPGROUP_THREADS][SUMS];
    int products;
};

struct Warpgroup {
    std::vector<Product> open;
    std::deque<std::vector<Product>> groups;
    std::vector<Live> live;
    bool fenced = false;
};

// Never destroyed, as the emulator's other state.
static std::vector<Warpgroup>& all() {
    static auto* groups = new std::vector<Warpgroup>(1024 / WARPGROUP_THREADS);
    return *groups;
}
static bool swapped;

void swap_sums(bool are_swapped) { swapped = are_swapped; }

uint32_t shared_address(const void* at) { return uint32_t(static_cast<const uint8_t*>(at) - shadow.dynamic) + WINDOW; }

// What a descriptor says (PTX manual, matrices in shared memory): both operands have K in rows. Patterns of
// eight rows lie a stride apart; inside one, bits of the address that count rows are exchanged with those
// that count chunks of sixteen bytes. Without a pattern a chunk of eight rows is contiguous.
static void describe(Matrix& m, int rows, uint64_t descriptor) {
    uint32_t start = (descriptor & 0x3fff) * 16, leading = (descriptor >> 16 & 0x3fff) * 16, stride = (descriptor >> 32 & 0x3fff) * 16;
    int mode = int(descriptor >> 62), base = int(descriptor >> 49 & 7);
    if (base != 0) fail("a descriptor with a base offset of %d is not emulated", base);
    // Chunks in a row of the pattern, by mode: none, 128, 64 and 32 bytes.
    const uint32_t chunks = mode == 0 ? 1 : 16u >> mode;
    m.rows = rows;
    for (int row = 0; row < rows; row++) {
        for (int chunk = 0; chunk < K / 16; chunk++) {
            uint32_t at = start + row / 8 * stride + row % 8 * chunks * 16 + (mode == 0 ? chunk * leading : chunk * 16);
            at ^= (at >> 7 & (chunks - 1)) << 4;
            int64_t offset = int64_t(at) - WINDOW;
            if (offset < 0 || offset + 16 > int64_t(DYNAMIC_BYTES)) fail("warpgroup product of shared memory at %lld", static_cast<long long>(offset));
            m.chunks[row][chunk] = shadow.dynamic + offset;
        }
    }
}

template <typename F>
static void for_each_chunk(const Product& product, F f) {
    for (const Matrix* m : {&product.a, &product.b}) {
        for (int row = 0; row < m->rows; row++) {
            for (const uint8_t* chunk : m->chunks[row]) f(chunk);
        }
    }
}

static Live& live_sums(Warpgroup& group, int* const* sums) {
    for (Live& live : group.live) {
        if (live.sums[0] != sums[0]) continue;
        for (int i = 0; i < WARPGROUP_THREADS; i++) {
            for (int j = 0; j < SUMS; j++) {
                if (sums[i][j] != GARBAGE) fail("write of sums whose warpgroup product is not complete");
            }
        }
        return live;
    }
    Live live = {};
    for (int i = 0; i < WARPGROUP_THREADS; i++) {
        live.sums[i] = sums[i];
        memcpy(live.values[i], sums[i], sizeof live.values[i]);
        for (int j = 0; j < SUMS; j++) sums[i][j] = GARBAGE;
    }
    group.live.push_back(live);
    return group.live.back();
}

static void ask(Warpgroup& group, int* const* sums, const WarpgroupOperands& operands) {
    if (!group.fenced) fail("warpgroup product without a fence before its group");
    Product product;
    memcpy(product.sums, sums, sizeof product.sums);
    product.added = operands.value != 0;
    describe(product.a, ROWS, operands.a);
    describe(product.b, COLUMNS, operands.b);
    for_each_chunk(product, [](const uint8_t* at) { shadow.begin_async_read(current_thread(), at, 16); });
    live_sums(group, sums).products++;
    group.open.push_back(product);
}

static void gather(const Matrix& m, int16_t (*to)[K]) {
    for (int row = 0; row < m.rows; row++) {
        for (int k = 0; k < K; k++) to[row][k] = static_cast<int8_t>(m.chunks[row][k / 16][k % 16]);
    }
}

// Thread t of warp w has rows 16·w + t / 4 and eight more, columns 8·j + t % 4 · 2 and the next.
static void carry_out(Warpgroup& group, const Product& product) {
    static int16_t a[ROWS][K], b[COLUMNS][K];
    gather(product.a, a);
    gather(product.b, b);
    size_t which = 0;
    while (group.live[which].sums[0] != product.sums[0]) which++;
    Live& live = group.live[which];
    for (int thread = 0; thread < WARPGROUP_THREADS; thread++) {
        for (int i = 0; i < SUMS; i++) {
            int half = swapped ? 1 - i / 2 % 2 : i / 2 % 2;
            int row = thread / 32 * 16 + thread % 32 / 4 + half * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
            int sum = 0;
            for (int k = 0; k < K; k++) sum += a[row][k] * b[column][k];
            int& value = live.values[thread][i];
            value = int(uint32_t(product.added ? value : 0) + uint32_t(sum));
        }
    }
    for_each_chunk(product, [](const uint8_t* at) { shadow.end_async_read(current_thread(), at, 16); });
    if (--live.products > 0) return;
    for (int i = 0; i < WARPGROUP_THREADS; i++) memcpy(live.sums[i], live.values[i], sizeof live.values[i]);
    group.live.erase(group.live.begin() + long(which));
}

void warpgroup_step(int number, WarpgroupStep step, int* const* sums, const WarpgroupOperands& operands) {
    Warpgroup& group = all()[number];
    switch (step) {
        case WARPGROUP_FENCE:
            group.fenced = true;
            break;
        case WARPGROUP_COMMIT:
            group.groups.push_back(std::move(group.open));
            group.open.clear();
            group.fenced = false;
            break;
        case WARPGROUP_WAIT:
            while (int(group.groups.size()) > operands.value) {
                for (const Product& product : group.groups.front()) carry_out(group, product);
                group.groups.pop_front();
            }
            break;
        case WARPGROUP_S8_N128:
            ask(group, sums, operands);
            break;
    }
}

bool has_products(int number) {
    return !all()[number].live.empty();
}

void forget_products() {
    for (Warpgroup& group : all()) group = Warpgroup();
}

// Whether an address is one of the current thread's sums in flight.
bool is_asked_for(const void* at) {
    for (const Live& live : all()[current_thread() / WARPGROUP_THREADS].live) {
        const int* sums = live.sums[current_thread() % WARPGROUP_THREADS];
        if (at >= sums && at < sums + SUMS) return true;
    }
    return false;
}

}  // namespace emu
