#include <cmath>
#include <cstring>

#include "harness.h"

namespace test {

static void test_async_copy() {
    std::vector<float> in(128);
    for (size_t i = 0; i < in.size(); i++) in[i] = (float)i;
    Buffer<float> from(in), to(128);
    Kernel kernel("async_copy", {8, 8, 4});
    CHECK(kernel.run({1, 32, 512}, to.p, from.p, 1u) == 0);
    std::vector<float> got = to.get();
    for (size_t i = 0; i < 128; i++) {
        CHECK(got[i] == (i < 124 ? (float)i : 0.0f));  // the last lane's copy writes zeros
    }
}

static void test_struct_parameter() {
    struct {
        uint64_t data;
        float by;
        uint32_t n;
    } parameters{0, 3.0f, 10};
    Buffer<float> data(std::vector<float>(64, 2.0f));
    parameters.data = data.p;
    CHECK(Kernel("scale", {16}).run({1, 64}, parameters) == 0);
    const std::vector<float> got = data.get();
    CHECK(got[9] == 6.0f && got[10] == 2.0f);
}

static void test_last_block() {
    constexpr unsigned BLOCKS = 50;
    Buffer<uint32_t> total(std::vector<uint32_t>{0}), parts(std::vector<uint32_t>(BLOCKS, 0)), counter(std::vector<uint32_t>{0});
    CHECK(Kernel("last_block_sums", {8, 8, 8}).run({BLOCKS, 32}, total.p, parts.p, counter.p) == 0);
    CHECK(total.get()[0] == BLOCKS * (BLOCKS + 1) / 2);
}

void memory() {
    test_async_copy();
    test_struct_parameter();
    test_last_block();
}

}  // namespace test
