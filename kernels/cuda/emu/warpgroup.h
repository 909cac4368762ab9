// Products of a warpgroup as the emulator keeps them: asked for, committed in groups, carried out when they
// are waited for.
#pragma once
#include "emu.h"

namespace emu {

constexpr int WARPGROUP_THREADS = 128;

void warpgroup_step(int group, WarpgroupStep step, int* const* sums, const WarpgroupOperands& operands);
bool has_products(int group);
void forget_products();
// A device whose sums lie in other registers than they should, for tests of what notices it.
void swap_sums(bool swapped);

}  // namespace emu
