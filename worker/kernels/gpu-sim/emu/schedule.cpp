// Fibers: the context switch, and which one runs next.
//
// Ready threads are bits of a mask for each warp, so that choosing costs a few instructions whatever the order. A warp
// goes on while it can in all orders but Random: 32 stacks stay in the cache, where 1024 would not.
#include <cstdlib>
#include <cstring>

#include "runtime.h"

namespace emu {

thread_local Thread* current = nullptr;
thread_local BlockView* view = nullptr;

// void emu_switch(void** save, void* to): keeps what the System V ABI calls callee-saved on the stack it leaves, stores
// that stack's pointer in *save, and returns on the other stack. The floating-point control words are the same in all
// fibers.
extern "C" void emu_switch(void** save, void* to);
asm(R"(
.text
.globl emu_switch
.hidden emu_switch
.type emu_switch, @function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emu_switch, . - emu_switch
)");
constexpr int SAVED_REGISTERS = 6;

static uint64_t next_random(Block& block) {  // xorshift64
    block.random ^= block.random << 13;
    block.random ^= block.random >> 7;
    block.random ^= block.random << 17;
    return block.random;
}

// The n-th set bit.
static unsigned nth_bit(uint32_t mask, unsigned n) {
    while (n-- > 0) {
        mask &= mask - 1;
    }
    return (unsigned)__builtin_ctz(mask);
}

static unsigned random_bit(Block& block, uint32_t mask) {
    return nth_bit(mask, (unsigned)(next_random(block) % (unsigned)__builtin_popcount(mask)));
}

void schedule_start(Block& block, uint64_t seed) {
    block.random = seed * 0x9E3779B97F4A7C15ull + 0x1234567ull;
    if (block.random == 0) {
        block.random = 1;
    }
    for (uint32_t& priority : block.priority) {
        priority = (uint32_t)next_random(block);
    }
    block.ready_warps = 0;
    block.turn = 0;
}

void make_ready(Block& block, unsigned linear) {
    block.warps[linear / 32].ready |= 1u << linear % 32;
    block.ready_warps |= 1u << linear / 32;
}

static unsigned highest_priority(Block& block) {
    constexpr unsigned CHOICES_PER_CHANGE = 400;
    if (next_random(block) % CHOICES_PER_CHANGE == 0) {
        const uint64_t r = next_random(block);
        block.priority[r % MAX_WARPS] = (uint32_t)(r >> 32);
    }
    unsigned best = (unsigned)__builtin_ctz(block.ready_warps);
    for (uint32_t rest = block.ready_warps & (block.ready_warps - 1); rest != 0; rest &= rest - 1) {
        const unsigned warp = (unsigned)__builtin_ctz(rest);
        if (block.priority[warp] > block.priority[best]) {
            best = warp;
        }
    }
    return best;
}

static unsigned choose_warp(Block& block) {
    const bool goes_on = block.warps[block.turn].ready != 0;
    switch (block.launch->schedule.order) {
    case Order::Fifo: {
        const uint32_t later = block.ready_warps & (uint32_t)(~0ull << block.turn);
        return goes_on ? block.turn : (unsigned)__builtin_ctz(later != 0 ? later : block.ready_warps);
    }
    case Order::Lifo:
        return goes_on ? block.turn : 31u - (unsigned)__builtin_clz(block.ready_warps);
    case Order::Random:
        return random_bit(block, block.ready_warps);
    case Order::Priority:
        return highest_priority(block);
    }
    abort();
}

static unsigned choose_lane(Block& block, uint32_t ready) {
    switch (block.launch->schedule.order) {
    case Order::Fifo:
        return (unsigned)__builtin_ctz(ready);
    case Order::Lifo:
        return 31u - (unsigned)__builtin_clz(ready);
    case Order::Random:
        return random_bit(block, ready);
    case Order::Priority: {  // ascending or descending, as the warp's priority has it
        const bool up = block.priority[block.turn] & 1;
        return up ? (unsigned)__builtin_ctz(ready) : 31u - (unsigned)__builtin_clz(ready);
    }
    }
    abort();
}

// Takes a ready fiber, or null when there is none.
static Fiber* take_next(Block& block) {
    if (block.ready_warps == 0) {
        return nullptr;
    }
    block.turn = choose_warp(block);
    Warp& warp = block.warps[block.turn];
    const unsigned lane = choose_lane(block, warp.ready);
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) {
        block.ready_warps &= ~(1u << block.turn);
    }
    return block.fibers[block.turn * 32 + lane].get();
}

// Leaves the current fiber for the next one that can run, or for the block's caller when there is none or one faulted.
static void leave(Fiber& me) {
    Block& block = *me.block;
    Fiber* next = block.faulted ? nullptr : take_next(block);
    if (next == &me) {
        return;
    }
    block.last = &me;
    current = next;
    emu_switch(&me.stack_pointer, next != nullptr ? next->stack_pointer : block.main_stack_pointer);
    current = &me;
}

void wait_for(const char* what, Site site) {
    Fiber& me = current_fiber();
    me.waits_for = what;
    me.waits_at = site;
    leave(me);
    me.waits_for = nullptr;
}

static void fiber_main() {
    Fiber& me = current_fiber();
    Block& block = *me.block;
    block.launch->call(block.launch->arguments);
    abandon_copies(me);
    me.done = true;
    block.warps[me.warp].exited |= 1u << me.lane;
    block.alive--;
    barrier_thread_exited(block);
    leave(me);
    abort();  // a thread that is done is never made ready
}

void prepare_fiber(Fiber& fiber) {
    // Stacks that all began at the same offset in a page would share cache sets.
    constexpr unsigned STAGGER = 576, STEPS = 61;
    void** top = (void**)(fiber.stack + STACK_BYTES - (fiber.linear % STEPS) * STAGGER);
    *--top = nullptr;  // the ABI's alignment at a function's entry
    *--top = (void*)fiber_main;
    top -= SAVED_REGISTERS;
    memset(top, 0, SAVED_REGISTERS * sizeof(void*));
    fiber.stack_pointer = top;
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.touches = {};
    fiber.copy_group = 0;
    fiber.copies.clear();
}

Fiber* run_fibers(Block& block) {
    Fiber* first = take_next(block);
    current = first;
    emu_switch(&block.main_stack_pointer, first->stack_pointer);
    current = nullptr;
    return block.last;
}

void kernel_fault(const char* what, Site site) {
    Fiber& me = current_fiber();
    Block& block = *me.block;
    block.faulted = true;
    const char* name = site.file == nullptr ? nullptr : strrchr(site.file, '/');
    block.fault.text = what;
    if (site.file != nullptr) {
        block.fault.text += " (" + std::string(name != nullptr ? name + 1 : site.file) + ":" + std::to_string(site.line) + ")";
    }
    leave(me);
    abort();  // a block that faulted runs no fiber again
}

void fault_at_pc(const std::string& what, uintptr_t pc, bool illegal_address) {
    Fiber& me = current_fiber();
    Block& block = *me.block;
    block.fault.illegal_address = illegal_address;
    if (me.touches.file != nullptr) {
        kernel_fault(what.c_str(), me.touches);
    }
    kernel_fault((what + " (" + source_of(pc) + ")").c_str(), Site{nullptr, 0});
}

}  // namespace emu
