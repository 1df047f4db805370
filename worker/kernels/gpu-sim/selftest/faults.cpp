// Faults of kernels: each ends the launch with an error that names kernel, block, thread and line, and stays.
#include <cmath>

#include "harness.h"

namespace test {

enum { ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719 };

struct Expected {
    int code;
    const char* text;
    const char* mark;  // null: no line
};

template <class... Args>
static void expect_fault(const char* name, const std::vector<unsigned>& sizes, Shape shape, const Expected& expected, Args... args) {
    CHECK(Kernel(name, sizes).run(shape, args...) == expected.code);
    CHECK(cuCtxSynchronize() == expected.code);  // the error stays
    const std::string fault = last_fault();
    CHECK(has(fault, std::string(name) + ": block (0, 0, 0) thread ("));
    CHECK(has(fault, expected.text));
    if (expected.mark != nullptr) {
        CHECK(has(fault, marked("faults.cu", expected.mark)));
    }
    cudasim_clear_fault(0);
}

// Dynamic shared memory and fresh device memory are NaN.
static void test_nan() {
    Buffer<float> out(128), in(std::vector<float>(128, 1.0f));
    CHECK(std::isnan(out.get()[5]));
    CHECK(Kernel("unwritten_shared", {8}).run({1, 32, 128}, out.p) == 0);
    CHECK(std::isnan(out.get()[5]) && std::isnan(out.get()[37]));
    CHECK(Kernel("async_copy", {8, 8, 4}).run({1, 32, 512}, out.p, in.p, 0u) == 0);
    CHECK(std::isnan(out.get()[5]));
}

void faults() {
    test_nan();
    // A kernel may be wrong in two ways; which lane's comes first is the order's business.
    Buffer<uint32_t> out(1024);
    out.set(std::vector<uint32_t>(1024, 0));
    const Shape one{1, 64};
    expect_fault("divergent_barrier", {8}, one, {LAUNCH_FAILED, "waits forever in __syncthreads", "divergent_barrier"}, out.p);
    expect_fault("two_barriers", {8}, one, {LAUNCH_FAILED, "wait at different barriers", "two_barriers"}, out.p);
    expect_fault("half_warp_mma", {8}, one, {LAUNCH_FAILED, "waits forever in mma m16n8k16 bf16", "half_warp_mma"}, out.p);
    expect_fault("wrong_mask", {8}, one, {LAUNCH_FAILED, "the calling lane is not in the mask", "wrong_mask"}, out.p);
    expect_fault("misaligned", {8}, one, {LAUNCH_FAILED, "bytes off its alignment of 16", "misaligned"}, out.p);
    expect_fault("past_the_end", {8}, one, {ILLEGAL_ADDRESS, "past the end of an allocation of 4096 bytes", "past_the_end"}, out.p);
    expect_fault("writes_to", {8}, one, {ILLEGAL_ADDRESS, "null or close to it", "writes_to"}, (uint64_t)0);
    expect_fault("past_dynamic_shared", {8}, {1, 64, 1024}, {ILLEGAL_ADDRESS, "dynamic shared memory", nullptr}, out.p);
    expect_fault("past_static_shared", {8, 4}, one, {LAUNCH_FAILED, "index 32 is out of the bounds of", "past_static_shared"}, out.p, 32u);
    expect_fault("ldmatrix_of_global", {8}, one, {LAUNCH_FAILED, "outside the block's shared memory", "ldmatrix_of_global"}, out.p);
    expect_fault("copy_from_nowhere", {8}, one, {ILLEGAL_ADDRESS, "past the end of an allocation", "copy_from_nowhere"}, out.p);
    expect_fault("endless_stack", {8}, one, {LAUNCH_FAILED, "stack is full", nullptr}, out.p);

    // A kernel that may start early must wait for the one ahead of it, in all threads.
    Kernel waits("waits_for_all_but", {8, 4});
    CHECK(waits.overlap(one, out.p, 64u) == 0 && cuCtxSynchronize() == 0);
    CHECK(waits.run(one, out.p, 5u) == 0);
    CHECK(waits.overlap(one, out.p, 5u) == 0 && cuCtxSynchronize() == LAUNCH_FAILED);
    CHECK(has(last_fault(), "thread (5, 0, 0): it was launched to overlap"));
    cudasim_clear_fault(0);

    uint64_t gone = 0;
    REQUIRE(cuMemAlloc_v2(&gone, 4096) == 0 && cuMemFree_v2(gone) == 0);
    expect_fault("writes_to", {8}, one, {ILLEGAL_ADDRESS, "into an allocation of 4096 bytes that was freed", "writes_to"}, gone);

    // A write that stays within the alignment of 256 bytes is found when the memory is freed.
    uint64_t small = 0;
    REQUIRE(cuMemAlloc_v2(&small, 200) == 0);
    CHECK(Kernel("writes_to", {8}).run({1, 64}, small) == 0);
    CHECK(cuMemFree_v2(small) == 0);
    CHECK(cuCtxSynchronize() == ILLEGAL_ADDRESS);
    CHECK(has(last_fault(), "past the end of an allocation of 200 bytes"));
    cudasim_clear_fault(0);
    CHECK(cuCtxSynchronize() == 0);
}

}  // namespace test
