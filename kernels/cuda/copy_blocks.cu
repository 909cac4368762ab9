// Copies one block record in every layer: a fork that is about to be written. One launch per copy, so
// that copies happen in their order. Memory-bound.
#include "common.cuh"

// cache [layers][blocks][words of 16 bytes].
KERNEL(256, 4) copy_block(Words4* cache, i32 from, i32 to, i32 num_blocks, i32 block_words) {
    after_earlier_kernels();
    i64 layer = static_cast<i64>(block_y()) * num_blocks;
    const Words4* source = cache + (layer + from) * block_words;
    Words4* target = cache + (layer + to) * block_words;
    i32 i = block_x() * ROW_THREADS + thread_index();
    if (i < block_words) target[i] = source[i];
}
REGISTER_KERNEL(copy_block, 256)
