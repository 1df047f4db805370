// cp.async. A copy happens when its group is waited for, the latest moment that the hardware may take: until then the
// destination reads as NaN, so a missing or wrong wait shows in the result.
#include <cstring>

#include "../race/race.h"
#include "runtime.h"

namespace emu {

void copy_async(void* dst, const void* src, unsigned bytes, bool read, Site site) {
    Fiber& me = current_fiber();
    me.touches = site;
    race::copy_issued(dst, bytes, site);
    memset(dst, 0xff, bytes);
    me.touches = {};
    me.copies.push_back({dst, src, bytes, read, me.copy_group, site});
}

void copy_commit() { current_fiber().copy_group++; }

static void finish(Fiber& fiber, const PendingCopy& copy) {
    fiber.touches = copy.site;
    if (copy.read) {
        race::access(copy.src, copy.bytes, false, copy.site);
        memcpy(copy.dst, copy.src, copy.bytes);
    } else {
        memset(copy.dst, 0, copy.bytes);
    }
    race::access(copy.dst, copy.bytes, true, copy.site);
    fiber.touches = {};
}

// What a thread leaves unfinished nobody may rely on: its source is looked at, and the destination stays NaN.
void abandon_copies(Fiber& fiber) {
    for (const PendingCopy& copy : fiber.copies) {
        unsigned char bytes[16];
        fiber.touches = copy.site;
        if (copy.read) {
            memcpy(bytes, copy.src, copy.bytes);
            asm volatile("" : : "r"(bytes) : "memory");
        }
        fiber.touches = {};
    }
}

void copy_wait(unsigned newest_allowed) {
    Fiber& me = current_fiber();
    size_t kept = 0;
    for (size_t i = 0; i < me.copies.size(); i++) {
        const PendingCopy copy = me.copies[i];
        if (copy.group + newest_allowed >= me.copy_group) {
            me.copies[kept++] = copy;
        } else {
            finish(me, copy);
        }
    }
    me.copies.resize(kept);
}

void note_access(const void* p, unsigned bytes, bool write, Site site) { race::access(p, bytes, write, site); }
void note_atomic(const void* p, unsigned bytes, Site site) {
    if ((uintptr_t)p % bytes != 0) {
        kernel_fault("an atomic operation on an address that is not aligned to its size", site);
    }
    race::atomic(p, bytes, site);
}
void note_fence() { race::fence(); }

void require_shared(const void* p, unsigned bytes, unsigned alignment, const char* instruction, Site site) {
    const auto address = (uintptr_t)p;
    if (address % alignment != 0) {
        kernel_fault((std::string("the shared memory address of ") + instruction + " is not aligned to " + std::to_string(alignment) + " bytes").c_str(), site);
    }
    if (!in_shared(*current->block, address, bytes)) {
        kernel_fault((std::string("the shared memory address of ") + instruction + " lies outside the block's shared memory").c_str(), site);
    }
}

}  // namespace emu
