// Illegal accesses. Device memory ends at pages without permission, so the host's own protection finds what leaves it;
// the signal handler only sends the fiber into kernel_fault. A signal outside a kernel goes to whoever had it before.
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "runtime.h"

namespace emu {

static struct sigaction previous_segv, previous_bus;

// Set by the handler for what runs after it, on the same OS thread.
static thread_local uintptr_t bad_address, bad_pc;

[[noreturn]] static void illegal_access() {
    const Fiber& me = current_fiber();
    const auto stack = (uintptr_t)me.stack;
    if (bad_address >= stack - PAGE_BYTES && bad_address < stack) {
        fault_at_pc("the thread's stack is full (the emulator gives it " + std::to_string(STACK_BYTES >> 10) + " KiB)", bad_pc, false);
    }
    char address[32];
    snprintf(address, sizeof address, "0x%zx", (size_t)bad_address);
    std::string text = std::string("illegal access to ") + address;
    const Block& block = *me.block;
    const auto dynamic_end = (uintptr_t)block.dynamic_shared + block.launch->dynamic_shared;
    if (bad_address >= dynamic_end && bad_address < dynamic_end + GUARD_BYTES) {
        text += ", past the end of the " + std::to_string(block.launch->dynamic_shared) + " bytes of dynamic shared memory";
    } else if (describe_address != nullptr) {
        text += ", " + describe_address(bad_address);
    }
    fault_at_pc(text, bad_pc, true);
}

static void on_signal(int signal_number, siginfo_t* info, void* context) {
    if (current == nullptr) {
        const struct sigaction& before = signal_number == SIGSEGV ? previous_segv : previous_bus;
        if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
            before.sa_sigaction(signal_number, info, context);
        } else {
            signal(signal_number, SIG_DFL);
        }
        return;
    }
    // The fiber never comes back to what it was doing, so it may start again at the top of its stack: there is room
    // also where the stack overflowed.
    auto* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    bad_address = (uintptr_t)info->si_addr;
    bad_pc = (uintptr_t)registers[REG_RIP];
    registers[REG_RSP] = (greg_t)(current_fiber().stack + STACK_BYTES - sizeof(void*));
    registers[REG_RIP] = (greg_t)illegal_access;
}

void prepare_thread_for_faults() {
    static std::once_flag installed;
    std::call_once(installed, [] {
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &previous_segv);
        sigaction(SIGBUS, &action, &previous_bus);
    });
    static thread_local bool prepared = false;
    if (prepared) {
        return;
    }
    prepared = true;
    bad_address = bad_pc = 0;  // makes this thread's copies exist: a handler cannot
    stack_t stack{};
    if (sigaltstack(nullptr, &stack) == 0 && (stack.ss_flags & SS_DISABLE) != 0) {
        constexpr size_t BYTES = 64 << 10;
        stack.ss_sp = malloc(BYTES);
        stack.ss_size = BYTES;
        stack.ss_flags = 0;
        sigaltstack(&stack, nullptr);
    }
}

}  // namespace emu
