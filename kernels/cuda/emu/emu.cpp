// Runs kernels on the host: the threads of a block are fibres on one thread of the system, blocks run one
// after the other. Warp operations and barriers are meeting points; asynchronous copies happen when they
// are waited for. Kernels compiled with hooks (checked) report every load and store; see shadow.h.
//
// State is global: the caller holds a lock around every function of the interface at the end.
#include "emu.h"

#include <sys/mman.h>

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

#include "shadow.h"
#include "warpgroup.h"

namespace emu {

constexpr int MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 * 1024;

enum State { RUNNABLE, AT_WARP, AT_BLOCK, DONE };

struct Copy {
    uint8_t* to;
    const uint8_t* from;
    bool ok;
};

struct Fibre {
    void* sp;
    State state;
    Site site{"start", 0};
    int op;               // of the warp operation it waits in
    void* operands[3];
    std::vector<Copy> open;
    std::deque<std::vector<Copy>> groups;
    bool unfenced;
    bool acquired;
    bool waited;  // for earlier kernels
};

struct Run {
    const Entry* entry;
    void** args;
    int grid[3];
    int block[3];
    int threads;
    int order;
    uint8_t* dynamic;
    size_t dynamic_bytes;
    size_t static_bytes;
    size_t shared_limit;
    int swapped_lanes;  // 0: none, 1: of 8-bit products, 2: of all, 3: of warpgroups
    bool dependent;       // may begin before earlier kernels end
    bool lets_early;      // lets the next kernel begin before it has waited itself
    int live;
    int at_barrier;
    Site barrier{"", 0};
    uint32_t seed;
    std::vector<std::pair<int, size_t>> statics;
};

// Never destroyed: a thread may still free memory while the process ends.
template <typename T>
union Forever {
    T value;
    Forever() : value() {}
    ~Forever() {}
};

static Forever<Fibre[MAX_THREADS]> all_fibres;
static Fibre (&fibres)[MAX_THREADS] = all_fibres.value;
static uint8_t* stacks;
static Forever<Run> only_run;
static Run& run = only_run.value;
static int current = -1;
static void* launcher_sp;
static Forever<std::deque<int>> only_queue;
static std::deque<int>& queue = only_queue.value;
static int arrived[MAX_THREADS / 32];
static int arrived_in_group[MAX_THREADS / WARPGROUP_THREADS];
static Forever<std::string> only_report;
static std::string& report = only_report.value;
static Forever<Shadow> only_shadow;
Shadow& shadow = only_shadow.value;

// Saves the callee's registers and continues on another stack.
extern "C" void emu_switch(void** save, void* load);
asm(R"(
.text
.globl emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, .-emu_switch
)");

static void to_launcher() {
    int self = current;
    current = -1;
    emu_switch(&fibres[self].sp, launcher_sp);
}

// Records the first error and abandons the launch.
void fail(const char* format, ...) {
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (report.empty()) {
        char head[256];
        snprintf(head, sizeof head, "%s block (%d,%d,%d) thread %d: ", run.entry ? run.entry->name : "?", run.block[0],
                 run.block[1], run.block[2], current);
        report = std::string(head) + text;
        if (current >= 0) {
            const Site& site = fibres[current].site;
            const char* name = strrchr(site.file, '/');
            snprintf(head, sizeof head, ", after %s:%d", name ? name + 1 : site.file, site.line);
            report += head;
        }
    }
    if (current >= 0) to_launcher();
}

static bool reversed() { return run.order == 1; }

static void wake(int first, int count) {
    int start = run.order > 1 ? int((run.seed = run.seed * 1664525u + 1013904223u) >> 8) % count : 0;
    for (int i = 0; i < count; i++) {
        int k = first + (reversed() ? count - 1 - i : (i + start) % count);
        if (fibres[k].state != RUNNABLE && fibres[k].state != DONE) {
            fibres[k].state = RUNNABLE;
            queue.push_back(k);
        }
    }
}

static void release_barrier() {
    if (run.at_barrier == 0 || run.at_barrier < run.live) return;
    run.at_barrier = 0;
    shadow.next_interval();
    // Only waiters at the barrier are released; nobody else is alive.
    wake(0, run.threads);
}

void block_sync(Site site) {
    Fibre& self = fibres[current];
    if (run.at_barrier > 0 && (run.barrier.line != site.line || strcmp(run.barrier.file, site.file))) {
        fail("barrier at line %d while others wait at line %d", site.line, run.barrier.line);
    }
    run.barrier = site;
    self.site = site;
    self.state = AT_BLOCK;
    run.at_barrier++;
    if (run.at_barrier == run.live) {
        self.state = RUNNABLE;
        release_barrier();
        return;
    }
    to_launcher();
}

enum { OP_SYNC = 100, OP_SHFL, OP_WARPGROUP };

static void compute(int warp, int op);

static void warp_op(int op, void* x, void* y, void* z, Site site) {
    Fibre& self = fibres[current];
    int warp = current / 32;
    self.op = op;
    self.operands[0] = x;
    self.operands[1] = y;
    self.operands[2] = z;
    self.site = site;
    if (++arrived[warp] < 32) {
        self.state = AT_WARP;
        to_launcher();
        return;
    }
    arrived[warp] = 0;
    for (int lane = 0; lane < 32; lane++) {
        const Fibre& other = fibres[warp * 32 + lane];
        if (other.op != op || other.site.line != site.line) fail("lanes of a warp at different operations, lines %d and %d", other.site.line, site.line);
    }
    compute(warp, op);
    wake(warp * 32, 32);
}

// The last of the 128 threads to arrive computes for all.
void warpgroup(WarpgroupStep step, int* sums, WarpgroupOperands operands, Site site) {
    Fibre& self = fibres[current];
    int group = current / WARPGROUP_THREADS, first = group * WARPGROUP_THREADS;
    self.op = int(OP_WARPGROUP) + int(step);
    self.operands[0] = sums;
    self.operands[1] = &operands;
    self.site = site;
    if (++arrived_in_group[group] < WARPGROUP_THREADS) {
        self.state = AT_WARP;
        to_launcher();
        return;
    }
    arrived_in_group[group] = 0;
    int* all_sums[WARPGROUP_THREADS];
    for (int i = 0; i < WARPGROUP_THREADS; i++) {
        const Fibre& other = fibres[first + i];
        bool same = other.op == self.op && other.site.line == site.line;
        if (!same) fail("warps of a warpgroup at different operations, lines %d and %d", other.site.line, site.line);
        const WarpgroupOperands& theirs = *static_cast<WarpgroupOperands*>(other.operands[1]);
        if (theirs.a != operands.a || theirs.b != operands.b || theirs.value != operands.value) {
            fail("threads of a warpgroup with different operands of one operation");
        }
        all_sums[i] = static_cast<int*>(other.operands[0]);
    }
    warpgroup_step(group, step, all_sums, operands);
    wake(first, WARPGROUP_THREADS);
}

void proxy_fence() { shadow.proxy_fence(current); }

void griddep_wait(Site site) {
    fibres[current].site = site;
    fibres[current].waited = true;
}

void griddep_launch() {
    if (run.dependent && !fibres[current].waited) run.lets_early = true;
}

void prefetch(const void* at, int bytes, Site site) {
    fibres[current].site = site;
    if (uintptr_t(at) % 16 || bytes <= 0 || bytes % 16) fail("prefetch of %d bytes at %p, not multiples of sixteen", bytes, at);
    shadow.check_prefetch(at, bytes);
}

void warp_sync(Site site) { warp_op(OP_SYNC, nullptr, nullptr, nullptr, site); }

uint32_t shfl_xor(uint32_t x, int distance, Site site) {
    uint32_t result = 0;
    uint32_t operands[2] = {x, uint32_t(distance)};
    warp_op(OP_SHFL, operands, &result, nullptr, site);
    return result;
}

void mma(Mma kind, void* c, const uint32_t* a, const uint32_t* b, Site site) {
    warp_op(kind, c, const_cast<uint32_t*>(a), const_cast<uint32_t*>(b), site);
}

// The shapes of the matrix instructions, from the tables of the PTX manual: where element (row, k) of A,
// (column, k) of B and (row, column) of C lie. `per` elements fill a word.
struct Shape {
    int rows, k, per;
};
static Shape shape_of(int op) {
    switch (op) {
        case MMA_S8_K32: return {16, 32, 4};
        case MMA_S8_K16: return {8, 16, 4};
        case MMA_F16_K8: return {16, 8, 2};
        default: return {16, 16, 2};
    }
}

static float widen_bf16(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

// Element `i` of lane-held words; the words of A alternate between the row halves.
template <typename T>
static T element(const uint32_t* words, int word, int i) {
    T x;
    memcpy(&x, reinterpret_cast<const char*>(words + word) + i * sizeof(T), sizeof(T));
    return x;
}

template <typename T>
static void gather(int warp, Shape s, T (&a)[16][32], T (&b)[8][32]) {
    int per_word = s.per;
    int span = 4 * per_word;  // of k that one word of a quad covers
    for (int lane = 0; lane < 32; lane++) {
        const Fibre& f = fibres[warp * 32 + lane];
        const uint32_t* wa = static_cast<const uint32_t*>(f.operands[1]);
        const uint32_t* wb = static_cast<const uint32_t*>(f.operands[2]);
        int g = lane / 4, q = lane % 4, halves = s.rows / 8;
        for (int kk = 0; kk < s.k / span; kk++) {
            for (int i = 0; i < per_word; i++) {
                int k = kk * span + q * per_word + i;
                for (int h = 0; h < halves; h++) a[h * 8 + g][k] = element<T>(wa, kk * halves + h, i);
                b[g][k] = element<T>(wb, kk, i);
            }
        }
    }
}

static void compute_s8(int warp, Shape s) {
    int8_t a8[16][32], b8[8][32];
    gather<int8_t>(warp, s, a8, b8);
    for (int lane = 0; lane < 32; lane++) {
        uint32_t* c = static_cast<uint32_t*>(fibres[warp * 32 + lane].operands[0]);
        for (int i = 0; i < s.rows / 4; i++) {
            // A device whose lanes lie otherwise, for tests of what notices it.
            int half = s.rows == 16 && (run.swapped_lanes == 1 || run.swapped_lanes == 2) ? 1 - i / 2 : i / 2;
            int row = lane / 4 + half * 8, column = lane % 4 * 2 + i % 2;
            int32_t sum = 0;
            for (int k = 0; k < s.k; k++) sum += int16_t(a8[row][k]) * int16_t(b8[column][k]);
            c[i] += uint32_t(sum);
        }
    }
}

// Exact products, summed in double precision and rounded once: no promise about a device's own order.
static void compute_16(int warp, Shape s, bool is_bf16) {
    uint16_t a[16][32], b[8][32];
    gather<uint16_t>(warp, s, a, b);
    float wa[16][16], wb[8][16];
    for (int k = 0; k < s.k; k++) {
        for (int r = 0; r < 16; r++) wa[r][k] = is_bf16 ? widen_bf16(a[r][k]) : widen_f16(a[r][k]);
        for (int r = 0; r < 8; r++) wb[r][k] = is_bf16 ? widen_bf16(b[r][k]) : widen_f16(b[r][k]);
    }
    for (int lane = 0; lane < 32; lane++) {
        float* c = static_cast<float*>(fibres[warp * 32 + lane].operands[0]);
        for (int i = 0; i < 4; i++) {
            int half = run.swapped_lanes == 2 ? 1 - i / 2 : i / 2;
            int row = lane / 4 + half * 8, column = lane % 4 * 2 + i % 2;
            double sum = c[i];
            for (int k = 0; k < s.k; k++) sum += double(wa[row][k]) * double(wb[column][k]);
            c[i] = float(sum);
        }
    }
}

static void compute(int warp, int op) {
    if (op == OP_SYNC) {
        shadow.warp_epoch[warp]++;
    } else if (op == OP_SHFL) {
        for (int lane = 0; lane < 32; lane++) {
            const uint32_t* own = static_cast<uint32_t*>(fibres[warp * 32 + lane].operands[0]);
            const uint32_t* from = static_cast<uint32_t*>(fibres[warp * 32 + (lane ^ own[1])].operands[0]);
            *static_cast<uint32_t*>(fibres[warp * 32 + lane].operands[1]) = from[0];
        }
    } else if (op == MMA_S8_K32 || op == MMA_S8_K16) {
        compute_s8(warp, shape_of(op));
    } else {
        compute_16(warp, shape_of(op), op == MMA_BF16_K16);
    }
}

int thread_index() { return current; }
int block_index(int axis) { return run.block[axis]; }
int grid_size(int axis) { return run.grid[axis]; }

void fence() {
    Fibre& self = fibres[current];
    if (self.unfenced) {
        self.unfenced = false;
        shadow.num_unfenced--;
    }
    if (shadow.may_acquire(current)) self.acquired = true;
}

bool has_acquired(int thread) { return fibres[thread].acquired; }
bool is_early(int thread) { return run.dependent && !fibres[thread].waited; }

void note_global_write(int thread) {
    if (!fibres[thread].unfenced) {
        fibres[thread].unfenced = true;
        shadow.num_unfenced++;
    }
}

uint32_t atomic_increment(uint32_t* at, Site site) {
    fibres[current].site = site;
    shadow.publish(current, at);
    shadow.check_atomic(current, at, 4);
    shadow.published_cell(at);
    return (*at)++;
}

void red_add(int* at, int x, Site site) {
    fibres[current].site = site;
    shadow.check_atomic(current, at, 4);
    *at = int(uint32_t(*at) + uint32_t(x));
}

void cp_async16(void* to, const void* from, bool ok, Site site) {
    Fibre& self = fibres[current];
    self.site = site;
    if (uintptr_t(to) % 16 || uintptr_t(from) % 16) fail("asynchronous copy between misaligned addresses");
    shadow.check_copy(current, to, from, ok);
    memset(to, 0xA5, 16);
    self.open.push_back({static_cast<uint8_t*>(to), static_cast<const uint8_t*>(from), ok});
}

void cp_commit() {
    Fibre& self = fibres[current];
    self.groups.push_back(std::move(self.open));
    self.open.clear();
}

void cp_wait(int newest) {
    Fibre& self = fibres[current];
    while (int(self.groups.size()) > newest) {
        for (const Copy& copy : self.groups.front()) {
            if (copy.ok) {
                memcpy(copy.to, copy.from, 16);
            } else {
                memset(copy.to, 0, 16);
            }
            shadow.copied(current, copy.to);
        }
        self.groups.pop_front();
    }
}

void* shared_static(size_t bytes, int line) {
    for (auto& known : run.statics) {
        if (known.first == line) return shadow.statics + known.second;
    }
    size_t at = run.static_bytes;
    run.statics.push_back({line, at});
    run.static_bytes += (bytes + 15) / 16 * 16 + 64;
    if (run.static_bytes > STATIC_BYTES) fail("%zu bytes of static shared memory", run.static_bytes);
    shadow.add_shared(shadow.statics + at, bytes);
    return shadow.statics + at;
}

void* shared_dynamic() { return shadow.dynamic; }

float widen_f16(uint16_t bits) {
    _Float16 h;
    memcpy(&h, &bits, 2);
    return float(h);
}

uint16_t to_f16(float x) {
    if (std::isnan(x)) return 0x7fff;
    _Float16 h = _Float16(x);
    uint16_t bits;
    memcpy(&bits, &h, 2);
    return bits;
}

static void fibre_main() {
    run.entry->call(run.entry->function, run.args);
    Fibre& self = fibres[current];
    bool pending = !self.open.empty();
    for (const auto& group : self.groups) pending |= !group.empty();
    if (pending) fail("returned with asynchronous copies outstanding");
    if (has_products(current / WARPGROUP_THREADS)) fail("returned with warpgroup products outstanding");
    // Stricter than devices are, where one thread is enough: who waits for this kernel would know nothing of
    // those before it.
    if (is_early(current)) fail("returned without a wait for earlier kernels");
    self.state = DONE;
    run.live--;
    release_barrier();
    to_launcher();
}

static void start(int thread) {
    Fibre& f = fibres[thread];
    uint8_t* top = stacks + (thread + 1) * STACK_BYTES;
    void** sp = reinterpret_cast<void**>(top) - 2;
    *sp = reinterpret_cast<void*>(fibre_main);
    f.sp = sp - 6;
    f.state = RUNNABLE;
    f.site = Site("start", 0);
    f.open.clear();
    f.groups.clear();
    f.unfenced = f.acquired = f.waited = false;
    queue.push_back(thread);
}

static void deadlock() {
    std::string text = "deadlock:";
    for (int i = 0; i < run.threads; i++) {
        if (fibres[i].state == DONE) continue;
        char one[128];
        snprintf(one, sizeof one, " thread %d waits at line %d;", i, fibres[i].site.line);
        text += one;
        if (text.size() > 300) break;
    }
    fail("%s", text.c_str());
}

static void run_block() {
    run.live = run.threads;
    run.at_barrier = 0;
    run.static_bytes = 0;
    run.statics.clear();
    memset(arrived, 0, sizeof arrived);
    memset(arrived_in_group, 0, sizeof arrived_in_group);
    forget_products();
    queue.clear();
    shadow.start_block(run.dynamic_bytes);
    for (int i = 0; i < run.threads; i++) start(reversed() ? run.threads - 1 - i : i);
    while (report.empty() && !queue.empty()) {
        int next = queue.front();
        queue.pop_front();
        current = next;
        emu_switch(&launcher_sp, fibres[next].sp);
    }
    if (report.empty() && run.live > 0) deadlock();
    if (report.empty() && run.static_bytes + run.dynamic_bytes > run.shared_limit) {
        fail("%zu bytes of shared memory, %zu are there", run.static_bytes + run.dynamic_bytes, run.shared_limit);
    }
}

bool in_stacks(const void* at) {
    return at >= stacks && at < stacks + MAX_THREADS * STACK_BYTES;
}
int current_thread() { return current; }

}  // namespace emu

using namespace emu;

extern "C" {

struct EmuLaunch {
    const Entry* entry;
    void** args;
    uint32_t grid[3];
    uint32_t threads;
    uint32_t dynamic_bytes;
    uint32_t shared_limit;
    uint32_t order;
    uint32_t checked;
    uint32_t swapped_lanes;
    uint32_t dependent;
};

const char* emu_entry_name(const Entry* entry) { return entry->name; }
const Entry* emu_entry_next(const Entry* entry) { return entry->next; }
uint32_t emu_entry_threads(const Entry* entry) { return entry->threads; }
uint32_t emu_entry_args(const Entry* entry, const uint8_t** sizes) {
    *sizes = entry->arg_sizes;
    return entry->num_args;
}

void* emu_alloc(size_t bytes, uint32_t initialised) { return shadow.alloc(bytes, initialised != 0); }
void emu_free(void* at) { shadow.free(at); }
void emu_mark(void* at, size_t bytes) { shadow.mark(at, bytes); }
void emu_complete() { shadow.complete(); }

// Null when the launch was clean, else the report, valid until the next launch.
const char* emu_launch(const EmuLaunch* launch) {
    if (!stacks) {
        stacks = static_cast<uint8_t*>(mmap(nullptr, MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    }
    report.clear();
    run.entry = launch->entry;
    run.args = launch->args;
    run.threads = launch->threads;
    run.order = launch->order;
    run.seed = launch->order;
    run.dynamic_bytes = launch->dynamic_bytes;
    run.shared_limit = launch->shared_limit;
    run.swapped_lanes = int(launch->swapped_lanes);
    swap_sums(run.swapped_lanes > 1);
    if (launch->dynamic_bytes > DYNAMIC_BYTES) fail("%u bytes of dynamic shared memory", launch->dynamic_bytes);
    run.dependent = launch->dependent != 0;
    run.lets_early = false;
    if (!run.dependent) shadow.complete();
    shadow.start_launch(launch->checked != 0);
    uint32_t blocks = launch->grid[0] * launch->grid[1] * launch->grid[2];
    for (int axis = 0; axis < 3; axis++) run.grid[axis] = launch->grid[axis];
    for (uint32_t i = 0; i < blocks && report.empty(); i++) {
        uint32_t k = run.order == 1 ? blocks - 1 - i : i;
        run.block[0] = k % launch->grid[0];
        run.block[1] = k / launch->grid[0] % launch->grid[1];
        run.block[2] = k / launch->grid[0] / launch->grid[1];
        run_block();
    }
    current = -1;
    if (report.empty()) {
        const char* guard = shadow.broken_guard();
        if (guard) fail("%s", guard);
    }
    shadow.end_launch(run.entry->name, run.lets_early);
    shadow.checked = false;
    return report.empty() ? nullptr : report.c_str();
}

#define HOOK(size)                                                                      \
    void __tsan_read##size(void* at) { shadow.read(at, size); }                        \
    void __tsan_write##size(void* at) { shadow.write(at, size); }                      \
    void __tsan_volatile_read##size(void* at) { shadow.read(at, size); }               \
    void __tsan_volatile_write##size(void* at) { shadow.write(at, size); }             \
    void __tsan_unaligned_read##size(void* at) { shadow.read(at, size); }              \
    void __tsan_unaligned_write##size(void* at) { shadow.write(at, size); }
HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)
void __tsan_read_range(void* at, size_t size) { shadow.read(at, size); }
void __tsan_write_range(void* at, size_t size) { shadow.write(at, size); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
