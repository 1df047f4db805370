// What tests may ask of the emulated device beyond the driver API: exported by libcuda.so.1, found by dlsym. A program
// that runs on hardware too looks for `cudasim_version` first.
#pragma once
#include <cstddef>
#include <cstdint>

#define CUDASIM_CONTROL extern "C" __attribute__((visibility("default")))

CUDASIM_CONTROL int cudasim_version();  // 1

// ---- memory: device -1 is the current context's device ----
CUDASIM_CONTROL uint64_t cudasim_physical_bytes(int device);
CUDASIM_CONTROL uint64_t cudasim_physical_peak(int device);
CUDASIM_CONTROL void cudasim_reset_peak(int device);
CUDASIM_CONTROL void cudasim_set_memory(int device, uint64_t bytes);
// Bytes that copies brought to the host so far, from all devices.
CUDASIM_CONTROL uint64_t cudasim_bytes_to_host();

// ---- how fibers and streams run ----
// order: 0 fifo, 1 lifo, 2 random, 3 priority.
CUDASIM_CONTROL void cudasim_set_order(int order, uint64_t seed);
CUDASIM_CONTROL void cudasim_set_lazy(int lazy);

// ---- errors ----
// The text of the device's first fault since the last clear, cut to `bytes` with its zero; gives its whole length.
CUDASIM_CONTROL size_t cudasim_fault(int device, char* text, size_t bytes);
// The text of the newest fault of any device, or "": valid until this thread asks again.
CUDASIM_CONTROL const char* cudasim_last_fault();
// Forgets the device's error, which on hardware only a new process does.
CUDASIM_CONTROL void cudasim_clear_fault(int device);
// The nth next call of `function`, or of any for "*", fails with `code`; nth 0 takes back what has not struck yet.
CUDASIM_CONTROL void cudasim_fail(const char* function, uint64_t nth, int code);

// ---- calls ----
CUDASIM_CONTROL uint64_t cudasim_calls(const char* function);  // "*": all
CUDASIM_CONTROL void cudasim_log(int on);                      // on forgets what was logged before
CUDASIM_CONTROL size_t cudasim_logged(char* text, size_t bytes);

// ---- for the libraries beside this one: cuBLASLt and NCCL ----
// Counts a call of a library; the code that it is made to fail with, or 0.
CUDASIM_CONTROL int cudasim_count(const char* function);
// Runs `run(user)` in the order of the stream (device -1: the current one); gives a CUresult. `run` gives 0, -1 to be tried again later, or an
// error. `release(user)` is called once nobody can run it any more.
CUDASIM_CONTROL int cudasim_submit(int device, void* stream, const char* what, int (*run)(void*), void* user, void (*release)(void*));
CUDASIM_CONTROL int cudasim_is_device_memory(uint64_t p, size_t bytes);
CUDASIM_CONTROL void cudasim_written(uint64_t p, size_t bytes);
CUDASIM_CONTROL int cudasim_current_device();  // -1: no context
// Whether what is submitted to the stream now is recorded in a graph.
CUDASIM_CONTROL int cudasim_is_capturing(int device, void* stream);
// Those that wait for a stream look again.
CUDASIM_CONTROL void cudasim_wake();
