// The interface between compiled kernels and the emulator's runtime (emu/), which lives in libcuda.so.1.
//
// A CUDA thread is a fiber; the blocks of a grid run on OS threads, and all fibers of a block on the same one. So
// "the current thread" is a thread-local pointer that the runtime changes at every switch.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

// Kernels live in a library of their own and find these symbols in libcuda.so.1.
#pragma GCC visibility push(default)

namespace emu {

// Where in the kernel's source something happens. As a default argument it is the place of the call.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct Dim3 {
    unsigned x, y, z;
};

struct Block;

struct Thread {
    Dim3 index;       // threadIdx
    unsigned linear;  // its number in the block, x fastest
    unsigned lane;    // linear % 32
    unsigned warp;    // linear / 32
    bool waited;      // for the kernel ahead of this one: grid_wait
    Block* block;
};

struct BlockView {
    Dim3 index, block_dim, grid_dim;
    unsigned char* dynamic_shared;
};

extern thread_local Thread* current;
extern thread_local BlockView* view;

// ---- what a whole warp, or the lanes named by a mask, does together ----

// Operands and results of all lanes of a warp while they meet.
constexpr unsigned OPERAND_BYTES = 64;
using Operands = unsigned char[32][OPERAND_BYTES];

struct Collective {
    const char* name;
    bool whole_warp;  // all 32 lanes must take part, and at the same place in the source
    void (*compute)(unsigned mask, const Operands& in, Operands& out);
};

// Blocks until every lane of `mask` has called it for the same collective; the last one computes the results of all.
void meet(const Collective& what, unsigned mask, const void* in, size_t in_bytes, void* out, size_t out_bytes, Site site);

enum class ShuffleMode : int { Xor, Down, Up, Index };
struct ShuffleOperand {
    uint64_t value;
    ShuffleMode mode;
    int argument, width;
};
struct MmaOperand {
    uint32_t a[4], b[2];
    uint32_t c[4];  // FP32 or signed integers
};
struct MatrixRow {
    const void* address;
};

extern const Collective SHUFFLE, VOTE, SYNC_WARP, MATCH, REDUCE_ADD, REDUCE_MAX, REDUCE_MIN, MMA_BF16, MMA_F16, MMA_E4M3, MMA_S8,
    LDMATRIX_X2, LDMATRIX_X4, LDMATRIX_X4_TRANS;

// ---- the block's barrier ----

enum class Barrier : int { Plain, Or, And, Count };
int block_barrier(Barrier kind, int predicate, Site site);

// ---- memory ----

// cp.async: `dst` reads as NaN until the group of this copy has been waited for. `read` false: zeros are written.
void copy_async(void* dst, const void* src, unsigned bytes, bool read, Site site);
void copy_commit();
void copy_wait(unsigned newest_allowed);

// Marks an access that is made through a primitive, so that a fault in it, and the race build, know its place.
void note_access(const void* p, unsigned bytes, bool write, Site site);
void note_atomic(const void* p, unsigned bytes, Site site);
void note_fence();
// The address must lie in the block's shared memory, aligned to `alignment`.
void require_shared(const void* p, unsigned bytes, unsigned alignment, const char* instruction, Site site);

// Ends the launch with an error that names kernel, block, thread and place.
[[noreturn]] void kernel_fault(const char* what, Site site);

// ---- number formats (emu/formats.cpp); to nearest even, saturating where the instruction does ----

extern const std::array<float, 256> E4M3_VALUES, E5M2_VALUES;
uint8_t to_e4m3(float x);
uint8_t to_e5m2(float x);
uint16_t to_bf16(float x);
uint16_t to_bf16(double x);
uint16_t to_f16(float x);
float from_f16(uint16_t x);
inline float from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
}

}  // namespace emu

#pragma GCC visibility pop
