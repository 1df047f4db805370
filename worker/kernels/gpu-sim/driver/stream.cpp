// Streams. A stream runs nothing until somebody waits for it: what is missing, a wait for an event above
// all, then shows in the result instead of being hidden by luck. CUDASIM_MODE=eager runs each operation at once.
#include <chrono>
#include <condition_variable>
#include <cstdlib>

#include "state.h"

namespace driver {

// Something was queued, or a host function ended.
static std::condition_variable changed;

void wake() { changed.notify_all(); }

enum class Step { Idle, Progress, Blocked };

static Step step(Stream& stream);

// Members of a collective sit on other devices: let these come to it.
static Step step_other_devices(const Device& device) {
    for (Device& other : devices()) {
        if (&other != &device && step(other.default_stream) == Step::Progress) {
            return Step::Progress;
        }
    }
    const std::set<Stream*> now = streams;  // a host function may make and destroy streams
    for (Stream* stream : now) {
        if (streams.count(stream) != 0 && stream->device != &device && step(*stream) == Step::Progress) {
            return Step::Progress;
        }
    }
    return Step::Blocked;
}

static int run(Operation& operation) {
    if (!operation.host_function) {
        return operation.run();
    }
    // The callback may wait for a lock of the program's that a thread holds which calls the driver.
    mutex.unlock();
    {
        const InHostFunction here;
        operation.run();
    }
    mutex.lock();
    return SUCCESS;
}

static bool still_waits(const Operation& operation) {
    return operation.event != nullptr && events.count(operation.event) != 0 && operation.event->done < operation.generation;
}

static Step step(Stream& stream) {
    if (stream.queue.empty()) {
        return Step::Idle;
    }
    if (stream.busy) {
        return Step::Blocked;
    }
    stream.busy = true;
    struct NotBusy {
        Stream& stream;
        ~NotBusy() { stream.busy = false; }
    } const not_busy{stream};
    Operation& front = stream.queue.front();
    if (still_waits(front)) {
        Stream* other = front.event->stream;
        return other != nullptr && step(*other) == Step::Progress ? Step::Progress : Step::Blocked;
    }
    if (front.run && (stream.device->sticky == SUCCESS || front.always)) {
        const int code = run(front);
        changed.notify_all();
        if (code == PENDING) {
            return step_other_devices(*stream.device);
        }
        if (code != SUCCESS && stream.device->sticky == SUCCESS) {
            fail(*stream.device, code, std::string(front.what) + " failed");
        }
    }
    stream.queue.pop_front();
    return Step::Progress;
}

static std::chrono::seconds patience() {
    const char* given = getenv("CUDASIM_TIMEOUT");
    return std::chrono::seconds(given != nullptr ? atoi(given) : 60);
}

int run_until(Call& call, Stream& stream, const std::function<bool()>& done) {
    Device& device = *stream.device;
    while (!done()) {
        const Step result = step(stream);
        if (result == Step::Idle) {
            break;
        }
        if (result == Step::Blocked && changed.wait_for(call.lock(), patience()) == std::cv_status::timeout) {
            const Operation& front = stream.queue.front();
            fail(device, LAUNCH_TIMEOUT, std::string("a stream waits forever, for ") + (front.event != nullptr ? "an event" : front.what));
            break;
        }
    }
    return device.sticky;
}

static bool never() { return false; }

int run_all(Call& call, Device& device) {
    run_until(call, device.default_stream, never);
    const std::set<Stream*> now = streams;
    for (Stream* stream : now) {
        if (streams.count(stream) != 0 && stream->device == &device) {
            run_until(call, *stream, never);
        }
    }
    return device.sticky;
}

int poll(Stream& stream) {
    step(stream);
    if (stream.device->sticky != SUCCESS) {
        return stream.device->sticky;
    }
    return stream.queue.empty() ? SUCCESS : NOT_READY;
}

int submit(Stream& stream, Operation operation) {
    if (stream.capture != nullptr) {
        return capture_operation(stream, std::move(operation));
    }
    stream.queue.push_back(std::move(operation));
    changed.notify_all();
    while (!lazy && step(stream) == Step::Progress) {
    }
    return SUCCESS;
}

Stream* stream_of(Device& device, void* handle) {
    const auto number = (uintptr_t)handle;
    if (number <= 2) {  // null, legacy and per-thread default streams are one
        return &device.default_stream;
    }
    auto* stream = (Stream*)handle;
    return streams.count(stream) != 0 && stream->device == &device ? stream : nullptr;
}

static int create(Device& device, void** handle) {
    auto* stream = new Stream;
    stream->device = &device;
    streams.insert(stream);
    *handle = stream;
    return SUCCESS;
}

}  // namespace driver

using namespace driver;

// The stream of a call, or its error.
#define STREAM_OF(handle)                               \
    Stream* stream = stream_of(call.device(), handle);  \
    if (stream == nullptr) {                            \
        return INVALID_HANDLE;                          \
    }
CUDA_API cuStreamCreate(void** handle, unsigned) {
    CALL(cuStreamCreate, Context);
    return create(call.device(), handle);
}
CUDA_API cuStreamCreateWithPriority(void** handle, unsigned, int) {
    CALL(cuStreamCreateWithPriority, Context);
    return create(call.device(), handle);
}
// Its work is still done, as the documentation promises: here at once.
CUDA_API cuStreamDestroy_v2(void* handle) {
    CALL(cuStreamDestroy_v2, Context);
    STREAM_OF(handle);
    if (stream == &call.device().default_stream) {
        return INVALID_HANDLE;
    }
    run_until(call, *stream, never);
    for (Event* event : events) {
        if (event->stream == stream) {
            event->stream = nullptr;
            event->done = event->recorded;
        }
    }
    streams.erase(stream);
    delete stream;
    return SUCCESS;
}
CUDA_API cuStreamSynchronize(void* handle) {
    CALL(cuStreamSynchronize, Context);
    STREAM_OF(handle);
    if (const int code = forbid_in_capture(*stream)) {
        return code;
    }
    return run_until(call, *stream, never);
}
CUDA_API cuStreamQuery(void* handle) {
    CALL(cuStreamQuery, Context);
    STREAM_OF(handle);
    if (const int code = forbid_in_capture(*stream)) {
        return code;
    }
    return stream->queue.empty() ? SUCCESS : poll(*stream);
}
CUDA_API cuLaunchHostFunc(void* handle, void (*function)(void*), void* user) {
    CALL(cuLaunchHostFunc, Context);
    STREAM_OF(handle);
    Operation operation;
    operation.what = "a host function";
    operation.host_function = true;
    operation.run = [=] {
        function(user);
        return SUCCESS;
    };
    return submit(*stream, std::move(operation));
}
