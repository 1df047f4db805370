// The driver: streams, events, graphs, limits, memory accounting, virtual memory, injected failures.
#include <cstring>

#include "harness.h"

namespace test {

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_READY = 600, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNJOINED = 904 };

static std::vector<float> ones(size_t n) { return std::vector<float>(n, 1.0f); }

static void* stream() {
    void* s = nullptr;
    REQUIRE(cuStreamCreate(&s, 1) == 0);
    return s;
}
static void* event() {
    void* e = nullptr;
    REQUIRE(cuEventCreate(&e, 2) == 0);
    return e;
}

// A stream runs nothing before somebody waits; an event makes another stream's work come first.
static void test_streams() {
    Buffer<float> data(ones(256));
    Kernel add("add_one", {8, 4});
    void *a = stream(), *b = stream(), *e = event();
    CHECK(add.launch_on(a, {1, 256}, data.p, 256u) == 0);
    CHECK(add.launch_on(a, {1, 256}, data.p, 256u) == 0);
    std::vector<float> seen(256);
    CHECK(cuMemcpyDtoHAsync_v2(seen.data(), data.p, 1024, b) == 0);
    CHECK(seen[0] == 1.0f);  // nobody waited for a
    CHECK(cuEventRecord(e, a) == 0);
    CHECK(cuStreamWaitEvent(b, e, 0) == 0);
    CHECK(cuMemcpyDtoHAsync_v2(seen.data(), data.p, 1024, b) == 0);
    CHECK(seen[0] == 3.0f);
    CHECK(add.launch_on(a, {1, 256}, data.p, 256u) == 0);
    CHECK(cuStreamQuery(a) == NOT_READY || data.get()[0] == 4.0f);
    CHECK(cuStreamSynchronize(a) == 0);
    CHECK(cuStreamQuery(a) == 0);
    // A wait whose event is gone is over, also when a new event gets its address.
    CHECK(add.launch_on(a, {1, 256}, data.p, 0u) == 0 && cuEventRecord(e, a) == 0 && cuStreamWaitEvent(b, e, 0) == 0);
    CHECK(cuEventDestroy_v2(e) == 0);
    e = event();
    CHECK(cuEventRecord(e, b) == 0 && cuEventRecord(e, b) == 0 && cuStreamSynchronize(b) == 0);
    // Pageable memory is staged at the call, page-locked memory is read when the stream gets there.
    float* locked = nullptr;
    REQUIRE(cuMemHostAlloc((void**)&locked, 1024, 0) == 0);
    std::vector<float> pageable(256, 10.0f);
    locked[0] = 10.0f;
    CHECK(cuMemcpyHtoDAsync_v2(data.p, pageable.data(), 1024, a) == 0);
    pageable[0] = 20.0f;
    CHECK(cuStreamSynchronize(a) == 0);
    CHECK(data.get()[0] == 10.0f);
    CHECK(cuMemcpyHtoDAsync_v2(data.p, locked, 1024, a) == 0);
    locked[0] = 20.0f;
    CHECK(cuStreamSynchronize(a) == 0);
    CHECK(data.get()[0] == 20.0f);
    CHECK(cuMemFreeHost(locked) == 0);
    int called = 0;
    CHECK(cuLaunchHostFunc(a, [](void* p) { ++*(int*)p; }, &called) == 0);
    CHECK(called == 0);
    CHECK(cuStreamSynchronize(a) == 0 && called == 1);
}

