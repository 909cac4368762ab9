// All kernels of one profile, from the files that the device compiler reads. EMU_PROFILE names it.
#include <cstddef>
#include <cstdint>

#include "emu.h"

namespace EMU_PROFILE {
static ::emu::Entry* EMU_LIST_HEAD = nullptr;
#define EMU_LIST EMU_LIST_HEAD
#include "../attention.cu"
#include "../copy_blocks.cu"
#include "../elementwise.cu"
#include "../embed.cu"
#include "../fill.cu"
#include "../gated.cu"
#include "../gemm_16_tile.cu"
#include "../gemm_i8_stream.cu"
#include "../gemm_i8_tile.cu"
#if PTX_ARCH >= 900
#include "../gemm_i8_wgmma.cu"
#endif
#include "../gemm_w8a16_tile.cu"
#include "../linear_f32.cu"
#include "../norm.cu"
#include "../quant_rows.cu"
#include "../rope_store_kv.cu"
#include "../sample.cu"
#include "../wrappers.cu"
#if PTX_ARCH >= 900
#include "../wrappers_wgmma.cu"
#endif
}  // namespace EMU_PROFILE

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
extern "C" __attribute__((no_sanitize("thread"))) const emu::Entry* JOIN(EMU_PROFILE, _kernels)() { return EMU_PROFILE::EMU_LIST_HEAD; }
