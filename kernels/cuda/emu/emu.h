// What kernels see of the emulator: the host half of ptx.cuh calls these, and nothing else.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace emu {

// A line of a kernel, for reports and to tell barriers apart.
struct Site {
    const char* file;
    int line;
    Site(const char* file, int line) : file(file), line(line) {}
};

enum Mma { MMA_S8_K32, MMA_S8_K16, MMA_F16_K16, MMA_BF16_K16, MMA_F16_K8 };

int thread_index();
int block_index(int axis);
int grid_size(int axis);
void block_sync(Site site);
void warp_sync(Site site);
uint32_t shfl_xor(uint32_t x, int distance, Site site);
void fence();
uint32_t atomic_increment(uint32_t* at, Site site);
void red_add(int* at, int x, Site site);
void cp_async16(void* to, const void* from, bool ok, Site site);
void cp_commit();
void cp_wait(int newest);
void mma(Mma kind, void* c, const uint32_t* a, const uint32_t* b, Site site);
void griddep_wait(Site site);
void griddep_launch();
void prefetch(const void* at, int bytes, Site site);

// What a warpgroup does together; the value of a wait is how many groups may be left.
enum WarpgroupStep { WARPGROUP_FENCE, WARPGROUP_COMMIT, WARPGROUP_WAIT, WARPGROUP_S8_N128 };
struct WarpgroupOperands {
    uint64_t a, b;  // descriptors
    int value;      // of a wait, or whether a product is added
};
void warpgroup(WarpgroupStep step, int* sums, WarpgroupOperands operands, Site site);
void proxy_fence();
uint32_t shared_address(const void* at);

void* shared_static(size_t bytes, int line);
void* shared_dynamic();
float widen_f16(uint16_t bits);
uint16_t to_f16(float x);

// One entry point with what its launcher must know.
struct Entry {
    const char* name;
    int threads;
    int num_args;
    const uint8_t* arg_sizes;
    void (*function)();
    void (*call)(void (*function)(), void** args);
    Entry* next;
};

template <typename... A>
struct Caller {
    static constexpr uint8_t sizes[sizeof...(A) + 1] = {sizeof(A)..., 0};
    template <size_t... I>
    __attribute__((no_sanitize("thread"))) static void unpack(void (*f)(A...), void** args, std::index_sequence<I...>) {
        f(*static_cast<A*>(args[I])...);
    }
    __attribute__((no_sanitize("thread"))) static void call(void (*function)(), void** args) {
        unpack(reinterpret_cast<void (*)(A...)>(function), args, std::index_sequence_for<A...>());
    }
};

struct Registration {
    Entry entry;
    template <typename... A>
    Registration(Entry*& list, const char* name, int threads, void (*f)(A...))
        : entry{name, threads, int(sizeof...(A)), Caller<A...>::sizes, reinterpret_cast<void (*)()>(f), Caller<A...>::call, list} {
        list = &entry;
    }
};

}  // namespace emu
