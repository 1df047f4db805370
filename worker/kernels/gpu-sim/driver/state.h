// The emulated driver's state. Everything here is guarded by `mutex` (calls.h), which functions below expect to be held.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "../emu/launch.h"
#include "calls.h"

namespace driver {

using Address = uint64_t;  // CUdeviceptr; device memory is host memory at the same address

struct Device;
struct Stream;
struct Event;
struct Capture;

// ---- streams: queues of operations that run only when something waits for them (stream.cpp) ----

// What an operation gives that must be tried again later: a collective whose other members have not come yet.
constexpr int PENDING = -1;

struct Operation {
    const char* what = "";
    std::function<int()> run;  // SUCCESS, PENDING, or the error that becomes the device's
    bool host_function = false;  // runs without the lock
    bool always = false;         // runs also after an error, so that nobody waits forever
    // Or: a wait for an event.
    Event* event = nullptr;
    uint64_t generation = 0;
};

struct Stream {
    Device* device = nullptr;
    std::deque<Operation> queue;
    bool busy = false;  // an operation of it is being run
    // While it is captured:
    Capture* capture = nullptr;
    std::vector<int> frontier;  // nodes that the next one depends on
};

struct Event {
    uint64_t recorded = 0, done = 0;  // generations
    Stream* stream = nullptr;         // of the last record
    bool timing = true;
    double milliseconds = 0;
    Capture* capture = nullptr;  // recorded in a capture
    std::vector<int> frontier;
};

// Queues it, or adds it to the stream's capture.
int submit(Stream& stream, Operation operation);
// Run until `done`, or until the stream is empty; gives the device's error. The lock is released while another thread
// is waited for.
int run_until(Call& call, Stream& stream, const std::function<bool()>& done);
// Those that wait for a stream look again.
void wake();
int run_all(Call& call, Device& device);
// One operation: NOT_READY while there are more.
int poll(Stream& stream);
Stream* stream_of(Device& device, void* handle);  // null: no such stream

// ---- devices and contexts (device.cpp): the primary context of a device is the only one ----

struct Device {
    int ordinal = 0;
    int context_references = 0;
    int sticky = SUCCESS;
    std::string last_fault;
    size_t memory = 0;  // how many bytes it has
    size_t physical = 0, peak = 0;
    Stream default_stream;
};

extern bool initialized;
extern thread_local Device* current_context;
extern std::set<Stream*> streams;
extern std::set<Event*> events;
std::vector<Device>& devices();
Device* device_at(int ordinal);
// The device's error from now on, unless it has one.
void fail(Device& device, int code, const std::string& text);
extern std::string newest_fault;
// The device's memory use grows (or shrinks); false: there is not enough.
bool take_physical(Device& device, size_t bytes);
void give_physical(Device& device, size_t bytes);
double now_milliseconds();

// ---- memory (memory.cpp, virtual.cpp, host.cpp) ----

// Whether [p, p + bytes) is memory that the device may use now.
bool device_memory(Address p, size_t bytes);
// Bytes that copies brought to the host so far; with the lock held.
uint64_t copied_to_host();
bool allocated_memory(Address p, size_t bytes);
bool mapped_memory(Address p, size_t bytes);
bool page_locked(const void* p, size_t bytes);
std::string describe(uintptr_t address);
void describe_mapping(uintptr_t address, std::string& text);
void free_all(Device& device);

// ---- captures (graph.cpp) ----

enum class CaptureMode : int { Global = 0, ThreadLocal = 1, Relaxed = 2 };

struct Node {
    Operation operation;
    std::vector<int> after;
};

struct Capture {
    std::vector<Node> nodes;
    Stream* origin = nullptr;
    std::set<Stream*> members;
    CaptureMode mode = CaptureMode::Global;
    uint64_t thread = 0;  // that began it
    bool invalid = false;
};

int capture_operation(Stream& stream, Operation operation);
// SUCCESS, or the error of a call that must not be made while this stream, or any that this thread may not disturb, is
// captured; the capture is then invalid.
int forbid_in_capture(Stream& stream);
int forbid_in_any_capture();

// The schedule of the next launch; every launch takes another seed.
emu::Schedule next_schedule();
extern emu::Schedule schedule;
extern bool lazy;

}  // namespace driver
