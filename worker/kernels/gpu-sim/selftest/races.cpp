// The race build: planted races, reads of what nobody wrote and accesses past the end are found and named, and what is
// right is left alone.
#include "harness.h"

namespace test {

template <class... Args>
static void expect(const char* name, const std::vector<unsigned>& sizes, Shape shape, const char* text, Args... args) {
    CHECK(Kernel(name, sizes).run(shape, args...) != 0);
    CHECK(has(last_fault(), text));
    CHECK(has(last_fault(), marked("races.cu", name)));
    cudasim_clear_fault(0);
}

void races() {
    Buffer<uint32_t> out(64), in(std::vector<uint32_t>(64, 1)), unwritten(64), zeros(std::vector<uint32_t>(64, 0));
    // Which of the two accesses comes last, and so is "this" one, is the order's business.
    expect("race_in_block", {8}, {1, 64}, "race: this ", out.p);
    expect("race_in_warp", {8}, {1, 32}, "race: this ", out.p);
    expect("race_between_blocks", {8}, {2, 32}, "race: this write and the write at", out.p);
    expect("copy_without_wait", {8, 8}, {1, 32}, "a read of memory that nobody wrote", out.p, in.p);
    expect("reads_unwritten", {8, 8}, {1, 32}, "a read of memory that nobody wrote", out.p, unwritten.p);
    expect("plain_beside_atomic", {8}, {2, 32}, "race: this write and the write at", zeros.p);
    Buffer<uint32_t> short_one(16);
    expect("one_past_the_end", {8, 4}, {1, 32}, "past the end", short_one.p, 16u);

    CHECK(Kernel("no_race_in_warp", {8}).run({1, 32}, out.p) == 0);
    CHECK(Kernel("race_between_blocks", {8}).run({1, 32}, out.p) == 0);
    CHECK(Kernel("bytes_side_by_side", {8}).run({1, 64}, out.p) == 0);
    CHECK(Kernel("block_sum_without_second_barrier", {8, 4}).run({1, 256}, Buffer<uint32_t>(256).p, 3u) != 0);
    CHECK(has(last_fault(), "race: this write and the read at"));
    cudasim_clear_fault(0);
}

}  // namespace test
