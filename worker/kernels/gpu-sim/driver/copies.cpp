// Copies and fills. Addresses are looked at when the call is made and again when the stream gets there.
#include <cstring>
#include <memory>

#include "../race/race.h"
#include "state.h"

namespace driver {

static int host_to_device(Address dst, const void* src, size_t bytes) {
    if (!device_memory(dst, bytes)) {
        return ILLEGAL_ADDRESS;
    }
    memcpy((void*)dst, src, bytes);
    emu::race::written((void*)dst, bytes);
    return SUCCESS;
}
// Copies run with the lock held.
static uint64_t bytes_to_host = 0;
uint64_t copied_to_host() { return bytes_to_host; }

static int device_to_host(void* dst, Address src, size_t bytes) {
    if (!device_memory(src, bytes)) {
        return ILLEGAL_ADDRESS;
    }
    bytes_to_host += bytes;
    memcpy(dst, (void*)src, bytes);
    return SUCCESS;
}
static int device_to_device(Address dst, Address src, size_t bytes) {
    if (!device_memory(dst, bytes) || !device_memory(src, bytes)) {
        return ILLEGAL_ADDRESS;
    }
    memmove((void*)dst, (void*)src, bytes);
    emu::race::copied((void*)dst, (void*)src, bytes);
    return SUCCESS;
}
// `width` bytes of `value`, `count` times.
static int fill(Address dst, unsigned value, size_t width, size_t count) {
    if (!device_memory(dst, width * count)) {
        return ILLEGAL_ADDRESS;
    }
    if (width == 1) {
        memset((void*)dst, (int)value, count);
    } else {
        for (size_t i = 0; i < count; i++) {
            memcpy((char*)dst + i * width, &value, width);
        }
    }
    emu::race::written((void*)dst, width * count);
    return SUCCESS;
}

static int submit_copy(Stream& stream, const char* what, std::function<int()> run) {
    Operation operation;
    operation.what = what;
    operation.run = std::move(run);
    return submit(stream, std::move(operation));
}

static bool never() { return false; }

static int fill_in_stream(Call& call, Address dst, unsigned value, size_t width, size_t count, void* handle) {
    call.detail("%#llx %zu", (unsigned long long)dst, width * count);
    Stream* stream = stream_of(call.device(), handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    if (dst % width != 0 || !device_memory(dst, width * count)) {
        return INVALID_VALUE;
    }
    return submit_copy(*stream, "a fill", [=] { return fill(dst, value, width, count); });
}

// A synchronous call: after all that the device was given, which a capture forbids.
static int at_once(Call& call, bool valid, const std::function<int()>& run) {
    if (const int code = forbid_in_any_capture()) {
        return code;
    }
    if (!valid) {
        return INVALID_VALUE;
    }
    const int code = run_all(call, call.device());
    return code != SUCCESS ? code : run();
}

}  // namespace driver

using namespace driver;

#define COPY_STREAM(valid)                                   \
    call.detail("%zu", bytes);                               \
    Stream* stream = stream_of(call.device(), handle);       \
    if (stream == nullptr) {                                 \
        return INVALID_HANDLE;                               \
    }                                                        \
    if (!(valid)) {                                          \
        return INVALID_VALUE;                                \
    }                                                        \
    if (bytes == 0) {                                        \
        return SUCCESS;                                      \
    }

CUDA_API cuMemcpyHtoDAsync_v2(Address dst, const void* src, size_t bytes, void* handle) {
    CALL(cuMemcpyHtoDAsync_v2, Context);
    COPY_STREAM(device_memory(dst, bytes));
    if (stream->capture != nullptr || page_locked(src, bytes)) {
        return submit_copy(*stream, "a copy to the device", [=] { return host_to_device(dst, src, bytes); });
    }
    // Pageable memory is staged before the call returns.
    const auto staged = std::make_shared<std::vector<char>>((const char*)src, (const char*)src + bytes);
    return submit_copy(*stream, "a copy to the device", [=] { return host_to_device(dst, staged->data(), bytes); });
}
CUDA_API cuMemcpyDtoHAsync_v2(void* dst, Address src, size_t bytes, void* handle) {
    CALL(cuMemcpyDtoHAsync_v2, Context);
    COPY_STREAM(device_memory(src, bytes));
    const bool pinned = page_locked(dst, bytes);
    if (!pinned) {
        if (const int code = forbid_in_capture(*stream)) {
            return code;
        }
    }
    const int code = submit_copy(*stream, "a copy to the host", [=] { return device_to_host(dst, src, bytes); });
    // Into pageable memory the call returns after the copy.
    return code != SUCCESS || pinned ? code : run_until(call, *stream, never);
}
CUDA_API cuMemcpyDtoDAsync_v2(Address dst, Address src, size_t bytes, void* handle) {
    CALL(cuMemcpyDtoDAsync_v2, Context);
    COPY_STREAM(device_memory(dst, bytes) && device_memory(src, bytes));
    return submit_copy(*stream, "a copy on the device", [=] { return device_to_device(dst, src, bytes); });
}
CUDA_API cuMemcpyPeerAsync(Address dst, void*, Address src, void*, size_t bytes, void* handle) {
    CALL(cuMemcpyPeerAsync, Context);
    COPY_STREAM(device_memory(dst, bytes) && device_memory(src, bytes));
    return submit_copy(*stream, "a copy between devices", [=] { return device_to_device(dst, src, bytes); });
}
CUDA_API cuMemcpyHtoD_v2(Address dst, const void* src, size_t bytes) {
    CALL(cuMemcpyHtoD_v2, Context);
    return at_once(call, device_memory(dst, bytes), [=] { return host_to_device(dst, src, bytes); });
}
CUDA_API cuMemcpyDtoH_v2(void* dst, Address src, size_t bytes) {
    CALL(cuMemcpyDtoH_v2, Context);
    return at_once(call, device_memory(src, bytes), [=] { return device_to_host(dst, src, bytes); });
}
CUDA_API cuMemcpyDtoD_v2(Address dst, Address src, size_t bytes) {
    CALL(cuMemcpyDtoD_v2, Context);
    return at_once(call, device_memory(dst, bytes) && device_memory(src, bytes), [=] { return device_to_device(dst, src, bytes); });
}
CUDA_API cuMemsetD8_v2(Address dst, unsigned char value, size_t count) {
    CALL(cuMemsetD8_v2, Context);
    return at_once(call, device_memory(dst, count), [=] { return fill(dst, value, 1, count); });
}
CUDA_API cuMemsetD32_v2(Address dst, unsigned value, size_t count) {
    CALL(cuMemsetD32_v2, Context);
    return at_once(call, dst % 4 == 0 && device_memory(dst, 4 * count), [=] { return fill(dst, value, 4, count); });
}
CUDA_API cuMemsetD8Async(Address dst, unsigned char value, size_t count, void* handle) {
    CALL(cuMemsetD8Async, Context);
    return fill_in_stream(call, dst, value, 1, count, handle);
}
CUDA_API cuMemsetD16Async(Address dst, unsigned short value, size_t count, void* handle) {
    CALL(cuMemsetD16Async, Context);
    return fill_in_stream(call, dst, value, 2, count, handle);
}
CUDA_API cuMemsetD32Async(Address dst, unsigned value, size_t count, void* handle) {
    CALL(cuMemsetD32Async, Context);
    return fill_in_stream(call, dst, value, 4, count, handle);
}