static void test_graphs() {
    Buffer<float> data(ones(256));
    Kernel add("add_one", {8, 4});
    void *a = stream(), *b = stream(), *fork = event(), *join = event(), *graph = nullptr, *executable = nullptr;
    constexpr int THREAD_LOCAL = 1;
    REQUIRE(cuStreamBeginCapture_v2(a, THREAD_LOCAL) == 0);
    CHECK(add.launch_on(a, {1, 256}, data.p, 128u) == 0);
    CHECK(cuEventRecord(fork, a) == 0 && cuStreamWaitEvent(b, fork, 0) == 0);
    CHECK(add.launch_on(b, {1, 256}, data.p, 256u) == 0);
    CHECK(cuEventRecord(join, b) == 0 && cuStreamWaitEvent(a, join, 0) == 0);
    REQUIRE(cuStreamEndCapture(a, &graph) == 0);
    CHECK(data.get()[0] == 1.0f);  // a capture runs nothing
    REQUIRE(cuGraphInstantiateWithFlags(&executable, graph, 0) == 0);
    CHECK(cuGraphLaunch(executable, a) == 0 && cuGraphLaunch(executable, a) == 0);
    CHECK(cuStreamSynchronize(a) == 0);
    const std::vector<float> got = data.get();
    CHECK(got[0] == 5.0f && got[200] == 3.0f);

    REQUIRE(cuStreamBeginCapture_v2(a, THREAD_LOCAL) == 0);
    CHECK(cuStreamSynchronize(a) == CAPTURE_UNSUPPORTED);
    CHECK(cuStreamEndCapture(a, &graph) == CAPTURE_INVALIDATED);
    REQUIRE(cuStreamBeginCapture_v2(a, THREAD_LOCAL) == 0);
    uint64_t p = 0;
    CHECK(cuMemAlloc_v2(&p, 16) == CAPTURE_UNSUPPORTED);
    CHECK(cuStreamEndCapture(a, &graph) == CAPTURE_INVALIDATED);
    REQUIRE(cuStreamBeginCapture_v2(a, THREAD_LOCAL) == 0);
    CHECK(cuEventRecord(fork, a) == 0 && cuStreamWaitEvent(b, fork, 0) == 0);
    CHECK(add.launch_on(b, {1, 256}, data.p, 256u) == 0);
    CHECK(cuStreamEndCapture(a, &graph) == CAPTURE_UNJOINED);
}

static void test_limits() {
    Buffer<float> data(ones(256));
    Kernel add("add_one", {8, 4}, 128);
    CHECK(add.run({1, 256}, data.p, 256u) == OUT_OF_RESOURCES);  // __launch_bounds__
    CHECK(add.run({1, 0}, data.p, 256u) == INVALID_VALUE);
    CHECK(add.run({1, 32, 49153}, data.p, 256u) == INVALID_VALUE);
    constexpr int MAX_DYNAMIC_SHARED = 8;
    CHECK(cuFuncSetAttribute(add.function, MAX_DYNAMIC_SHARED, 100000) == 0);
    CHECK(add.run({1, 32, 100000}, data.p, 256u) == 0);
    CHECK(cuFuncSetAttribute(add.function, MAX_DYNAMIC_SHARED, 240000) == INVALID_VALUE);
    int code = 0;
    Kernel("add_one", {8, 8}, 256, &code);
    CHECK(code == NO_BINARY);  // parameters of other sizes
    Kernel("no_such_kernel", {8}, 256, &code);
    CHECK(code == NO_BINARY);
}

static void test_accounting() {
    const uint64_t before = cudasim_physical_bytes(0);
    cudasim_reset_peak(0);
    uint64_t a = 0, b = 0;
    REQUIRE(cuMemAlloc_v2(&a, 1000) == 0 && cuMemAllocAsync(&b, 500, nullptr) == 0);
    CHECK(cudasim_physical_bytes(0) == before + 1500);
    CHECK(cuMemFreeAsync(b, nullptr) == 0);
    CHECK(cudasim_physical_bytes(0) == before + 1000 && cudasim_physical_peak(0) == before + 1500);
    CHECK(cuMemFreeAsync(b, nullptr) == INVALID_VALUE);  // twice
    CHECK(cuMemFree_v2(a) == 0 && cudasim_physical_bytes(0) == before);
    cudasim_set_memory(0, before + 4096);
    CHECK(cuMemAlloc_v2(&a, 4097) == OUT_OF_MEMORY);
    CHECK(cuMemAlloc_v2(&a, 4096) == 0 && cuMemFree_v2(a) == 0);
    cudasim_set_memory(0, 80ull << 30);
}

struct AllocationProperties {
    int type = 1, handle_types = 0, location_type = 1, location = 0;
    void* security = nullptr;
    unsigned char flags[8] = {};
};
struct Access {
    int location_type = 1, location = 0, flags = 3;
};

