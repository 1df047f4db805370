#include "order.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "../../emu/runtime.h"
#include "../race.h"

namespace emu::race {

// A warp's time goes on at each barrier of its block and at each __syncwarp of all its lanes.
static uint16_t warp_time[MAX_WARPS];
static uint16_t at_block_barrier[MAX_WARPS];  // each warp's time after the block's last barrier
static uint64_t launches, blocks;             // serial numbers
static uint16_t block_number;
static int device;

// A block that adds to a counter after a fence gives what it did to all that see the counter later. Whole blocks stand
// for their threads here, which is what the pattern means: barrier, fence and atomic by one thread, then a barrier.
static bool fenced;
static std::set<uint16_t> seen_blocks;
static std::unordered_map<uintptr_t, std::set<uint16_t>> given_at;

bool single_thread() { return true; }
int launch_device() { return device; }

void launch_start(const Launch& launch) {
    launches++;
    device = launch.device;
    given_at.clear();
}

void block_start(Block& block) {
    blocks++;
    block_number = (uint16_t)block.number;
    std::fill(std::begin(warp_time), std::end(warp_time), 1);
    std::fill(std::begin(at_block_barrier), std::end(at_block_barrier), 1);
    fenced = false;
    seen_blocks.clear();
    const size_t dynamic = block.launch->dynamic_shared;
    dynamic_shared.reset((uintptr_t)block.dynamic_shared, dynamic, (dynamic + 127) / 128 * 128, -1, "dynamic shared memory");
    static_shared.reset((uintptr_t)block.statics, block.statics_bytes, block.statics_bytes, -1, "static shared memory");
}
std::string block_end(Block&) { return {}; }  // what is wrong ends the block at once

void block_barrier(Block&) {
    for (unsigned warp = 0; warp < MAX_WARPS; warp++) {
        at_block_barrier[warp] = ++warp_time[warp];
    }
}
void warp_barrier(Block& block, unsigned warp, unsigned mask) {
    if (mask == block.warps[warp].exist) {
        warp_time[warp]++;
    }
}

void fence() { fenced = true; }
static void synchronize_blocks(uintptr_t address) {
    std::set<uint16_t>& given = given_at[address];
    seen_blocks.insert(given.begin(), given.end());
    if (fenced) {
        given.insert(seen_blocks.begin(), seen_blocks.end());
        given.insert(block_number);
    }
}
void note_synchronization(const Region& region, uintptr_t address) {
    if (&region != &dynamic_shared && &region != &static_shared) {
        synchronize_blocks(address);
    }
}

uint64_t life_of(const Region& region) { return &region == &dynamic_shared || &region == &static_shared ? blocks : launches; }

Access now(bool atomic, uint16_t site) {
    Access access{};
    access.valid = 1;
    access.atomic = atomic;
    access.thread = current->linear;
    access.time = warp_time[current->warp];
    access.block = block_number;
    access.site = site;
    return access;
}

bool before_now(const Access& access) {
    if (access.block != block_number) {
        return seen_blocks.count((uint16_t)access.block) != 0;
    }
    const unsigned warp = access.warp();
    return access.thread == current->linear || access.time < at_block_barrier[warp] ||
           (warp == current->warp && access.time < warp_time[warp]);
}

}  // namespace emu::race
