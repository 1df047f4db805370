// Page-locked host memory. It is read and written when the stream gets to a copy, not when the copy is asked for: a
// buffer that is used again too early shows.
#include <sys/mman.h>

#include <cstring>

#include "../race/race.h"
#include "state.h"

namespace driver {

struct Locked {
    size_t bytes;
    bool ours;  // allocated here, not registered
};
static std::map<uintptr_t, Locked> locked;

bool page_locked(const void* p, size_t bytes) {
    auto it = locked.upper_bound((uintptr_t)p);
    if (it == locked.begin()) {
        return false;
    }
    --it;
    return (uintptr_t)p + bytes <= it->first + it->second.bytes;
}

static bool overlaps(const void* p, size_t bytes) {
    const auto it = locked.lower_bound((uintptr_t)p + bytes);
    if (it == locked.begin()) {
        return false;
    }
    const auto& [base, range] = *std::prev(it);
    return base + range.bytes > (uintptr_t)p;
}

static int host_allocate(void** p, size_t bytes) {
    if (bytes == 0) {
        return INVALID_VALUE;
    }
    void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        return OUT_OF_MEMORY;
    }
    locked[(uintptr_t)pages] = {bytes, true};
    emu::race::allocated(pages, bytes, -1);
    emu::race::written(pages, bytes);
    *p = pages;
    return SUCCESS;
}

}  // namespace driver

using namespace driver;

CUDA_API cuMemHostAlloc(void** p, size_t bytes, unsigned) {
    CALL(cuMemHostAlloc, Context);
    call.detail("%zu", bytes);
    if (const int code = forbid_in_any_capture()) {
        return code;
    }
    return host_allocate(p, bytes);
}
CUDA_API cuMemAllocHost_v2(void** p, size_t bytes) {
    CALL(cuMemAllocHost_v2, Context);
    if (const int code = forbid_in_any_capture()) {
        return code;
    }
    return host_allocate(p, bytes);
}
CUDA_API cuMemFreeHost(void* p) {
    CALL(cuMemFreeHost, Context);
    const auto it = locked.find((uintptr_t)p);
    if (it == locked.end() || !it->second.ours) {
        return INVALID_VALUE;
    }
    run_all(call, call.device());
    emu::race::freed(p);
    munmap(p, it->second.bytes);
    locked.erase((uintptr_t)p);
    return SUCCESS;
}
CUDA_API cuMemHostRegister_v2(void* p, size_t bytes, unsigned) {
    CALL(cuMemHostRegister_v2, Context);
    call.detail("%zu", bytes);
    if (p == nullptr || bytes == 0) {
        return INVALID_VALUE;
    }
    if (overlaps(p, bytes)) {
        return HOST_MEMORY_ALREADY_REGISTERED;
    }
    locked[(uintptr_t)p] = {bytes, false};
    return SUCCESS;
}
CUDA_API cuMemHostUnregister(void* p) {
    CALL(cuMemHostUnregister, Context);
    const auto it = locked.find((uintptr_t)p);
    if (it == locked.end() || it->second.ours) {
        return HOST_MEMORY_NOT_REGISTERED;
    }
    run_all(call, call.device());
    locked.erase((uintptr_t)p);
    return SUCCESS;
}
CUDA_API cuMemHostGetDevicePointer_v2(Address* device_pointer, void* p, unsigned) {
    CALL(cuMemHostGetDevicePointer_v2, Context);
    if (!page_locked(p, 1)) {
        return INVALID_VALUE;
    }
    *device_pointer = (Address)p;
    return SUCCESS;
}
CUDA_API cuMemHostGetFlags(unsigned* flags, void* p) {
    CALL(cuMemHostGetFlags, Context);
    *flags = 0;
    return page_locked(p, 1) ? SUCCESS : INVALID_VALUE;
}
