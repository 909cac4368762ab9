// What the checks remember about every byte of shared and global memory: who wrote and read it last and
// when, whether it has a value, whether a copy into it is outstanding.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace emu {

constexpr size_t DYNAMIC_BYTES = 227 * 1024;
constexpr size_t STATIC_BYTES = 64 * 1024;
constexpr size_t GUARD_BYTES = 4096;

// An interval lies between two barriers of one block; intervals are numbered over the whole process.
struct SharedCell {
    uint32_t written, read;            // intervals
    uint32_t write_epoch, read_epoch;  // of the warp's own synchronisation
    uint16_t writer, reader;
    bool pending, many_lanes, many_warps;
    uint8_t readers;  // warpgroup products that have not been waited for
    uint32_t fences;  // proxy fences of the writer before it wrote
};

// Proxy fences of a thread: all, and those before the newest interval that it had one in.
struct ProxyFences {
    uint32_t all, before, interval;
};

struct GlobalCell {
    uint32_t written;  // interval
    uint32_t block;    // process-wide number of the block that wrote last
    uint32_t other;    // another block that wrote atomically before it, and when
    uint32_t other_written;
    uint16_t writer;
    bool atomic, initialised;
};

// A launch that may still run when the next one begins, and the number of its first block.
struct Running {
    uint32_t first_block;
    const char* kernel;
};

struct Allocation {
    uint8_t* base;  // behind the first guard zone
    size_t bytes;
    std::vector<GlobalCell> cells;
};

struct Shadow {
    bool checked = false;
    uint8_t* dynamic = nullptr;
    uint8_t* statics = nullptr;
    uint32_t warp_epoch[32] = {};
    int num_unfenced = 0;

    void* alloc(size_t bytes, bool initialised);
    void free(void* at);
    void mark(void* at, size_t bytes);

    void start_launch(bool checks);
    void start_block(size_t dynamic_bytes);
    void next_interval();
    void add_shared(uint8_t* at, size_t bytes);
    const char* broken_guard();
    void end_launch(const char* kernel, bool lets_early);
    void complete();

    void read(const void* at, size_t bytes);
    void write(void* at, size_t bytes);
    void check_atomic(int thread, void* at, size_t bytes);
    void check_copy(int thread, const void* to, const void* from, bool ok);
    void check_prefetch(const void* at, size_t bytes);
    void copied(int thread, void* at);
    void proxy_fence(int thread);
    void begin_async_read(int thread, const void* at, size_t bytes);
    void end_async_read(int thread, const void* at, size_t bytes);
    void publish(int thread, void* at);
    void published_cell(void* at);
    bool may_acquire(int thread) const;

   private:
    typedef std::map<uint32_t, uint32_t> Past;  // block → interval up to which its writes are visible
    std::map<uintptr_t, Allocation> allocations;
    Allocation* last = nullptr;
    std::vector<std::pair<uint8_t*, size_t>> shared;
    std::vector<SharedCell> cells;
    ProxyFences proxy_fences[1024] = {};
    std::map<uintptr_t, Past> published;
    std::vector<Running> running;  // oldest first
    Past pending;
    int pending_thread = -1;
    uint32_t pending_interval = 0;
    uint32_t interval = 1, block = 1, first_block = 1, block_interval = 1;
    size_t used_dynamic = 0, used_static = 0;

    Allocation* find(const void* at);
    SharedCell* shared_cells(const void* at, size_t bytes);
    bool in_shared(const void* at) const;
    void read_shared(const void* at, size_t bytes);
    void write_shared(const void* at, size_t bytes, bool pending);
    GlobalCell* global_cells(const void* at, size_t bytes, const char* what);
    bool sees(uint32_t writer, uint32_t written, int thread) const;
    void check_early_read(const GlobalCell& cell, int thread, const char* what) const;
    void check_order(const GlobalCell& cell, int thread, const void* at, const char* what, bool atomic);
};

extern Shadow& shadow;
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
bool in_stacks(const void* at);
bool is_asked_for(const void* at);
int current_thread();
bool has_acquired(int thread);
bool is_early(int thread);
void note_global_write(int thread);

}  // namespace emu
