// The emulator's own view of a running block. What kernels may see of it is in shim/device.h.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../shim/device.h"
#include "launch.h"

namespace emu {

constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t PAGE_BYTES = 4096;
constexpr size_t GUARD_BYTES = 1 << 20;  // without permission, behind a block's dynamic shared memory
constexpr unsigned MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32;

// A cp.async that was issued and not yet waited for.
struct PendingCopy {
    void* dst;
    const void* src;
    unsigned bytes;
    bool read;
    unsigned group;
    Site site;
};

struct Fiber : Thread {
    void* stack_pointer = nullptr;
    unsigned char* stack = nullptr;  // lowest usable byte; a guard page lies below
    bool done = false;
    const char* waits_for = nullptr;  // null while it could run
    Site waits_at{};
    Site touches{};  // the primitive that is dereferencing a kernel's pointer, if one is
    unsigned copy_group = 0;
    std::vector<PendingCopy> copies;
};

// Lanes on their way into a collective. Disjoint masks can wait at once: at most a few in any sensible kernel.
struct Meeting {
    unsigned mask = 0, arrived = 0;
    const Collective* what = nullptr;
    Site site{};
};

struct Warp {
    unsigned exist = 0, exited = 0, ready = 0;  // one bit a lane
    Meeting meetings[4];
    alignas(64) Operands in, out;
};

struct Block : BlockView {
    const Launch* launch = nullptr;
    uint64_t number = 0;  // within the grid, x fastest

    std::vector<std::unique_ptr<Fiber>> fibers;
    unsigned threads = 0, alive = 0;
    Warp warps[MAX_WARPS];

    // schedule.cpp
    void* main_stack_pointer = nullptr;
    Fiber* last = nullptr;  // the fiber that was left last
    uint32_t ready_warps = 0;
    unsigned turn = 0;  // the warp that runs
    uint64_t random = 1;
    uint32_t priority[MAX_WARPS];

    // barrier.cpp
    unsigned at_barrier = 0;
    Barrier barrier_kind = Barrier::Plain;
    Site barrier_site{};
    int barrier_sum = 0, barrier_result = 0;

    unsigned char* statics = nullptr;  // this OS thread's __shared__ variables
    size_t statics_bytes = 0;

    bool faulted = false;
    Fault fault;
};

inline Fiber& current_fiber() { return *static_cast<Fiber*>(current); }

// ---- schedule.cpp ----
void schedule_start(Block& block, uint64_t seed);
void make_ready(Block& block, unsigned linear);
void prepare_fiber(Fiber& fiber);
// Runs the block's fibers until none can run, or one faulted; gives the one that ran last.
Fiber* run_fibers(Block& block);
// The current fiber waits; returns when it is made ready and chosen again.
void wait_for(const char* what, Site site);

// ---- the parts of an exit ----
void abandon_copies(Fiber& fiber);
void barrier_thread_exited(Block& block);

// ---- block.cpp ----
bool run_block(const Launch& launch, uint64_t number, uint64_t seed, Fault& fault);
bool in_shared(const Block& block, uintptr_t address, size_t bytes);

// ---- fault.cpp ----
// From here on an illegal access on this OS thread, made by a fiber, ends in that fiber's kernel_fault.
void prepare_thread_for_faults();
[[noreturn]] void fault_at_pc(const std::string& what, uintptr_t pc, bool illegal_address);

// ---- kernels.cpp ----
unsigned char* shared_statics(size_t& bytes);
// "file:line" of an address in the kernel library, of the innermost frame outside the shim.
std::string source_of(uintptr_t pc);
bool in_kernel_library(uintptr_t pc);

}  // namespace emu
