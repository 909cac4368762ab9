// Pseudo-random words, for measurements whose weights never were on the host. `keep` and `set` say which bits
// are random: 16-bit floats of moderate size are some of them.
#include "common.cuh"

KERNEL(256, 4) fill_random(u32* out, i32 words, u32 seed, u32 keep, u32 set) {
    after_earlier_kernels();
    i32 i = block_x() * ROW_THREADS + thread_index();
    if (i >= words) return;
    u32 x = static_cast<u32>(i) * 0x9e3779b9u + seed;
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    out[i] = ((x ^ (x >> 16)) & keep) | set;
}
REGISTER_KERNEL(fill_random, 256)