static void test_virtual_memory() {
    constexpr size_t CHUNK = 2 << 20;
    const AllocationProperties properties;
    const Access access;
    size_t granularity = 0;
    CHECK(cuMemGetAllocationGranularity(&granularity, &properties, 0) == 0 && granularity == CHUNK);
    const uint64_t before = cudasim_physical_bytes(0);
    uint64_t range = 0, one = 0, two = 0;
    REQUIRE(cuMemAddressReserve(&range, 4 * CHUNK, 0, 0, 0) == 0);
    CHECK(range % CHUNK == 0 && cudasim_physical_bytes(0) == before);
    CHECK(cuMemCreate(&one, CHUNK + 1, &properties, 0) == INVALID_VALUE);
    REQUIRE(cuMemCreate(&one, CHUNK, &properties, 0) == 0 && cuMemCreate(&two, CHUNK, &properties, 0) == 0);
    CHECK(cudasim_physical_bytes(0) == before + 2 * CHUNK);
    CHECK(cuMemMap(range + 4 * CHUNK, CHUNK, 0, one, 0) == INVALID_VALUE);
    REQUIRE(cuMemMap(range, CHUNK, 0, one, 0) == 0 && cuMemMap(range + CHUNK, CHUNK, 0, two, 0) == 0);
    CHECK(cuMemMap(range, CHUNK, 0, two, 0) == INVALID_VALUE);  // there is one already
    CHECK(cuMemsetD8_v2(range, 0, 16) == INVALID_VALUE);        // no access yet
    REQUIRE(cuMemSetAccess(range, 2 * CHUNK, &access, 1) == 0);
    // A copy and a kernel across the border of two chunks.
    const std::vector<float> content(512, 1.0f);
    const uint64_t across = range + CHUNK - 1024;
    CHECK(cuMemcpyHtoD_v2(across, content.data(), 2048) == 0);
    CHECK(Kernel("add_one", {8, 4}).run({2, 256}, across, 512u) == 0);
    std::vector<float> got(512);
    CHECK(cuMemcpyDtoH_v2(got.data(), across, 2048) == 0);
    CHECK(got == std::vector<float>(512, 2.0f));
    CHECK(cuMemAddressFree(range, 4 * CHUNK) == INVALID_VALUE);  // mapped
    // Unmapped, the handle keeps the content; what was queued and uses the range fails.
    Kernel add("add_one", {8, 4});
    CHECK(cuMemUnmap(range, CHUNK / 2) == INVALID_VALUE);
    CHECK(add.launch_on(nullptr, {1, 256}, range, 256u) == 0);
    CHECK(cuMemUnmap(range, CHUNK) == 0);
    CHECK(cuStreamSynchronize(nullptr) == ILLEGAL_ADDRESS);
    CHECK(has(last_fault(), "into a reserved range of 8388608 bytes, where no memory is mapped"));
    cudasim_clear_fault(0);
    REQUIRE(cuMemMap(range + 2 * CHUNK, CHUNK, 0, one, 0) == 0 && cuMemSetAccess(range + 2 * CHUNK, CHUNK, &access, 1) == 0);
    CHECK(cuMemcpyDtoH_v2(got.data(), range + 3 * CHUNK - 1024, 1024) == 0 && got[0] == 2.0f);
    // Bytes are in use while there is the handle or a mapping.
    CHECK(cuMemRelease(one) == 0 && cuMemRelease(two) == 0 && cuMemRelease(two) == INVALID_VALUE);
    CHECK(cudasim_physical_bytes(0) == before + 2 * CHUNK);
    CHECK(cuMemUnmap(range + CHUNK, 2 * CHUNK) == 0);
    CHECK(cudasim_physical_bytes(0) == before);
    CHECK(cuMemAddressFree(range, 4 * CHUNK) == 0);
}

static void test_injection_and_log() {
    uint64_t p = 0;
    cudasim_log(1);
    cudasim_fail("cuMemAlloc_v2", 2, OUT_OF_MEMORY);
    REQUIRE(cuMemAlloc_v2(&p, 64) == 0);
    uint64_t q = 0;
    CHECK(cuMemAlloc_v2(&q, 64) == OUT_OF_MEMORY);
    cudasim_fail("*", 1, 999);
    CHECK(cuCtxSynchronize() == 999);
    CHECK(cuCtxSynchronize() == 0);
    CHECK(cuMemFree_v2(p) == 0);
    cudasim_log(0);
    std::string text(cudasim_logged(nullptr, 0), ' ');
    cudasim_logged(&text[0], text.size() + 1);
    CHECK(has(text, "cuMemAlloc_v2 64\n") && has(text, "cuMemAlloc_v2 (made to fail)\n") && has(text, "cuMemFree_v2 0x"));
    CHECK(cudasim_calls("cuMemFree_v2") > 0 && cudasim_calls("*") > cudasim_calls("cuMemFree_v2"));
}

void driver() {
    test_streams();
    test_graphs();
    test_limits();
    test_accounting();
    test_virtual_memory();
    test_injection_and_log();
}

}  // namespace test
