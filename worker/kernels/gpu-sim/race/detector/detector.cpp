// The detector: every access of a kernel to shared or device memory is compared with what the shadow remembers. The
// compiler's instrumentation (-fsanitize=thread) calls the __tsan_ functions below; no part of the compiler's own
// run-time library is linked.
#include <cstdlib>

#include "../../emu/runtime.h"
#include "../race.h"
#include "order.h"
#include "shadow.h"

namespace emu::race {

void note_synchronization(const Region& region, uintptr_t address);

struct Where {
    uintptr_t pc;  // or, where it is 0, a line that a primitive gave
    Site site;

    uint16_t number() const { return pc != 0 ? site_of_pc(pc) : site_of_line(site.file, site.line); }
};

[[noreturn]] static void report(const std::string& what, const Where& where) {
    if (where.pc != 0) {
        fault_at_pc(what, where.pc, false);
    }
    kernel_fault(what.c_str(), where.site);
}

static std::string offset_text(const Region& region, uintptr_t address) {
    return std::to_string(address - region.base) + " bytes into " + region.kind + " of " + std::to_string(region.bytes) + " bytes";
}

[[noreturn]] static void report_race(bool write, bool other_writes, const Access& other, const Region& region, uintptr_t address, const Where& where) {
    report(std::string("race: ") + (write ? "this write" : "this read") + " and the " + (other_writes ? "write" : "read") + " at " +
               site_text((uint16_t)other.site) + " by thread " + std::to_string(other.thread) + " of block " + std::to_string(other.block) +
               " are not ordered; " + offset_text(region, address),
           where);
}

static bool races(const Access& other, unsigned bytes, bool atomic) {
    return other.valid && (other.bytes & bytes) != 0 && !(atomic && other.atomic) && !before_now(other);
}

// Puts an access into a slot: one that it replaces, an empty one, or any.
static void remember(Access (&slots)[SLOTS], const Access& access) {
    Access* to = nullptr;
    for (Access& slot : slots) {
        const bool replaced = slot.valid && (slot.bytes & ~access.bytes) == 0 && (slot.thread == access.thread || before_now(slot) || slot.atomic);
        if (replaced) {
            slot.valid = 0;
        }
        if (!slot.valid && to == nullptr) {
            to = &slot;
        }
    }
    *(to != nullptr ? to : &slots[access.thread % SLOTS]) = access;
}

static void check_granule(Region& region, uintptr_t address, unsigned bytes, bool write, bool atomic, Access me, const Where& where) {
    Granule& granule = region.granule(address - region.base, life_of(region));
    for (const Access& other : granule.writes) {
        if (races(other, bytes, atomic)) {
            report_race(write, true, other, region, address, where);
        }
    }
    me.bytes = bytes;
    if (!write) {
        remember(granule.reads, me);
        return;
    }
    for (Access& other : granule.reads) {
        if (races(other, bytes, atomic)) {
            report_race(write, false, other, region, address, where);
        }
        if ((other.bytes & ~bytes) == 0 && !atomic) {
            other.valid = 0;  // it came before this write, and so before all that this write comes before
        }
    }
    remember(granule.writes, me);
}

static bool checks_unwritten() {
    static const bool on = getenv("CUDASIM_UNWRITTEN") == nullptr || atoi(getenv("CUDASIM_UNWRITTEN")) != 0;
    return on;
}

static void check(uintptr_t address, size_t n, bool write, bool atomic, const Where& where) {
    if (current == nullptr || (address >= (uintptr_t)current_fiber().stack && address < (uintptr_t)current_fiber().stack + STACK_BYTES)) {
        return;
    }
    Region* region = find_region(address);
    if (region == nullptr) {
        return;  // constants, and the emulator's own memory
    }
    if (address + n > region->base + region->bytes) {
        report("an access past the end: " + offset_text(*region, address), where);
    }
    if (region->device >= 0 && region->device != launch_device()) {
        report("an access to memory of another device, " + std::to_string(region->device), where);
    }
    if (atomic) {
        note_synchronization(*region, address);
    }
    if ((!write || atomic) && checks_unwritten()) {
        for (size_t i = 0; i < n; i++) {
            if (!region->written[address + i - region->base]) {
                report("a read of memory that nobody wrote: " + offset_text(*region, address + i), where);
            }
        }
    }
    const Access me = now(atomic, where.number());
    for (uintptr_t at = address; at < address + n;) {
        const uintptr_t granule = region->base + (at - region->base) / 4 * 4;
        const unsigned first = (unsigned)(at - granule), end = (unsigned)std::min<size_t>(4, address + n - granule);
        check_granule(*region, at, (1u << end) - (1u << first), write, atomic, me, where);
        at = granule + 4;
    }
    if (write) {
        region->set_written(address, n, true);
    }
}

void access(const void* p, unsigned bytes, bool write, Site site) { check((uintptr_t)p, bytes, write, false, {0, site}); }
void atomic(const void* p, unsigned bytes, Site site) { check((uintptr_t)p, bytes, true, true, {0, site}); }
void copy_issued(const void* dst, unsigned bytes, Site site) {
    check((uintptr_t)dst, bytes, true, false, {0, site});
    if (Region* region = find_region((uintptr_t)dst)) {
        region->set_written((uintptr_t)dst, bytes, false);
    }
}

static void instrumented(const void* p, size_t bytes, bool write, void* return_address) {
    check((uintptr_t)p, bytes, write, false, {(uintptr_t)return_address - 1, {}});
}

}  // namespace emu::race

#define TSAN_API extern "C" __attribute__((visibility("default"))) void
#define TSAN_ACCESS(n)                                                                                                        \
    TSAN_API __tsan_read##n(void* p) { emu::race::instrumented(p, n, false, __builtin_return_address(0)); }                   \
    TSAN_API __tsan_write##n(void* p) { emu::race::instrumented(p, n, true, __builtin_return_address(0)); }                   \
    TSAN_API __tsan_unaligned_read##n(void* p) { emu::race::instrumented(p, n, false, __builtin_return_address(0)); }         \
    TSAN_API __tsan_unaligned_write##n(void* p) { emu::race::instrumented(p, n, true, __builtin_return_address(0)); }
TSAN_ACCESS(1)
TSAN_ACCESS(2)
TSAN_ACCESS(4)
TSAN_ACCESS(8)
TSAN_ACCESS(16)
TSAN_API __tsan_read_range(void* p, size_t n) { emu::race::instrumented(p, n, false, __builtin_return_address(0)); }
TSAN_API __tsan_write_range(void* p, size_t n) { emu::race::instrumented(p, n, true, __builtin_return_address(0)); }
TSAN_API __tsan_func_entry(void*) {}
TSAN_API __tsan_func_exit() {}
TSAN_API __tsan_init() {}
