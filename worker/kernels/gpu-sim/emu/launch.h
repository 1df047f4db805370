// What the driver asks of the emulator: run one grid.
#pragma once
#include <cstdint>
#include <string>

#include "../shim/device.h"

namespace emu {

struct Entry;

// The order in which the fibers of a block run. Every order is one that hardware may take; a kernel that is right
// gives the same result in all of them.
enum class Order : int {
    Fifo,      // a warp runs as far as it can, then the next one; lanes ascending
    Lifo,      // the same from the last warp, lanes descending, and blocks from the last
    Random,    // any thread that can run
    Priority,  // the ready warp of highest priority, which are random and change now and then: warps get far apart
};

struct Schedule {
    Order order = Order::Fifo;
    uint64_t seed = 1;
};

struct Launch {
    const char* kernel;
    void (*call)(void** arguments);
    void** arguments;
    Dim3 grid, block;
    size_t dynamic_shared;
    bool has_statics;  // __shared__ variables
    bool overlaps;     // hardware may start it before the kernel ahead of it is done
    Schedule schedule;
    int device;
};

struct Fault {
    std::string text;            // names kernel, block, thread and place
    bool illegal_address = false;  // CUDA tells this from other failures
};

// False: the launch failed, and `fault` says how.
bool run_grid(const Launch& launch, Fault& fault);

// What is known of an address, for messages: "16 bytes past the end of an allocation of 4096 bytes". Set by the driver.
extern std::string (*describe_address)(uintptr_t address);

// The entries of the kernel library: $CUDASIM_KERNELS, or libcudasim_kernels.so beside libcuda.so.1.
const Entry* find_entry(const std::string& name);
// Why there are no entries, or empty.
const std::string& kernels_problem();

}  // namespace emu
