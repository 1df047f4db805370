// What happens before what. Threads of a block are ordered by its barriers, those of a warp also by __syncwarp, blocks
// of a launch only by atomics with fences, and launches by the stream.
#pragma once
#include <cstdint>

#include "shadow.h"

namespace emu::race {

// The life of global memory's pages is a launch, that of shared memory's a block.
uint64_t life_of(const Region& region);

// The time of the current thread, and whether an access came before all that it does now.
Access now(bool atomic, uint16_t site);
bool before_now(const Access& access);

int launch_device();

}  // namespace emu::race
