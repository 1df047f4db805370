// Devices, their primary contexts, and what they say of themselves: an H100's limits.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "state.h"

namespace driver {

bool initialized;
thread_local Device* current_context;
std::set<Stream*> streams;
std::set<Event*> events;
bool lazy = true;
emu::Schedule schedule;
std::string newest_fault;

static uint64_t environment(const char* name, uint64_t otherwise) {
    const char* given = getenv(name);
    return given != nullptr && *given != 0 ? strtoull(given, nullptr, 0) : otherwise;
}

static void read_schedule() {
    const char* order = getenv("CUDASIM_ORDER");
    const std::string name = order != nullptr ? order : "fifo";
    schedule.order = name == "random"     ? emu::Order::Random
                     : name == "lifo"     ? emu::Order::Lifo
                     : name == "priority" ? emu::Order::Priority
                                          : emu::Order::Fifo;
    schedule.seed = environment("CUDASIM_SEED", 1);
    const char* mode = getenv("CUDASIM_MODE");
    lazy = mode == nullptr || strcmp(mode, "eager") != 0;
}

std::vector<Device>& devices() {
    static std::vector<Device> all = [] {
        constexpr uint64_t H100_BYTES = 85029158912;  // what an 80 GB H100 reports
        std::vector<Device> made(std::min<uint64_t>(environment("CUDASIM_DEVICES", 1), 16));
        for (size_t i = 0; i < made.size(); i++) {
            made[i].ordinal = (int)i;
            made[i].memory = environment("CUDASIM_MEMORY", H100_BYTES);
        }
        read_schedule();
        emu::describe_address = describe;
        return made;
    }();
    for (Device& device : all) {
        device.default_stream.device = &device;
    }
    return all;
}

Device* device_at(int ordinal) {
    return ordinal >= 0 && (size_t)ordinal < devices().size() ? &devices()[(size_t)ordinal] : nullptr;
}

emu::Schedule next_schedule() {
    emu::Schedule s = schedule;
    schedule.seed++;
    return s;
}

void fail(Device& device, int code, const std::string& text) {
    fprintf(stderr, "cudasim: %s\n", text.c_str());
    if (device.sticky == SUCCESS) {
        device.sticky = code;
        device.last_fault = newest_fault = text;
    }
}

bool take_physical(Device& device, size_t bytes) {
    if (bytes > device.memory || device.physical > device.memory - bytes) {
        return false;
    }
    device.physical += bytes;
    device.peak = std::max(device.peak, device.physical);
    return true;
}
void give_physical(Device& device, size_t bytes) { device.physical -= bytes; }

double now_milliseconds() {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// CUdevice_attribute -> an H100 SXM's value. What is not listed is 0, that is "no".
static int attribute(int number) {
    switch (number) {
    case 1: return 1024;         // threads in a block
    case 2: return 1024;         // block x
    case 3: return 1024;         // block y
    case 4: return 64;           // block z
    case 5: return 2147483647;   // grid x
    case 6: return 65535;        // grid y
    case 7: return 65535;        // grid z
    case 8: return 49152;        // shared memory of a block without asking for more
    case 9: return 65536;        // constant memory
    case 10: return 32;          // warp size
    case 11: return 2147483647;  // pitch
    case 12: return 65536;       // registers of a block
    case 13: return 1980000;     // clock, kHz
    case 14: return 512;         // texture alignment
    case 16: return 132;         // multiprocessors
    case 19: return 1;           // maps host memory
    case 31: return 1;           // concurrent kernels
    case 33: return 1;           // PCI bus
    case 36: return 2619000;     // memory clock, kHz
    case 37: return 5120;        // bus width
    case 38: return 52428800;    // L2 bytes
    case 39: return 2048;        // threads of a multiprocessor
    case 40: return 3;           // copy engines
    case 41: return 1;           // unified addressing
    case 75: return 9;           // compute capability, major
    case 76: return 0;           // and minor
    case 78: return 1;           // stream priorities
    case 81: return 233472;      // shared memory of a multiprocessor
    case 82: return 65536;       // registers of a multiprocessor
    case 97: return 232448;      // shared memory of a block that asks for more
    case 102: return 1;          // virtual memory management
    case 106: return 32;         // blocks of a multiprocessor
    case 111: return 1024;       // shared memory reserved by the driver in each block
    case 115: return 1;          // memory pools
    default: return 0;
    }
}

}  // namespace driver

using namespace driver;

CUDA_API cuInit(unsigned flags) {
    CALL(cuInit, Nothing);
    if (flags != 0) {
        return INVALID_VALUE;
    }
    if (devices().empty()) {
        return NO_DEVICE;
    }
    initialized = true;
    return SUCCESS;
}
CUDA_API cuDriverGetVersion(int* version) {
    CALL(cuDriverGetVersion, Nothing);
    *version = 13000;
    return SUCCESS;
}
CUDA_API cuDeviceGet(int* device, int ordinal) {
    CALL(cuDeviceGet, Init);
    if (device_at(ordinal) == nullptr) {
        return INVALID_DEVICE;
    }
    *device = ordinal;
    return SUCCESS;
}
CUDA_API cuDeviceGetCount(int* count) {
    CALL(cuDeviceGetCount, Init);
    *count = (int)devices().size();
    return SUCCESS;
}
CUDA_API cuDeviceGetName(char* name, int bytes, int device) {
    CALL(cuDeviceGetName, Init);
    if (device_at(device) == nullptr) {
        return INVALID_DEVICE;
    }
    snprintf(name, (size_t)bytes, "cudasim %d (limits of an H100 80GB HBM3)", device);
    return SUCCESS;
}
static int uuid(char* bytes, int device) {
    if (device_at(device) == nullptr) {
        return INVALID_DEVICE;
    }
    memcpy(bytes, "cudasim-device-0", 16);
    bytes[15] = (char)('0' + device);
    return SUCCESS;
}
CUDA_API cuDeviceGetUuid(char* bytes, int device) {
    CALL(cuDeviceGetUuid, Init);
    return uuid(bytes, device);
}
CUDA_API cuDeviceGetUuid_v2(char* bytes, int device) {
    CALL(cuDeviceGetUuid_v2, Init);
    return uuid(bytes, device);
}
CUDA_API cuDeviceTotalMem_v2(size_t* bytes, int device) {
    CALL(cuDeviceTotalMem_v2, Init);
    if (device_at(device) == nullptr) {
        return INVALID_DEVICE;
    }
    *bytes = device_at(device)->memory;
    return SUCCESS;
}
CUDA_API cuDeviceGetPCIBusId(char* text, int bytes, int device) {
    CALL(cuDeviceGetPCIBusId, Init);
    snprintf(text, (size_t)bytes, "0000:%02x:00.0", device + 1);
    return SUCCESS;
}
CUDA_API cuDeviceGetAttribute(int* value, int number, int device) {
    CALL(cuDeviceGetAttribute, Init);
    call.detail("%d", number);
    if (device_at(device) == nullptr) {
        return INVALID_DEVICE;
    }
    *value = number == 33 ? device + 1 : attribute(number);
    return SUCCESS;
}
CUDA_API cuDeviceCanAccessPeer(int* can, int device, int peer) {
    CALL(cuDeviceCanAccessPeer, Init);
    if (device_at(device) == nullptr || device_at(peer) == nullptr) {
        return INVALID_DEVICE;
    }
    *can = device != peer;
    return SUCCESS;
}
CUDA_API cuDevicePrimaryCtxRetain(void** context, int device) {
    CALL(cuDevicePrimaryCtxRetain, Init);
    if (device_at(device) == nullptr) {
        return INVALID_DEVICE;
    }
    device_at(device)->context_references++;
    *context = device_at(device);
    return SUCCESS;
}
// The last release destroys the context with all its memory; that also clears its error.
CUDA_API cuDevicePrimaryCtxRelease_v2(int ordinal) {
    CALL(cuDevicePrimaryCtxRelease_v2, Init);
    Device* device = device_at(ordinal);
    if (device == nullptr || device->context_references == 0) {
        return device == nullptr ? INVALID_DEVICE : INVALID_CONTEXT;
    }
    if (--device->context_references == 0) {
        run_all(call, *device);
        free_all(*device);
        device->sticky = SUCCESS;
        if (current_context == device) {
            current_context = nullptr;
        }
    }
    return SUCCESS;
}
CUDA_API cuCtxGetCurrent(void** context) {
    CALL(cuCtxGetCurrent, Init);
    *context = current_context;
    return SUCCESS;
}
CUDA_API cuCtxSetCurrent(void* context) {
    CALL(cuCtxSetCurrent, Init);
    for (Device& device : devices()) {
        if (context == nullptr || (context == &device && device.context_references > 0)) {
            current_context = (Device*)context;
            return SUCCESS;
        }
    }
    return INVALID_CONTEXT;
}
CUDA_API cuCtxGetDevice(int* device) {
    CALL(cuCtxGetDevice, Context);
    *device = call.device().ordinal;
    return SUCCESS;
}
CUDA_API cuCtxSynchronize() {
    CALL(cuCtxSynchronize, Context);
    if (const int code = forbid_in_any_capture()) {
        return code;
    }
    return run_all(call, call.device());
}
CUDA_API cuCtxSetFlags(unsigned) {
    CALL(cuCtxSetFlags, Context);
    return SUCCESS;
}
CUDA_API cuCtxGetLimit(size_t* value, int) {
    CALL(cuCtxGetLimit, Context);
    *value = 1024;
    return SUCCESS;
}
CUDA_API cuCtxSetLimit(int, size_t) {
    CALL(cuCtxSetLimit, Context);
    return SUCCESS;
}
CUDA_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    CALL(cuCtxGetStreamPriorityRange, Context);
    if (least != nullptr) {
        *least = 0;
    }
    if (greatest != nullptr) {
        *greatest = -5;
    }
    return SUCCESS;
}
CUDA_API cuCtxEnablePeerAccess(void*, unsigned) {
    CALL(cuCtxEnablePeerAccess, Context);
    return SUCCESS;
}
// NVRTC 13.0 opens libcuda where there is one and calls this: without the symbol it dereferences null, with an error
// it goes on alone.
CUDA_API cuGetExportTable(const void** table, const void*) {
    CALL(cuGetExportTable, Nothing);
    *table = nullptr;
    return NOT_FOUND;
}
CUDA_API cuGetProcAddress_v2(const char*, void** function, int, unsigned long long, int*) {
    CALL(cuGetProcAddress_v2, Nothing);
    *function = nullptr;
    return NOT_FOUND;
}
