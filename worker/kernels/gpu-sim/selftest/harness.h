// What the self tests share: the driver functions they call, checks, and kernels launched by name.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../driver/control.h"

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuCtxSynchronize();
int cuMemAlloc_v2(uint64_t*, size_t);
int cuMemFree_v2(uint64_t);
int cuMemAllocAsync(uint64_t*, size_t, void*);
int cuMemFreeAsync(uint64_t, void*);
int cuMemcpyHtoD_v2(uint64_t, const void*, size_t);
int cuMemcpyDtoH_v2(void*, uint64_t, size_t);
int cuMemcpyHtoDAsync_v2(uint64_t, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, uint64_t, size_t, void*);
int cuMemsetD8_v2(uint64_t, unsigned char, size_t);
int cuMemGetInfo_v2(size_t*, size_t*);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemGetAllocationGranularity(size_t*, const void*, int);
int cuMemAddressReserve(uint64_t*, size_t, size_t, uint64_t, unsigned long long);
int cuMemAddressFree(uint64_t, size_t);
int cuMemCreate(uint64_t*, size_t, const void*, unsigned long long);
int cuMemRelease(uint64_t);
int cuMemMap(uint64_t, size_t, size_t, uint64_t, unsigned long long);
int cuMemUnmap(uint64_t, size_t);
int cuMemSetAccess(uint64_t, size_t, const void*, size_t);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuFuncSetAttribute(void*, int, int);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
int cuLaunchKernelEx(const void*, void*, void**, void**);
int cuStreamCreate(void**, unsigned);
int cuStreamSynchronize(void*);
int cuStreamQuery(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuStreamBeginCapture_v2(void*, int);
int cuStreamEndCapture(void*, void**);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventSynchronize(void*);
int cuEventDestroy_v2(void*);
int cuLaunchHostFunc(void*, void (*)(void*), void*);
int cuGraphInstantiateWithFlags(void**, void*, unsigned long long);
int cuGraphLaunch(void*, void*);
}

namespace test {

inline int failures = 0, checks = 0;

inline bool check(bool ok, const char* what, const char* file, int line) {
    checks++;
    if (!ok) {
        failures++;
        fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
    }
    return ok;
}
#define CHECK(condition) ::test::check((condition), #condition, __FILE__, __LINE__)
// For what everything after it needs.
#define REQUIRE(condition)   \
    if (!CHECK(condition)) { \
        exit(1);             \
    }

struct Shape {
    unsigned blocks, threads;
    unsigned dynamic_shared = 0;
};

// A kernel's parameters, in order: 8 bytes for a pointer, 4 for a number, or the bytes of a structure.
class Kernel {
public:
    // `sizes` of the parameters, as the device image states them. Gives cuModuleLoadData's code in `code`.
    explicit Kernel(const std::string& name, const std::vector<unsigned>& sizes, unsigned max_threads = 1024, int* code = nullptr) {
        std::string ptx = ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry " + name + "(";
        for (size_t i = 0; i < sizes.size(); i++) {
            ptx += std::string(i > 0 ? "," : "") + ".param .align 8 .b8 p" + std::to_string(i) + "[" + std::to_string(sizes[i]) + "]";
        }
        ptx += ")\n.maxntid " + std::to_string(max_threads) + ", 1, 1\n{ ret; }\n";
        void* module = nullptr;
        const int loaded = cuModuleLoadData(&module, ptx.c_str());
        if (code != nullptr) {
            *code = loaded;
        } else {
            REQUIRE(loaded == 0);
        }
        if (loaded == 0) {
            REQUIRE(cuModuleGetFunction(&function, module, name.c_str()) == 0);
        }
    }

    template <class... Args>
    int launch_on(void* stream, Shape shape, Args... args) {
        void* pointers[] = {(void*)&args..., nullptr};
        return cuLaunchKernel(function, shape.blocks, 1, 1, shape.threads, 1, 1, shape.dynamic_shared, stream, pointers, nullptr);
    }
    // As launch_on the default stream, allowed to overlap with the kernel ahead of it.
    template <class... Args>
    int overlap(Shape shape, Args... args) {
        void* pointers[] = {(void*)&args..., nullptr};
        const struct {
            int id = 6;  // programmatic stream serialization
            int pad = 0;
            int value[16] = {1};
        } attribute;
        const struct {
            unsigned grid[3], block[3], shared;
            void* stream = nullptr;
            const void* attributes;
            unsigned count = 1;
        } config{{shape.blocks, 1, 1}, {shape.threads, 1, 1}, shape.dynamic_shared, nullptr, &attribute};
        return cuLaunchKernelEx(&config, function, pointers, nullptr);
    }
    // On the default stream, and to its end.
    template <class... Args>
    int run(Shape shape, Args... args) {
        const int code = launch_on(nullptr, shape, args...);
        return code != 0 ? code : cuStreamSynchronize(nullptr);
    }

    void* function = nullptr;
};

// Device memory of n values.
template <class T>
class Buffer {
public:
    explicit Buffer(size_t n) : n_(n) { REQUIRE(cuMemAlloc_v2(&p, n * sizeof(T)) == 0); }
    explicit Buffer(const std::vector<T>& from) : Buffer(from.size()) { set(from); }
    ~Buffer() { cuMemFree_v2(p); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void set(const std::vector<T>& from) { REQUIRE(cuMemcpyHtoD_v2(p, from.data(), from.size() * sizeof(T)) == 0); }
    std::vector<T> get() const {
        std::vector<T> to(n_);
        REQUIRE(cuMemcpyDtoH_v2(to.data(), p, n_ * sizeof(T)) == 0);
        return to;
    }

    uint64_t p = 0;

private:
    size_t n_;
};

inline std::string last_fault() { return cudasim_last_fault(); }
inline bool has(const std::string& text, const std::string& part) {
    const bool found = text.find(part) != std::string::npos;
    if (!found) {
        fprintf(stderr, "'%s' has no '%s'\n", text.c_str(), part.c_str());
    }
    return found;
}

// The next number of a fixed sequence.
inline uint32_t next_random() {
    static uint64_t state = 7;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33);
}

// "faults.cu:12", the line of `mark` in a file of selftest/kernels.
std::string marked(const std::string& file, const std::string& mark);

void collectives();
void orders();
void tensor();
void memory();
void faults();
void driver();
void libraries();
void races();

}  // namespace test
