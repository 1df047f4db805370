// Events: points in a stream that other streams, or the host, wait for. A record counts up the event's generation; a wait
// is for the generation of the newest record at the time of the call.
#include "state.h"

namespace driver {

static Event* event_of(void* handle) { return events.count((Event*)handle) != 0 ? (Event*)handle : nullptr; }

// Until an event's last record has been reached.
static int run_to(Call& call, Event& event) {
    if (event.done >= event.recorded || event.stream == nullptr) {
        return SUCCESS;
    }
    const uint64_t generation = event.recorded;
    return run_until(call, *event.stream, [&] { return event.done >= generation; });
}

// Waits for it that are queued are over; another event may get its address.
static void forget(const Event& event) {
    const auto in = [&](Stream& stream) {
        for (Operation& operation : stream.queue) {
            if (operation.event == &event) {
                operation.event = nullptr;
            }
        }
    };
    for (Stream* stream : streams) {
        in(*stream);
    }
    for (Device& device : devices()) {
        in(device.default_stream);
    }
}

}  // namespace driver

using namespace driver;

// The stream and the event of a call, or its error.
#define STREAM_OF(handle)                               \
    Stream* stream = stream_of(call.device(), handle);  \
    if (stream == nullptr) {                            \
        return INVALID_HANDLE;                          \
    }
#define EVENT_OF(handle)              \
    Event* event = event_of(handle);  \
    if (event == nullptr) {           \
        return INVALID_HANDLE;        \
    }

CUDA_API cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    CALL(cuStreamWaitEvent, Context);
    STREAM_OF(handle);
    EVENT_OF(event_handle);
    if (event->capture != nullptr) {  // a captured event takes the stream into its capture
        if (stream->capture != nullptr && stream->capture != event->capture) {
            return STREAM_CAPTURE_ISOLATION;
        }
        stream->capture = event->capture;
        stream->capture->members.insert(stream);
        stream->frontier.insert(stream->frontier.end(), event->frontier.begin(), event->frontier.end());
        return SUCCESS;
    }
    if (stream->capture != nullptr) {  // on work that came before the capture
        stream->capture->invalid = true;
        return STREAM_CAPTURE_ISOLATION;
    }
    if (event->stream == nullptr || event->done >= event->recorded) {
        return SUCCESS;
    }
    Operation wait;
    wait.what = "a wait for an event";
    wait.event = event;
    wait.generation = event->recorded;
    return submit(*stream, std::move(wait));
}
CUDA_API cuEventCreate(void** handle, unsigned flags) {
    CALL(cuEventCreate, Context);
    constexpr unsigned DISABLE_TIMING = 2;
    auto* event = new Event;
    event->timing = (flags & DISABLE_TIMING) == 0;
    events.insert(event);
    *handle = event;
    return SUCCESS;
}
CUDA_API cuEventDestroy_v2(void* handle) {
    CALL(cuEventDestroy_v2, Context);
    EVENT_OF(handle);
    // Who waits for it, waits for what it recorded.
    run_to(call, *event);
    forget(*event);
    events.erase(event);
    delete event;
    return SUCCESS;
}
static int record(Call& call, void* event_handle, void* stream_handle) {
    STREAM_OF(stream_handle);
    EVENT_OF(event_handle);
    if (stream->capture != nullptr) {
        event->capture = stream->capture;
        event->frontier = stream->frontier;
        return SUCCESS;
    }
    event->capture = nullptr;
    // An earlier record on another stream: who waits for it must not be left to the new one.
    if (event->stream != stream) {
        run_to(call, *event);
    }
    const uint64_t generation = ++event->recorded;
    event->stream = stream;
    Operation operation;
    operation.what = "an event's record";
    operation.always = true;
    operation.run = [event, generation] {
        if (events.count(event) != 0) {
            event->done = generation;
            event->milliseconds = now_milliseconds();
        }
        return SUCCESS;
    };
    return submit(*stream, std::move(operation));
}
CUDA_API cuEventRecord(void* event, void* stream) {
    CALL(cuEventRecord, Context);
    return record(call, event, stream);
}
CUDA_API cuEventRecordWithFlags(void* event, void* stream, unsigned) {
    CALL(cuEventRecordWithFlags, Context);
    return record(call, event, stream);
}
CUDA_API cuEventQuery(void* handle) {
    CALL(cuEventQuery, Context);
    EVENT_OF(handle);
    if (event->capture != nullptr) {
        return CAPTURED_EVENT;
    }
    if (event->stream != nullptr && event->done < event->recorded) {
        poll(*event->stream);
    }
    if (call.device().sticky != SUCCESS) {
        return call.device().sticky;
    }
    return event->done >= event->recorded ? SUCCESS : NOT_READY;
}
CUDA_API cuEventSynchronize(void* handle) {
    CALL(cuEventSynchronize, Context);
    EVENT_OF(handle);
    return event->capture != nullptr ? (int)CAPTURED_EVENT : run_to(call, *event);
}
static int elapsed(float* milliseconds, void* from, void* to) {
    const Event *a = event_of(from), *b = event_of(to);
    if (a == nullptr || b == nullptr || !a->timing || !b->timing || a->recorded == 0 || b->recorded == 0) {
        return INVALID_HANDLE;
    }
    if (a->done < a->recorded || b->done < b->recorded) {
        return NOT_READY;
    }
    *milliseconds = (float)(b->milliseconds - a->milliseconds);
    return SUCCESS;
}
CUDA_API cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    CALL(cuEventElapsedTime, Context);
    return elapsed(milliseconds, from, to);
}
CUDA_API cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    CALL(cuEventElapsedTime_v2, Context);
    return elapsed(milliseconds, from, to);
}
