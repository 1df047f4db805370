// What every call of the driver API begins with: the lock, the count and log of calls, injected failures, and the
// errors that any call can give.
#pragma once
#include <cstdint>
#include <mutex>
#include <string>

#include "results.h"

#define CUDA_API extern "C" __attribute__((visibility("default"))) int

namespace driver {

struct Device;

// One lock for the whole driver, held also while kernels run: what overlaps on a device is decided by the streams, not
// by the threads of the program under test.
extern std::mutex mutex;

enum class Needs {
    Nothing,  // works before cuInit
    Init,
    Context,  // a current context; gives its sticky error, once a launch has failed
};

class Call {
public:
    // `name` must live for ever.
    Call(const char* name, Needs needs);

    // The code to return at once, or SUCCESS.
    int refused() const { return refused_; }
    // The device of the current context; only with Needs::Context.
    Device& device() const { return *device_; }
    std::unique_lock<std::mutex>& lock() { return lock_; }
    // Appends to the log's line of this call.
    void detail(const char* format, ...) __attribute__((format(printf, 2, 3)));

private:
    std::unique_lock<std::mutex> lock_;
    Device* device_ = nullptr;
    int refused_ = SUCCESS;
};

// Calls are made by name: `CALL(cuInit, Nothing)` is the first line of a function.
#define CALL(name, needs)                                     \
    ::driver::Call call(#name, ::driver::Needs::needs);       \
    if (const int refused_code = call.refused()) {            \
        return refused_code;                                  \
    }

// ---- what tests ask for ----
// The nth next call of `function` ("*": of any) fails with `code` instead of doing anything.
void inject(const std::string& function, uint64_t nth, int code);
void inject_nothing();
uint64_t calls_of(const std::string& function);  // "*": all
void log_calls(bool on);
std::string logged_calls();
void forget_logged_calls();

// Counts, logs and fails like a driver call, for the libraries beside the driver; the lock must not be held.
int count_library_call(const char* name);

// A host callback runs: the driver may not be called from it.
class InHostFunction {
public:
    InHostFunction();
    ~InHostFunction();
};

}  // namespace driver
