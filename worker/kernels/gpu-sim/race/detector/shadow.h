// What the race detector remembers of memory: for every four bytes the last accesses, and for every byte whether
// somebody wrote it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emu::race {

// An access to some of the four bytes of a granule.
struct Access {
    uint64_t valid : 1, atomic : 1, bytes : 4, thread : 10, time : 16, block : 16, site : 16;

    unsigned warp() const { return (unsigned)thread / 32; }
};
static_assert(sizeof(Access) == 8);

// Four of each: as many threads may write the four bytes one by one. What does not fit is forgotten, which can hide a
// race but not invent one.
constexpr unsigned SLOTS = 4;
struct Granule {
    Access writes[SLOTS], reads[SLOTS];
};
static_assert(sizeof(Granule) == 64);

constexpr size_t PAGE_GRANULES = 256;
struct Page {
    uint64_t life = 0;  // of the last access; accesses of an earlier life concern nobody
    Granule granules[PAGE_GRANULES];
};

// A piece of memory that kernels share: an allocation, or a block's shared memory.
struct Region {
    uintptr_t base = 0;
    size_t bytes = 0;
    size_t body = 0;  // with what its alignment leaves before the guard page
    int device = -1;  // -1: any
    const char* kind = "";
    std::vector<std::unique_ptr<Page>> pages;
    std::vector<bool> written;

    void reset(uintptr_t at, size_t size, size_t with_slack, int on_device, const char* what);
    bool holds(uintptr_t address) const { return address >= base && address - base < body; }
    Granule& granule(size_t offset, uint64_t life);
    void set_written(uintptr_t address, size_t n, bool is);
};

// The region of an address, or null.
Region* find_region(uintptr_t address);
extern Region dynamic_shared, static_shared;

// Places in the source, as small numbers. A place is an instruction's address, or a line that a primitive gave.
uint16_t site_of_pc(uintptr_t pc);
uint16_t site_of_line(const char* file, int line);
std::string site_text(uint16_t site);

}  // namespace emu::race
