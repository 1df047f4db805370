// Virtual memory management: reserved address ranges, physical handles, and mappings of these into those. A handle is
// a memory file, so its content stays what it is while it is mapped elsewhere. Addresses without a mapping, or with one
// that nobody gave access to, have no permission.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "../race/race.h"
#include "state.h"

namespace driver {

constexpr size_t GRANULARITY = 2 << 20;

struct Physical {
    size_t bytes;
    Device* device;
    int file;
    int mappings = 0;
    bool released = false;
};
struct Mapping {
    size_t bytes;
    uint64_t handle;
    bool accessible = false;
};

static std::map<Address, size_t> reservations;
static std::map<Address, Mapping> mappings;
static std::map<uint64_t, Physical> handles;
static uint64_t last_handle = 0x5000;

static bool whole(size_t bytes) { return bytes != 0 && bytes % GRANULARITY == 0; }

static void fill_with_nan(int file, size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (p != MAP_FAILED) {
        memset(p, 0xff, bytes);
        munmap(p, bytes);
    }
}

// The bytes are in use while there is the handle or a mapping of it.
static void drop_if_unused(uint64_t handle) {
    const auto it = handles.find(handle);
    if (it->second.released && it->second.mappings == 0) {
        close(it->second.file);
        give_physical(*it->second.device, it->second.bytes);
        handles.erase(it);
    }
}

static bool reserved(Address p, size_t bytes) {
    auto it = reservations.upper_bound(p);
    if (it == reservations.begin()) {
        return false;
    }
    --it;
    return p - it->first <= it->second && bytes <= it->second - (p - it->first);
}

static bool overlaps_mapping(Address p, size_t bytes) {
    const auto it = mappings.lower_bound(p + bytes);
    if (it == mappings.begin()) {
        return false;
    }
    const auto& [base, mapping] = *std::prev(it);
    return base + mapping.bytes > p;
}

// Calls `each` for the mappings that make up [p, p + bytes); false if there is a gap, or one reaches beyond.
template <class Each>
static bool for_whole_mappings(Address p, size_t bytes, Each each) {
    for (Address at = p; at < p + bytes;) {
        const auto it = mappings.find(at);
        if (it == mappings.end() || it->second.bytes > p + bytes - at) {
            return false;
        }
        at += it->second.bytes;
        each(it->first, it->second);
    }
    return true;
}
static bool are_whole_mappings(Address p, size_t bytes) {
    return bytes > 0 && for_whole_mappings(p, bytes, [](Address, Mapping&) {});
}

bool mapped_memory(Address p, size_t bytes) {
    auto it = mappings.upper_bound(p);
    if (it == mappings.begin()) {
        return false;
    }
    const Address end = p + bytes;
    for (--it; it != mappings.end() && it->first <= p; ++it) {
        if (!it->second.accessible || it->first + it->second.bytes <= p) {
            return false;
        }
        p = it->first + it->second.bytes;
        if (p >= end) {
            return true;
        }
    }
    return false;
}

void describe_mapping(uintptr_t address, std::string& text) {
    for (const auto& [base, bytes] : reservations) {
        if (address < base || address >= base + bytes) {
            continue;
        }
        char place[160];
        snprintf(place, sizeof place, "%zu bytes into a reserved range of %zu bytes, where %s", (size_t)(address - base), bytes,
                 overlaps_mapping(address, 1) ? "memory is mapped without access" : "no memory is mapped");
        text = place;
    }
}

// cuda.h's structures, as far as they are read.
struct Location {
    int type, id;
};
struct AllocationProperties {
    int type, requested_handle_types;
    Location location;
    void* win32_handle_data;
    unsigned char flags[8];
};
struct AccessDescription {
    Location location;
    int flags;
};
enum { ALLOCATION_PINNED = 1, LOCATION_DEVICE = 1, ACCESS_NONE = 0, ACCESS_READ = 1, ACCESS_READ_WRITE = 3 };

}  // namespace driver

using namespace driver;

