// What the runtime and the driver tell the race detector. In the plain build (none.cpp) all of it does nothing.
#pragma once
#include <cstddef>
#include <string>

#include "../shim/device.h"

namespace emu {

struct Launch;

namespace race {

// The detector sees one block after the other: what they do at the same time it works out from what they touched.
bool single_thread();

void launch_start(const Launch& launch);
void block_start(Block& block);
std::string block_end(Block& block);  // the first problem found in the block, or empty

void block_barrier(Block& block);
void warp_barrier(Block& block, unsigned warp, unsigned mask);
void fence();

// Accesses that the compiler's instrumentation does not see.
void access(const void* p, unsigned bytes, bool write, Site site);
void atomic(const void* p, unsigned bytes, Site site);
// A cp.async writes `dst` from here on; what it wrote is there only after the wait.
void copy_issued(const void* dst, unsigned bytes, Site site);

// Device memory as the driver has it. What the host or a library writes counts as initialised.
void allocated(const void* p, size_t bytes, int device);
void freed(const void* p);
void written(const void* p, size_t bytes);
void copied(const void* dst, const void* src, size_t bytes);

}  // namespace race
}  // namespace emu
