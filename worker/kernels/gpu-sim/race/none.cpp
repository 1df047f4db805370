// The plain build: no race detector.
#include "race.h"

namespace emu::race {

bool single_thread() { return false; }
void launch_start(const Launch&) {}
void block_start(Block&) {}
std::string block_end(Block&) { return {}; }
void block_barrier(Block&) {}
void warp_barrier(Block&, unsigned, unsigned) {}
void fence() {}
void access(const void*, unsigned, bool, Site) {}
void atomic(const void*, unsigned, Site) {}
void copy_issued(const void*, unsigned, Site) {}
void allocated(const void*, size_t, int) {}
void freed(const void*) {}
void written(const void*, size_t) {}
void copied(const void*, const void*, size_t) {}

}  // namespace emu::race
