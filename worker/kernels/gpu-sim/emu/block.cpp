// One block: its memory, its fibers from start to end, and what is checked when they are done.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "../race/race.h"
#include "runtime.h"

namespace emu {

constexpr size_t SHARED_BYTES = 256 << 10;  // more than any launch may ask for
constexpr size_t SHARED_ALIGNMENT = 128;
constexpr unsigned char CANARY = 0xA5;

static unsigned char* map_pages(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("cudasim: memory for emulated threads");
        abort();
    }
    return (unsigned char*)p;
}

// What a block needs, kept between blocks: stacks and dynamic shared memory. Never freed: the process ends first.
struct Workplace {
    Block block;
    unsigned char* shared;
    unsigned char* shared_end;  // guard pages begin here
    size_t open_bytes = 0;      // before it, with permission

    Workplace() {
        shared = map_pages(SHARED_BYTES + GUARD_BYTES);
        shared_end = shared + SHARED_BYTES;
        mprotect(shared, SHARED_BYTES + GUARD_BYTES, PROT_NONE);
    }

    // Only the pages of a launch's dynamic shared memory have permission, so that what lies before it is found too.
    void open_shared(size_t bytes) {
        const size_t pages = (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
        if (pages != open_bytes) {
            mprotect(shared, SHARED_BYTES, PROT_NONE);
            mprotect(shared_end - pages, pages, PROT_READ | PROT_WRITE);
            open_bytes = pages;
        }
    }

    void have_fibers(unsigned n) {
        while (block.fibers.size() < n) {
            unsigned char* p = map_pages(PAGE_BYTES + STACK_BYTES);
            mprotect(p, PAGE_BYTES, PROT_NONE);
            block.fibers.push_back(std::make_unique<Fiber>());
            block.fibers.back()->stack = p + PAGE_BYTES;
        }
    }
};

// Any OS thread may run blocks, also those of the program under test; they borrow.
static std::mutex free_mutex;
static std::vector<Workplace*> free_workplaces;

static Workplace* borrow() {
    const std::lock_guard<std::mutex> lock(free_mutex);
    if (free_workplaces.empty()) {
        return new Workplace;
    }
    Workplace* w = free_workplaces.back();
    free_workplaces.pop_back();
    return w;
}
static void give_back(Workplace* w) {
    const std::lock_guard<std::mutex> lock(free_mutex);
    free_workplaces.push_back(w);
}

// Shared memory begins as NaN; all kernels' static variables lie together, so all are filled. The dynamic part ends at the guard page, but for what its alignment leaves: that is
// filled with a pattern and compared at the end.
static size_t slack(const Launch& launch) {
    return (SHARED_ALIGNMENT - launch.dynamic_shared % SHARED_ALIGNMENT) % SHARED_ALIGNMENT;
}
static void prepare_shared(Block& block, const Launch& launch, unsigned char* shared_end) {
    block.dynamic_shared = shared_end - slack(launch) - launch.dynamic_shared;
    memset(block.dynamic_shared, 0xff, launch.dynamic_shared);
    memset(shared_end - slack(launch), CANARY, slack(launch));
    block.statics = shared_statics(block.statics_bytes);
    if (block.statics != nullptr && launch.has_statics) {
        memset(block.statics, 0xff, block.statics_bytes);
    }
}

bool in_shared(const Block& block, uintptr_t address, size_t bytes) {
    const auto within = [&](const unsigned char* base, size_t size) {
        return address >= (uintptr_t)base && address + bytes <= (uintptr_t)base + size;
    };
    return within(block.dynamic_shared, block.launch->dynamic_shared) || within(block.statics, block.statics_bytes);
}

static void prepare_threads(Block& block, const Launch& launch) {
    block.threads = block.alive = launch.block.x * launch.block.y * launch.block.z;
    block.at_barrier = 0;
    for (unsigned first = 0; first < block.threads; first += 32) {
        Warp& warp = block.warps[first / 32];
        const unsigned threads = block.threads - first;
        warp.exist = threads >= 32 ? ~0u : (1u << threads) - 1;
        warp.exited = warp.ready = 0;
        for (Meeting& meeting : warp.meetings) {
            meeting.arrived = 0;
        }
    }
    for (unsigned i = 0; i < block.threads; i++) {
        Fiber& fiber = *block.fibers[i];
        fiber.index = {i % launch.block.x, i / launch.block.x % launch.block.y, i / (launch.block.x * launch.block.y)};
        fiber.linear = i;
        fiber.lane = i % 32;
        fiber.warp = i / 32;
        fiber.block = &block;
        fiber.waited = false;
        prepare_fiber(fiber);
        make_ready(block, i);
    }
}

static std::string place(const Block& block, const Thread& thread) {
    char text[160];
    snprintf(text, sizeof text, "%s: block (%u, %u, %u) thread (%u, %u, %u): ", block.launch->kernel, block.index.x, block.index.y,
             block.index.z, thread.index.x, thread.index.y, thread.index.z);
    return text;
}

static std::string file_line(Site site) {
    const char* name = site.file == nullptr ? nullptr : strrchr(site.file, '/');
    return (name != nullptr ? std::string(name + 1) : std::string("?")) + ":" + std::to_string(site.line);
}

// What is wrong with a block in which no fiber can run any more; empty if nothing is.
static std::string wrong_at_end(const Block& block, const unsigned char* shared_end) {
    for (unsigned i = 0; i < block.threads; i++) {
        const Fiber& fiber = *block.fibers[i];
        if (!fiber.done) {
            return place(block, fiber) + "waits forever in " + (fiber.waits_for != nullptr ? fiber.waits_for : "nothing") + " (" +
                   file_line(fiber.waits_at) + "); " + std::to_string(block.threads - block.alive) + " threads of " +
                   std::to_string(block.threads) + " have returned";
        }
    }
    for (unsigned i = 0; block.launch->overlaps && i < block.threads; i++) {
        if (!block.fibers[i]->waited) {
            return place(block, *block.fibers[i]) + "it was launched to overlap with the kernel ahead of it, and never waited for that (grid_wait)";
        }
    }
    for (const unsigned char* p = shared_end - slack(*block.launch); p < shared_end; p++) {
        if (*p != CANARY) {
            return place(block, *block.fibers[0]) + "a thread of this block wrote past the end of its dynamic shared memory";
        }
    }
    return {};
}

bool run_block(const Launch& launch, uint64_t number, uint64_t seed, Fault& fault) {
    Workplace* workplace = borrow();
    Block& block = workplace->block;
    block.launch = &launch;
    block.number = number;
    block.index = {(unsigned)(number % launch.grid.x), (unsigned)(number / launch.grid.x % launch.grid.y),
                   (unsigned)(number / ((uint64_t)launch.grid.x * launch.grid.y))};
    block.block_dim = launch.block;
    block.grid_dim = launch.grid;
    block.faulted = false;
    block.fault = {};
    workplace->have_fibers(launch.block.x * launch.block.y * launch.block.z);
    workplace->open_shared(launch.dynamic_shared + slack(launch));
    prepare_shared(block, launch, workplace->shared_end);
    schedule_start(block, seed);
    prepare_threads(block, launch);
    prepare_thread_for_faults();

    view = &block;
    race::block_start(block);
    Fiber* last = run_fibers(block);
    view = nullptr;
    if (block.faulted) {
        block.fault.text = place(block, *last) + block.fault.text;
    } else {
        block.fault.text = wrong_at_end(block, workplace->shared_end);
        if (block.fault.text.empty()) {
            block.fault.text = race::block_end(block);
        }
    }
    fault = block.fault;
    give_back(workplace);
    return fault.text.empty();
}

}  // namespace emu
