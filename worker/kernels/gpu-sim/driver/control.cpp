#include "control.h"

#include <algorithm>
#include <cstring>

#include "../race/race.h"
#include "state.h"

using namespace driver;

static Device* device_or_current(int ordinal) { return ordinal < 0 ? current_context : device_at(ordinal); }

// With the lock held, if there is such a device.
template <class Result, class Do>
static Result on_device(int ordinal, Result otherwise, Do action) {
    const std::lock_guard<std::mutex> lock(mutex);
    Device* device = device_or_current(ordinal);
    return device != nullptr ? action(*device) : otherwise;
}

static size_t copy_text(const std::string& from, char* text, size_t bytes) {
    if (text != nullptr && bytes > 0) {
        const size_t n = std::min(from.size(), bytes - 1);
        memcpy(text, from.data(), n);
        text[n] = 0;
    }
    return from.size();
}

int cudasim_version() { return 1; }

uint64_t cudasim_physical_bytes(int device) {
    return on_device<uint64_t>(device, 0, [](Device& d) { return (uint64_t)d.physical; });
}
uint64_t cudasim_physical_peak(int device) {
    return on_device<uint64_t>(device, 0, [](Device& d) { return (uint64_t)d.peak; });
}
void cudasim_reset_peak(int device) {
    on_device<int>(device, 0, [](Device& d) {
        d.peak = d.physical;
        return 0;
    });
}
uint64_t cudasim_bytes_to_host() {
    const std::lock_guard<std::mutex> lock(mutex);
    return copied_to_host();
}
void cudasim_set_memory(int device, uint64_t bytes) {
    on_device<int>(device, 0, [bytes](Device& d) {
        d.memory = bytes;
        return 0;
    });
}

void cudasim_set_order(int order, uint64_t seed) {
    const std::lock_guard<std::mutex> lock(mutex);
    devices();  // else the environment would be read later, over this
    schedule = {(emu::Order)std::clamp(order, 0, 3), seed};
}
void cudasim_set_lazy(int on) {
    const std::lock_guard<std::mutex> lock(mutex);
    devices();
    lazy = on != 0;
}

size_t cudasim_fault(int device, char* text, size_t bytes) {
    return on_device<size_t>(device, 0, [&](Device& d) { return copy_text(d.last_fault, text, bytes); });
}
const char* cudasim_last_fault() {
    static thread_local std::string text;
    const std::lock_guard<std::mutex> lock(mutex);
    text = newest_fault;
    return text.c_str();
}
void cudasim_clear_fault(int device) {
    on_device<int>(device, 0, [](Device& d) {
        d.sticky = SUCCESS;
        d.last_fault.clear();
        newest_fault.clear();
        return 0;
    });
}
void cudasim_fail(const char* function, uint64_t nth, int code) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (nth == 0) {
        inject_nothing();
    } else {
        inject(function, nth, code);
    }
}

uint64_t cudasim_calls(const char* function) {
    const std::lock_guard<std::mutex> lock(mutex);
    return calls_of(function);
}
void cudasim_log(int on) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (on != 0) {
        forget_logged_calls();
    }
    log_calls(on != 0);
}
size_t cudasim_logged(char* text, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex);
    return copy_text(logged_calls(), text, bytes);
}

int cudasim_count(const char* function) { return count_library_call(function); }

int cudasim_submit(int ordinal, void* handle, const char* what, int (*run)(void*), void* user, void (*release)(void*)) {
    const std::shared_ptr<void> keep(user, release);
    const std::lock_guard<std::mutex> lock(mutex);
    Device* device = device_or_current(ordinal);
    if (device == nullptr || device->context_references == 0) {
        return INVALID_CONTEXT;
    }
    Stream* stream = stream_of(*device, handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    Operation operation;
    operation.what = what;
    operation.run = [run, keep] { return run(keep.get()); };
    return submit(*stream, std::move(operation));
}

// Called while an operation runs, that is with the lock held.
int cudasim_is_device_memory(uint64_t p, size_t bytes) { return device_memory(p, bytes); }
void cudasim_written(uint64_t p, size_t bytes) { emu::race::written((void*)p, bytes); }

int cudasim_current_device() { return current_context != nullptr ? current_context->ordinal : -1; }

int cudasim_is_capturing(int ordinal, void* handle) {
    return on_device<int>(ordinal, 0, [handle](Device& d) {
        const Stream* stream = stream_of(d, handle);
        return stream != nullptr && stream->capture != nullptr ? 1 : 0;
    });
}

void cudasim_wake() {
    const std::lock_guard<std::mutex> lock(mutex);
    wake();
}
