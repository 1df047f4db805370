// Device memory from allocations. Each has pages of its own that end at guard pages; what its size leaves up to the
// alignment of 256 bytes holds a pattern. Freed pages stay without permission for a while, so that use after free is
// found. Fresh memory reads as NaN.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "../race/race.h"
#include "state.h"

namespace driver {

constexpr size_t ALIGNMENT = 256, PAGE = 4096;
constexpr size_t GUARD = 1 << 20;  // addresses without permission behind each allocation
constexpr unsigned char CANARY = 0xA5;
constexpr size_t MOST_FILLED = 64 << 20;  // beyond, pages that nobody touches stay out of the host's memory (as zeros)
constexpr size_t FREED_KEPT = 8192;       // ranges: the kernel allows a process about 65,000

struct Allocation {
    size_t bytes;
    Device* device;
    char* pages;
    size_t page_bytes;  // with the guard pages
    bool charged = true;  // its bytes count as used
};
struct Freed {
    Address base;
    size_t bytes;
    char* pages;
    size_t page_bytes;
};

static std::map<Address, Allocation> allocations;
static std::deque<Freed> freed;

static size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

static int allocate(Device& device, Address* out, size_t bytes) {
    if (bytes == 0) {
        return INVALID_VALUE;
    }
    if (!take_physical(device, bytes)) {
        return OUT_OF_MEMORY;
    }
    const size_t body = rounded(bytes, ALIGNMENT), pages = rounded(body, PAGE);
    void* map = mmap(nullptr, pages + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        give_physical(device, bytes);
        return OUT_OF_MEMORY;
    }
    mprotect((char*)map + pages, GUARD, PROT_NONE);
    char* base = (char*)map + pages - body;
    memset(base + bytes, CANARY, body - bytes);
    if (bytes <= MOST_FILLED) {
        memset(base, 0xff, bytes);
    }
    *out = (Address)base;
    allocations[*out] = {bytes, &device, (char*)map, pages + GUARD};
    emu::race::allocated(base, bytes, device.ordinal);
    return SUCCESS;
}

static std::map<Address, Allocation>::iterator find(Address p) {
    auto it = allocations.upper_bound(p);
    if (it == allocations.begin()) {
        return allocations.end();
    }
    --it;
    return p - it->first < it->second.bytes ? it : allocations.end();
}

// The bytes are free for others from the moment of the call that frees them; the pages go when the stream gets there.
static void uncharge(Allocation& allocation) {
    if (allocation.charged) {
        allocation.charged = false;
        give_physical(*allocation.device, allocation.bytes);
    }
}

static int release(Address p) {
    const auto it = allocations.find(p);
    if (it == allocations.end()) {
        return INVALID_VALUE;
    }
    Allocation allocation = it->second;
    const auto* end = (const unsigned char*)p + allocation.bytes;
    const auto* body_end = (const unsigned char*)p + rounded(allocation.bytes, ALIGNMENT);
    const bool overrun = std::any_of(end, body_end, [](unsigned char c) { return c != CANARY; });
    emu::race::freed((void*)p);
    uncharge(allocation);
    allocations.erase(it);
    mmap(allocation.pages, allocation.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    freed.push_back({p, allocation.bytes, allocation.pages, allocation.page_bytes});
    if (freed.size() > FREED_KEPT) {
        munmap(freed.front().pages, freed.front().page_bytes);
        freed.pop_front();
    }
    if (overrun) {
        fail(*allocation.device, ILLEGAL_ADDRESS,
             "something wrote past the end of an allocation of " + std::to_string(allocation.bytes) + " bytes, within its last 256");
    }
    return SUCCESS;
}

void free_all(Device& device) {
    std::vector<Address> mine;
    for (const auto& [base, allocation] : allocations) {
        if (allocation.device == &device) {
            mine.push_back(base);
        }
    }
    for (const Address base : mine) {
        release(base);
    }
}

bool allocated_memory(Address p, size_t bytes) {
    const auto it = find(p);
    return it != allocations.end() && bytes <= it->second.bytes - (p - it->first);
}

bool device_memory(Address p, size_t bytes) { return bytes == 0 || allocated_memory(p, bytes) || mapped_memory(p, bytes); }

// Runs when a kernel has faulted, which is while the launching thread holds the lock.
std::string describe(uintptr_t address) {
    char text[200];
    if (address < 64 * 1024) {
        return "which is null or close to it";
    }
    for (const Freed& range : freed) {
        if (address >= range.base && address < range.base + range.bytes) {
            snprintf(text, sizeof text, "%zu bytes into an allocation of %zu bytes that was freed", (size_t)(address - range.base), range.bytes);
            return text;
        }
    }
    const auto after = allocations.upper_bound(address);
    if (after != allocations.begin()) {
        const auto& [base, allocation] = *std::prev(after);
        const size_t end = base + allocation.bytes;
        if (address >= end && address < end + (1 << 20)) {
            snprintf(text, sizeof text, "%zu bytes past the end of an allocation of %zu bytes", (size_t)(address - end), allocation.bytes);
            return text;
        }
    }
    if (after != allocations.end() && after->first - address < 1 << 20) {
        snprintf(text, sizeof text, "%zu bytes before an allocation of %zu bytes", (size_t)(after->first - address), after->second.bytes);
        return text;
    }
    std::string mapping = "which is in no allocation";
    describe_mapping(address, mapping);
    return mapping;
}

}  // namespace driver

using namespace driver;

CUDA_API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    CALL(cuMemGetInfo_v2, Context);
    *total = call.device().memory;
    *free_bytes = call.device().memory - std::min(call.device().memory, call.device().physical);
    return SUCCESS;
}
CUDA_API cuMemAlloc_v2(Address* p, size_t bytes) {
    CALL(cuMemAlloc_v2, Context);
    call.detail("%zu", bytes);
    if (const int code = forbid_in_any_capture()) {
        return code;
    }
    return allocate(call.device(), p, bytes);
}
CUDA_API cuMemFree_v2(Address p) {
    CALL(cuMemFree_v2, Context);
    call.detail("%#llx", (unsigned long long)p);
    if (p == 0) {
        return SUCCESS;
    }
    if (const int code = forbid_in_any_capture()) {
        return code;
    }
    run_all(call, call.device());
    return release(p);
}
CUDA_API cuMemAllocAsync(Address* p, size_t bytes, void* handle) {
    CALL(cuMemAllocAsync, Context);
    call.detail("%zu", bytes);
    Stream* stream = stream_of(call.device(), handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    // The real driver makes an allocation node of it, whose memory lives in the graph: nothing here wants that.
    if (const int code = forbid_in_capture(*stream)) {
        return code;
    }
    return allocate(call.device(), p, bytes);
}
CUDA_API cuMemFreeAsync(Address p, void* handle) {
    CALL(cuMemFreeAsync, Context);
    call.detail("%#llx", (unsigned long long)p);
    Stream* stream = stream_of(call.device(), handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    if (p == 0) {
        return SUCCESS;
    }
    const auto it = allocations.find(p);
    if (it == allocations.end() || !it->second.charged) {
        return INVALID_VALUE;
    }
    if (const int code = forbid_in_capture(*stream)) {
        return code;
    }
    uncharge(it->second);
    Operation operation;
    operation.what = "a free";
    operation.always = true;
    operation.run = [p] { return release(p); };
    return submit(*stream, std::move(operation));
}
CUDA_API cuMemGetAddressRange_v2(Address* base, size_t* bytes, Address p) {
    CALL(cuMemGetAddressRange_v2, Context);
    const auto it = find(p);
    if (it == allocations.end()) {
        return NOT_FOUND;
    }
    if (base != nullptr) {
        *base = it->first;
    }
    if (bytes != nullptr) {
        *bytes = it->second.bytes;
    }
    return SUCCESS;
}
// Memory pools: the default one, which keeps nothing back.
CUDA_API cuDeviceGetDefaultMemPool(void** pool, int device) {
    CALL(cuDeviceGetDefaultMemPool, Init);
    *pool = device_at(device);
    return *pool != nullptr ? SUCCESS : INVALID_DEVICE;
}
CUDA_API cuDeviceGetMemPool(void** pool, int device) {
    CALL(cuDeviceGetMemPool, Init);
    *pool = device_at(device);
    return *pool != nullptr ? SUCCESS : INVALID_DEVICE;
}
CUDA_API cuMemPoolGetAttribute(void*, int, void* value) {
    CALL(cuMemPoolGetAttribute, Init);
    memset(value, 0, sizeof(int));
    return SUCCESS;
}
CUDA_API cuMemPoolSetAttribute(void*, int, void*) {
    CALL(cuMemPoolSetAttribute, Init);
    return SUCCESS;
}
CUDA_API cuMemPoolTrimTo(void*, size_t) {
    CALL(cuMemPoolTrimTo, Init);
    return SUCCESS;
}
