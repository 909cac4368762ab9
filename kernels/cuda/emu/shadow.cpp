// The checks: bounds, alignment, initialisation, outstanding copies, races inside a block and order
// between blocks. They err towards silence; a clean run is no proof.
#include "shadow.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

// Where this program, or the library that the emulator is part of, lies in memory.
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start;
extern "C" __attribute__((visibility("hidden"))) char end;

namespace emu {

static const uint8_t POISON = 0xA5;

static uint8_t* reserve(size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return at == MAP_FAILED ? nullptr : static_cast<uint8_t*>(at);
}

void* Shadow::alloc(size_t bytes, bool initialised) {
    size_t whole = (bytes + 255) / 256 * 256 + 2 * GUARD_BYTES;
    uint8_t* memory = static_cast<uint8_t*>(aligned_alloc(4096, (whole + 4095) / 4096 * 4096));
    if (!memory) return nullptr;
    memset(memory, POISON, whole);
    uint8_t* base = memory + GUARD_BYTES;
    if (initialised) memset(base, 0, bytes);
    Allocation& a = allocations[uintptr_t(base)];
    a.base = base;
    a.bytes = bytes;
    GlobalCell cell = {};
    cell.initialised = initialised;
    a.cells.assign(bytes, cell);
    return base;
}

void Shadow::free(void* at) {
    last = nullptr;
    allocations.erase(uintptr_t(at));
    ::free(static_cast<uint8_t*>(at) - GUARD_BYTES);
}

void Shadow::mark(void* at, size_t bytes) {
    Allocation* a = find(at);
    if (!a) return;
    size_t offset = static_cast<uint8_t*>(at) - a->base;
    for (size_t i = 0; i < bytes && offset + i < a->bytes; i++) a->cells[offset + i].initialised = true;
}

Allocation* Shadow::find(const void* at) {
    auto holds = [&](const Allocation& a) { return at >= a.base - GUARD_BYTES && at < a.base + a.bytes + GUARD_BYTES; };
    if (last && holds(*last)) return last;
    auto next = allocations.upper_bound(uintptr_t(at) + GUARD_BYTES);
    if (next == allocations.begin()) return nullptr;
    Allocation& a = std::prev(next)->second;
    if (!holds(a)) return nullptr;
    return last = &a;
}

const char* Shadow::broken_guard() {
    for (auto& entry : allocations) {
        const Allocation& a = entry.second;
        for (size_t i = 0; i < GUARD_BYTES; i++) {
            if (a.base[-1 - long(i)] != POISON) return "write before an allocation";
            if (a.base[a.bytes + i] != POISON && i + a.bytes < (a.bytes + 255) / 256 * 256 + GUARD_BYTES) return "write behind an allocation";
        }
    }
    return nullptr;
}

void Shadow::start_launch(bool checks) {
    checked = checks;
    first_block = block + 1;
    published.clear();
    if (!dynamic) {
        dynamic = reserve(DYNAMIC_BYTES + STATIC_BYTES);
        statics = dynamic + DYNAMIC_BYTES;
        used_dynamic = DYNAMIC_BYTES;
        used_static = STATIC_BYTES;
    }
    if (checked && cells.empty()) cells.assign(DYNAMIC_BYTES + STATIC_BYTES, SharedCell{});
}

// When the next launch begins, every block of this one has let it or has ended. If they waited before they let
// it, whatever came before this launch has ended too.
void Shadow::end_launch(const char* kernel, bool lets_early) {
    if (!lets_early) running.clear();
    running.push_back({first_block, kernel});
}

void Shadow::complete() { running.clear(); }

void Shadow::start_block(size_t dynamic_bytes) {
    block++;
    block_interval = ++interval;
    memset(dynamic, POISON, used_dynamic);
    memset(statics, POISON, used_static);
    shared.clear();
    used_dynamic = dynamic_bytes;
    used_static = 0;
    shared.push_back({dynamic, dynamic_bytes});
    memset(warp_epoch, 0, sizeof warp_epoch);
    memset(proxy_fences, 0, sizeof proxy_fences);
    num_unfenced = 0;
    pending.clear();
    pending_thread = -1;
}

void Shadow::add_shared(uint8_t* at, size_t bytes) {
    shared.push_back({at, bytes});
    used_static = at + bytes - statics;
}

void Shadow::next_interval() { interval++; }

bool Shadow::in_shared(const void* at) const {
    return at >= dynamic && at < dynamic + DYNAMIC_BYTES + STATIC_BYTES;
}

SharedCell* Shadow::shared_cells(const void* at, size_t bytes) {
    const uint8_t* from = static_cast<const uint8_t*>(at);
    for (auto& area : shared) {
        if (from >= area.first && from + bytes <= area.first + area.second) return &cells[from - dynamic];
    }
    fail("shared access of %zu bytes out of range", bytes);
    return nullptr;
}

void Shadow::read_shared(const void* at, size_t bytes) {
    SharedCell* c = shared_cells(at, bytes);
    uint16_t self = current_thread();
    uint32_t epoch = warp_epoch[self / 32];
    for (size_t i = 0; i < bytes; i++, c++) {
        if (c->written < block_interval) fail("read of uninitialised shared memory");
        if (c->pending) fail("shared read while an asynchronous copy by thread %d into it is not complete", c->writer);
        bool same_warp = c->writer / 32 == self / 32;
        if (c->written == interval && c->writer != self && !(same_warp && c->write_epoch < epoch)) {
            fail("race: shared read of what thread %d wrote without a barrier", c->writer);
        }
        if (c->read != interval) {
            c->many_lanes = c->many_warps = false;
        } else if (c->reader != self) {
            if (c->reader / 32 != self / 32) c->many_warps = true;
            if (c->read_epoch == epoch) c->many_lanes = true;
        }
        c->read = interval;
        c->reader = self;
        c->read_epoch = epoch;
    }
}

void Shadow::write_shared(const void* at, size_t bytes, bool copying) {
    SharedCell* c = shared_cells(at, bytes);
    uint16_t self = current_thread();
    uint32_t epoch = warp_epoch[self / 32];
    for (size_t i = 0; i < bytes; i++, c++) {
        if (c->written >= block_interval && c->pending && c->writer != self) fail("shared write while a copy by thread %d is not complete", c->writer);
        if (c->written >= block_interval && c->readers > 0) fail("shared write while a warpgroup product that reads it is not complete");
        bool same_warp = c->writer / 32 == self / 32;
        if (c->written == interval && c->writer != self && !(same_warp && c->write_epoch < epoch)) {
            fail("race: shared write over what thread %d wrote without a barrier", c->writer);
        }
        if (c->read == interval) {
            bool ordered = c->reader == self || (c->reader / 32 == self / 32 && c->read_epoch < epoch);
            if (!ordered || c->many_warps || (c->many_lanes && c->read_epoch == epoch)) {
                fail("race: shared write over what thread %d read without a barrier", c->reader);
            }
        }
        c->written = interval;
        c->writer = self;
        c->write_epoch = epoch;
        c->pending = copying;
        c->readers = 0;
        c->fences = proxy_fences[self].all;
    }
}

GlobalCell* Shadow::global_cells(const void* at, size_t bytes, const char* what) {
    Allocation* a = find(at);
    if (!a) {
        fail("global %s of %zu bytes outside every allocation", what, bytes);
        return nullptr;
    }
    long offset = static_cast<const uint8_t*>(at) - a->base;
    if (offset < 0 || offset + bytes > a->bytes) {
        fail("global %s of %zu bytes at offset %ld, the allocation has %zu bytes", what, bytes, offset, a->bytes);
    }
    return &a->cells[offset];
}

// Whether a write of another block of this launch is ordered before the current access.
bool Shadow::sees(uint32_t writer, uint32_t written, int thread) const {
    if (writer == block || writer < first_block) return true;
    if (!has_acquired(thread)) return false;
    auto known = pending.find(writer);
    return known != pending.end() && written < known->second;
}

void Shadow::check_order(const GlobalCell& cell, int thread, const void* at, const char* what, bool atomic) {
    if (!(atomic && cell.atomic)) {
        if (!sees(cell.block, cell.written, thread) || !sees(cell.other, cell.other_written, thread)) {
            fail("race between blocks: global %s at %p of what another block wrote without release and acquire", what, at);
        }
        bool here = cell.block == block && cell.written == interval;
        if (here && cell.writer / 32 != thread / 32) fail("race: global %s of what thread %d wrote without a barrier", what, cell.writer);
    }
}

// A thread that has not waited sees nothing of launches that may still run.
void Shadow::check_early_read(const GlobalCell& cell, int thread, const char* what) const {
    if (running.empty() || !is_early(thread) || cell.block >= first_block) return;
    for (size_t i = running.size(); i-- > 0;) {
        if (cell.block >= running[i].first_block) fail("global %s, without a wait for earlier kernels, of what %s writes", what, running[i].kernel);
    }
}

void Shadow::read(const void* at, size_t bytes) {
    if (!checked || current_thread() < 0) return;
    if (in_stacks(at)) {
        if (is_asked_for(at)) fail("read of sums whose warpgroup product is not complete");
        return;
    }
    if (bytes <= 16 && uintptr_t(at) % bytes) fail("misaligned read of %zu bytes", bytes);
    if (in_shared(at)) return read_shared(at, bytes);
    if (at >= &__ehdr_start && at < &end) return;
    GlobalCell* c = global_cells(at, bytes, "read");
    for (size_t i = 0; i < bytes; i++) {
        if (!c[i].initialised) fail("global read of uninitialised memory");
        check_early_read(c[i], current_thread(), "read");
        check_order(c[i], current_thread(), at, "read", false);
    }
}

void Shadow::write(void* at, size_t bytes) {
    if (!checked || current_thread() < 0) return;
    if (in_stacks(at)) {
        if (is_asked_for(at)) fail("write of sums whose warpgroup product is not complete");
        return;
    }
    if (bytes <= 16 && uintptr_t(at) % bytes) fail("misaligned write of %zu bytes", bytes);
    if (in_shared(at)) return write_shared(at, bytes, false);
    GlobalCell* c = global_cells(at, bytes, "write");
    // Whatever lies there may be what an earlier kernel still reads: memory of activations is used again.
    if (is_early(current_thread())) fail("global write without a wait for earlier kernels");
    note_global_write(current_thread());
    for (size_t i = 0; i < bytes; i++) {
        check_order(c[i], current_thread(), at, "write", false);
        c[i] = {interval, block, 0, 0, uint16_t(current_thread()), false, true};
    }
}

void Shadow::check_atomic(int thread, void* at, size_t bytes) {
    if (!checked) return;
    if (uintptr_t(at) % bytes) fail("misaligned atomic");
    GlobalCell* c = global_cells(at, bytes, "atomic");
    if (is_early(thread)) fail("global atomic without a wait for earlier kernels");
    note_global_write(thread);
    for (size_t i = 0; i < bytes; i++) {
        if (!c[i].initialised) fail("atomic on uninitialised memory");
        check_order(c[i], thread, at, "atomic", true);
        GlobalCell next = {interval, block, c[i].other, c[i].other_written, uint16_t(thread), true, true};
        if (c[i].block != block) {
            next.other = c[i].block;
            next.other_written = c[i].written;
        }
        c[i] = next;
    }
}

void Shadow::check_copy(int, const void* to, const void* from, bool ok) {
    if (!checked) return;
    // The address must be good even where nothing is copied.
    GlobalCell* c = global_cells(from, 16, "copy");
    for (int i = 0; ok && i < 16; i++) {
        if (!c[i].initialised) fail("copy of uninitialised global memory");
        check_early_read(c[i], current_thread(), "copy");
        check_order(c[i], current_thread(), from, "copy", false);
    }
    if (!in_shared(to)) fail("asynchronous copy to what is not shared memory");
    write_shared(to, 16, true);
}

// A prefetch reads nothing: only the addresses must be good.
void Shadow::check_prefetch(const void* at, size_t bytes) {
    if (checked) global_cells(at, bytes, "prefetch");
}

void Shadow::copied(int thread, void* at) {
    if (!checked) return;
    SharedCell* c = shared_cells(at, 16);
    for (int i = 0; i < 16; i++, c++) {
        c->written = interval;
        c->writer = thread;
        c->write_epoch = warp_epoch[thread / 32];
        c->pending = false;
        c->fences = proxy_fences[thread].all;
    }
}

void Shadow::proxy_fence(int thread) {
    ProxyFences& fences = proxy_fences[thread];
    if (fences.interval != interval) {
        fences.interval = interval;
        fences.before = fences.all;
    }
    fences.all++;
}

// What a warpgroup product reads was written before a barrier, and before it the writer had a fence of the
// proxy. Stricter than devices are: a fence of the reader behind the barrier does not count.
void Shadow::begin_async_read(int, const void* at, size_t bytes) {
    if (!checked) return;
    SharedCell* c = shared_cells(at, bytes);
    for (size_t i = 0; i < bytes; i++, c++) {
        if (c->written < block_interval) fail("warpgroup product of uninitialised shared memory");
        if (c->pending) fail("warpgroup product of what an asynchronous copy by thread %d has not completed", c->writer);
        if (c->written == interval) fail("race: warpgroup product of what thread %d wrote without a barrier", c->writer);
        const ProxyFences& fences = proxy_fences[c->writer];
        uint32_t settled = fences.interval == interval ? fences.before : fences.all;
        if (settled <= c->fences) fail("warpgroup product of what thread %d wrote without a fence of the proxy", c->writer);
        c->readers++;
    }
}

// Everybody else learns of the end by a barrier.
void Shadow::end_async_read(int thread, const void* at, size_t bytes) {
    if (!checked) return;
    SharedCell* c = shared_cells(at, bytes);
    for (size_t i = 0; i < bytes; i++, c++) {
        if (c->readers > 0) c->readers--;
        c->read = interval;
        c->reader = thread;
        c->many_lanes = c->many_warps = true;
    }
}

// An atomic with a result hands on what its block wrote in earlier intervals, if that is fenced, and
// takes over what was handed on before.
void Shadow::publish(int thread, void* at) {
    if (!checked) return;
    Past& past = published[uintptr_t(at)];
    pending = past;
    pending_thread = thread;
    pending_interval = interval;
    if (num_unfenced == 0) past[block] = interval;
}

// The counter itself goes with what it hands on.
void Shadow::published_cell(void* at) {
    if (!checked) return;
    GlobalCell* c = global_cells(at, 4, "atomic");
    for (int i = 0; i < 4; i++) c[i].written = interval - 1;
}

bool Shadow::may_acquire(int thread) const {
    return pending_thread >= 0 && (thread == pending_thread || interval > pending_interval);
}

}  // namespace emu
