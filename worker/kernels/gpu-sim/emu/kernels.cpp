// The library of host-built kernels: its table of entries, its __shared__ variables, and its line numbers.
#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "../shim/entries.h"
#include "runtime.h"

namespace emu {

struct Library {
    std::map<std::string, const Entry*> entries;
    std::string problem;
    uintptr_t base = 0, end = 0;
    // The thread-local block of the library is where its __shared__ variables lie.
    size_t tls_module = 0;
    void* (*tls_anchor)() = nullptr;
};

static std::string library_path() {
    if (const char* given = getenv("CUDASIM_KERNELS")) {
        return given;
    }
    Dl_info me;
    if (dladdr((void*)&run_grid, &me) == 0) {
        return {};
    }
    const std::string path = me.dli_fname;
    const size_t slash = path.rfind('/');
    return (slash == std::string::npos ? std::string() : path.substr(0, slash + 1)) + "libcudasim_kernels.so";
}

static int find_extent(dl_phdr_info* info, size_t, void* data) {
    auto& library = *(Library*)data;
    if (info->dlpi_addr != library.base) {
        return 0;
    }
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& segment = info->dlpi_phdr[i];
        if (segment.p_type == PT_LOAD) {
            library.end = std::max(library.end, library.base + segment.p_vaddr + segment.p_memsz);
        }
    }
    return 1;
}

static Library load() {
    Library library;
    const std::string path = library_path();
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    using Table = const Entry* (*)(int*);
    const auto table = handle != nullptr ? (Table)dlsym(handle, "cudasim_entries") : nullptr;
    if (table == nullptr) {
        const char* error = dlerror();
        library.problem = "no kernel library: " + std::string(error != nullptr ? error : path.c_str());
        return library;
    }
    int n = 0;
    const Entry* entries = table(&n);
    for (int i = 0; i < n; i++) {
        library.entries[entries[i].name] = &entries[i];
    }
    library.tls_anchor = (void* (*)())dlsym(handle, "cudasim_tls_anchor");
    if (dlinfo(handle, RTLD_DI_TLS_MODID, &library.tls_module) != 0) {
        library.tls_module = 0;
    }
    Dl_info info;
    if (dladdr((void*)table, &info) != 0) {
        library.base = library.end = (uintptr_t)info.dli_fbase;
        dl_iterate_phdr(find_extent, &library);
    }
    return library;
}

static const Library& library() {
    static const Library loaded = load();
    return loaded;
}

const std::string& kernels_problem() { return library().problem; }

const Entry* find_entry(const std::string& name) {
    const auto it = library().entries.find(name);
    return it == library().entries.end() ? nullptr : it->second;
}

bool in_kernel_library(uintptr_t pc) { return pc >= library().base && pc < library().end; }

struct TlsBlock {
    size_t module = 0, bytes = 0;
    unsigned char* data = nullptr;
};

static int find_tls(dl_phdr_info* info, size_t, void* data) {
    auto& block = *(TlsBlock*)data;
    if (info->dlpi_tls_modid != block.module) {
        return 0;
    }
    block.data = (unsigned char*)info->dlpi_tls_data;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type == PT_TLS) {
            block.bytes = info->dlpi_phdr[i].p_memsz;
        }
    }
    return 1;
}

unsigned char* shared_statics(size_t& bytes) {
    static thread_local TlsBlock block;
    if (block.data == nullptr && library().tls_module != 0 && library().tls_anchor != nullptr) {
        library().tls_anchor();  // makes this thread's copy exist
        block.module = library().tls_module;
        dl_iterate_phdr(find_tls, &block);
    }
    bytes = block.bytes;
    return block.data;
}

// addr2line comes with g++, without which there is no kernel library. -i lists inlined frames, the innermost first.
std::string source_of(uintptr_t pc) {
    Dl_info info;
    if (dladdr((void*)pc, &info) == 0 || info.dli_fname == nullptr) {
        return "unknown place";
    }
    char command[1200];
    snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx 2>/dev/null", info.dli_fname, (size_t)(pc - (uintptr_t)info.dli_fbase));
    FILE* pipe = popen(command, "r");
    std::string best;
    char line[1024];
    while (pipe != nullptr && fgets(line, sizeof line, pipe) != nullptr) {
        line[strcspn(line, " \n")] = 0;
        const std::string frame = line;
        if (best.empty() || (frame.find("/shim/") == std::string::npos && best.find("/shim/") != std::string::npos)) {
            best = frame;
        }
    }
    if (pipe != nullptr) {
        pclose(pipe);
    }
    const size_t slash = best.rfind('/');
    return slash == std::string::npos ? best : best.substr(slash + 1);
}

}  // namespace emu
