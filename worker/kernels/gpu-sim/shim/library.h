// How a kernel source's translation unit, which build.sh writes, adds its entries to the library's table.
#pragma once
#include <vector>

#include "entries.h"

std::vector<emu::Entry>& emu_library_entries();

struct EmuRegister {
    template <std::size_t N>
    explicit EmuRegister(const emu::Entry (&entries)[N]) {
        emu_library_entries().insert(emu_library_entries().end(), entries, entries + N);
    }
};
