#include "harness.h"

namespace test {

// What each lane gets, by the definitions in the PTX manual, written without masks or segments.
static void test_shuffles() {
    Buffer<int> out(32 * 8);
    CHECK(Kernel("shuffles", {8}).run({1, 32}, out.p) == 0);
    const std::vector<int> got = out.get();
    for (int lane = 0; lane < 32; lane++) {
        const int in8 = lane % 8, base8 = lane - in8;
        const int want[8] = {lane ^ 5,
                             lane + 3 < 32 ? lane + 3 : lane,
                             lane >= 3 ? lane - 3 : lane,
                             7,
                             lane,  // 9 leaves the segment of 8 upwards, or goes down to a lower segment
                             in8 + 3 < 8 ? lane + 3 : lane,
                             in8 >= 3 ? lane - 3 : lane,
                             base8 + 3};
        for (int i = 0; i < 8; i++) {
            int expected = want[i];
            if (i == 4) {  // xor may reach a lower segment, never a higher one
                expected = (lane ^ 9) < base8 + 8 ? lane ^ 9 : lane;
            }
            CHECK(got[(size_t)(lane * 8 + i)] == expected);
        }
    }
    Buffer<int> halves(32);
    CHECK(Kernel("half_warps", {8}).run({1, 32}, halves.p) == 0);
    const std::vector<int> half = halves.get();
    for (int lane = 0; lane < 32; lane++) {
        const int want = lane < 16 ? (lane == 15 ? 15 : lane + 1) : (lane == 16 ? 16 : lane - 1);
        CHECK(half[(size_t)lane] == want);
    }
}

static void test_votes() {
    Buffer<int> out(64 * 8);
    CHECK(Kernel("votes", {8}).run({1, 64}, out.p) == 0);
    const std::vector<int> got = out.get();
    unsigned thirds = 0;
    for (int lane = 0; lane < 32; lane += 3) {
        thirds |= 1u << lane;
    }
    for (int thread = 0; thread < 64; thread++) {
        const int* mine = &got[(size_t)thread * 8];
        CHECK(mine[0] == (int)thirds);
        CHECK(mine[1] == (thread >= 32));
        CHECK(mine[2] == (thread < 32));
        CHECK((unsigned)mine[3] == 0x11111111u << thread % 4);
        CHECK(mine[4] == 31 * 32 / 2 - 20 * 32);
        CHECK(mine[5] == 11);
        CHECK((unsigned)mine[6] == 0x80000000u);
        CHECK(mine[7] == 13 * 100 + 1 * 10 + 0);
    }
}

static void test_indices() {
    Kernel kernel("indices", {8});
    Buffer<unsigned> out(2 * 3 * 2 * 24);
    void* parameters[] = {&out.p};
    CHECK(cuLaunchKernel(kernel.function, 2, 3, 2, 4, 3, 2, 0, nullptr, parameters, nullptr) == 0);
    const std::vector<unsigned> got = out.get();
    for (unsigned i = 0; i < got.size(); i++) {
        CHECK(got[i] == i / 24 * 1000 + i % 24);
    }
}

static void test_atomics() {
    constexpr unsigned BLOCKS = 37, ALL = BLOCKS * 128;
    Buffer<unsigned> out(std::vector<unsigned>{0, 0, ~0u, 0, 7});
    Buffer<float> sum(std::vector<float>{0.0f});
    CHECK(Kernel("counters", {8, 8}).run({BLOCKS, 128}, out.p, sum.p) == 0);
    CHECK(out.get() == (std::vector<unsigned>{ALL, ALL - 1, 0, ALL % 100, 8}));
    CHECK(sum.get()[0] == ALL * 0.5f);
}

static std::vector<unsigned> sums_by(const char* kernel, unsigned rounds) {
    Buffer<unsigned> out(3 * 256);
    CHECK(Kernel(kernel, {8, 4}).run({3, 256}, out.p, rounds) == 0);
    return out.get();
}
static bool right_sums(const std::vector<unsigned>& got, unsigned rounds) {
    for (unsigned i = 0; i < got.size(); i++) {
        if (got[i] != rounds * ((i % 256 + 77) % 256) + rounds * (rounds - 1) / 2) {
            return false;
        }
    }
    return true;
}

void collectives() {
    test_shuffles();
    test_votes();
    test_indices();
    test_atomics();
    CHECK(right_sums(sums_by("block_sum", 9), 9));
}

// Outside the race build, which names it: a missing barrier changes the result in priority order, by some seed.
static bool missing_barrier_shows() {
    bool shows = false;
    for (uint64_t seed = 1; seed <= 5; seed++) {
        cudasim_set_order(3, seed);
        shows = shows || !right_sums(sums_by("block_sum_without_second_barrier", 9), 9);
        CHECK(right_sums(sums_by("block_sum", 9), 9));
    }
    cudasim_set_order(0, 1);
    return shows;
}

void orders() { CHECK(missing_barrier_shows()); }

}  // namespace test
