// The two symbols by which the runtime knows a kernel library.
#include "library.h"

#define LIBRARY_API extern "C" __attribute__((visibility("default")))

std::vector<emu::Entry>& emu_library_entries() {
    static std::vector<emu::Entry> entries;
    return entries;
}

LIBRARY_API const emu::Entry* cudasim_entries(int* n) {
    *n = (int)emu_library_entries().size();
    return emu_library_entries().data();
}

// Touching a thread-local variable of the library makes this thread's copy of all of them exist, and with them the
// __shared__ variables.
LIBRARY_API void* cudasim_tls_anchor() {
    static thread_local volatile char anchor;
    return (void*)&anchor;
}