CUDA_API cuMemGetAllocationGranularity(size_t* granularity, const AllocationProperties* properties, int) {
    CALL(cuMemGetAllocationGranularity, Init);
    if (properties == nullptr || properties->type != ALLOCATION_PINNED || properties->location.type != LOCATION_DEVICE) {
        return INVALID_VALUE;
    }
    *granularity = GRANULARITY;
    return SUCCESS;
}
CUDA_API cuMemAddressReserve(Address* p, size_t bytes, size_t alignment, Address, unsigned long long flags) {
    CALL(cuMemAddressReserve, Init);
    call.detail("%zu", bytes);
    if (!whole(bytes) || flags != 0 || (alignment & (alignment - 1)) != 0) {
        return INVALID_VALUE;
    }
    const size_t to = alignment > GRANULARITY ? alignment : GRANULARITY;
    void* pages = mmap(nullptr, bytes + to, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) {
        return OUT_OF_MEMORY;
    }
    const Address start = (Address)pages, base = (start + to - 1) / to * to;
    if (base > start) {
        munmap(pages, base - start);
    }
    munmap((void*)(base + bytes), to - (base - start));
    reservations[base] = bytes;
    *p = base;
    return SUCCESS;
}
CUDA_API cuMemAddressFree(Address p, size_t bytes) {
    CALL(cuMemAddressFree, Init);
    const auto it = reservations.find(p);
    if (it == reservations.end() || it->second != bytes || overlaps_mapping(p, bytes)) {
        return INVALID_VALUE;
    }
    munmap((void*)p, bytes);
    reservations.erase(it);
    return SUCCESS;
}
CUDA_API cuMemCreate(uint64_t* handle, size_t bytes, const AllocationProperties* properties, unsigned long long flags) {
    CALL(cuMemCreate, Init);
    call.detail("%zu", bytes);
    if (!whole(bytes) || flags != 0 || properties == nullptr || properties->type != ALLOCATION_PINNED ||
        properties->location.type != LOCATION_DEVICE) {
        return INVALID_VALUE;
    }
    Device* device = device_at(properties->location.id);
    if (device == nullptr) {
        return INVALID_DEVICE;
    }
    if (!take_physical(*device, bytes)) {
        return OUT_OF_MEMORY;
    }
    const int file = memfd_create("cudasim", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, (off_t)bytes) != 0) {
        give_physical(*device, bytes);
        return OUT_OF_MEMORY;
    }
    fill_with_nan(file, bytes);
    *handle = ++last_handle;
    handles[*handle] = {bytes, device, file};
    return SUCCESS;
}
CUDA_API cuMemRelease(uint64_t handle) {
    CALL(cuMemRelease, Init);
    const auto it = handles.find(handle);
    if (it == handles.end() || it->second.released) {
        return INVALID_VALUE;
    }
    it->second.released = true;
    drop_if_unused(handle);
    return SUCCESS;
}
CUDA_API cuMemMap(Address p, size_t bytes, size_t offset, uint64_t handle, unsigned long long flags) {
    CALL(cuMemMap, Init);
    call.detail("%#llx %zu", (unsigned long long)p, bytes);
    const auto it = handles.find(handle);
    if (it == handles.end() || it->second.released || !whole(bytes) || bytes > it->second.bytes || offset != 0 || flags != 0 ||
        p % GRANULARITY != 0 || !reserved(p, bytes) || overlaps_mapping(p, bytes)) {
        return INVALID_VALUE;
    }
    if (mmap((void*)p, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, it->second.file, 0) == MAP_FAILED) {
        return OUT_OF_MEMORY;
    }
    mappings[p] = {bytes, handle};
    it->second.mappings++;
    return SUCCESS;
}
// Not ordered with streams: what is still queued and uses the range fails when it runs.
CUDA_API cuMemUnmap(Address p, size_t bytes) {
    CALL(cuMemUnmap, Init);
    call.detail("%#llx %zu", (unsigned long long)p, bytes);
    if (!are_whole_mappings(p, bytes)) {
        return INVALID_VALUE;
    }
    std::vector<uint64_t> unmapped;
    for_whole_mappings(p, bytes, [&](Address base, Mapping& mapping) {
        unmapped.push_back(mapping.handle);
        if (mapping.accessible) {
            emu::race::freed((void*)base);
        }
    });
    mmap((void*)p, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    mappings.erase(mappings.find(p), mappings.lower_bound(p + bytes));
    for (const uint64_t handle : unmapped) {
        handles.at(handle).mappings--;
        drop_if_unused(handle);
    }
    return SUCCESS;
}
CUDA_API cuMemSetAccess(Address p, size_t bytes, const AccessDescription* descriptions, size_t count) {
    CALL(cuMemSetAccess, Init);
    call.detail("%#llx %zu", (unsigned long long)p, bytes);
    if (!are_whole_mappings(p, bytes) || descriptions == nullptr || count == 0) {
        return INVALID_VALUE;
    }
    int flags = ACCESS_NONE;
    for (size_t i = 0; i < count; i++) {
        if (descriptions[i].location.type != LOCATION_DEVICE || device_at(descriptions[i].location.id) == nullptr) {
            return INVALID_VALUE;
        }
        flags |= descriptions[i].flags;
    }
    const int protection = flags == ACCESS_READ_WRITE ? PROT_READ | PROT_WRITE : flags == ACCESS_READ ? PROT_READ : PROT_NONE;
    mprotect((void*)p, bytes, protection);
    for_whole_mappings(p, bytes, [&](Address base, Mapping& mapping) {
        if (flags != ACCESS_NONE && !mapping.accessible) {
            // What is mapped its owner divides up: a block of it is moved whole, also where it is not full.
            emu::race::allocated((void*)base, mapping.bytes, handles.at(mapping.handle).device->ordinal);
            emu::race::written((void*)base, mapping.bytes);
        }
        mapping.accessible = flags != ACCESS_NONE;
    });
    return SUCCESS;
}
