// Reading cubins and PTX. A cubin is an ELF file: of each kernel NAME it has sections .text.NAME, .nv.info.NAME with
// attributes, and .nv.shared.NAME where it has static shared memory. The attributes' numbers are not documented by
// NVIDIA; `cuobjdump -elf` prints them with their names (EIATTR_...).
#include "image.h"

#include <elf.h>

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace driver {

// ---- cubin ----

struct Attribute {
    uint8_t format, number;
    const uint8_t* value;
    uint16_t bytes;
};
constexpr uint8_t FORMAT_WITH_SIZE = 4;
enum : uint8_t { MAX_THREADS = 0x05, REQUIRED_THREADS = 0x10, FRAME_SIZE = 0x11, PARAMETER = 0x17, REGISTERS = 0x2f };

static uint32_t word(const uint8_t* p, size_t offset = 0) {
    uint32_t w;
    memcpy(&w, p + offset, 4);
    return w;
}
static uint16_t half(const uint8_t* p, size_t offset) {
    uint16_t h;
    memcpy(&h, p + offset, 2);
    return h;
}

// An attribute is {format, number, 16 bit}; the 16 bit are a value, or the size of the value that follows.
template <class Each>
static void for_attributes(const uint8_t* section, size_t bytes, Each each) {
    for (size_t at = 0; at + 4 <= bytes;) {
        const bool sized = section[at] == FORMAT_WITH_SIZE;
        const uint16_t size = sized ? half(section, at + 2) : 0;
        each(Attribute{section[at], section[at + 1], section + at + 4, size});
        at += 4u + size;
    }
}

static void read_kernel_attributes(const uint8_t* section, size_t bytes, KernelImage& kernel) {
    for_attributes(section, bytes, [&](const Attribute& a) {
        if (a.format != FORMAT_WITH_SIZE || a.bytes != 12) {
            return;
        }
        if (a.number == PARAMETER) {  // {index, ordinal and offset, flags with the size from bit 18}
            const size_t ordinal = half(a.value, 4);
            if (kernel.parameter_bytes.size() <= ordinal) {
                kernel.parameter_bytes.resize(ordinal + 1);
            }
            kernel.parameter_bytes[ordinal] = word(a.value, 8) >> 18 & 0x3fff;
        } else if (a.number == MAX_THREADS || a.number == REQUIRED_THREADS) {
            kernel.max_threads = word(a.value) * word(a.value, 4) * word(a.value, 8);
        }
    });
}

// Where a kernel has shared memory at all, its section begins with what the driver keeps for itself on sm_90.
constexpr uint64_t DRIVER_SHARED = 1024;

static bool starts_with(const std::string& s, const char* prefix) { return s.rfind(prefix, 0) == 0; }

static int read_cubin(const uint8_t* file, Image& image) {
    Elf64_Ehdr header;
    memcpy(&header, file, sizeof header);
    const auto* sections = (const Elf64_Shdr*)(file + header.e_shoff);
    const char* names = (const char*)file + sections[header.e_shstrndx].sh_offset;
    const Elf64_Sym* symbols = nullptr;
    const char* symbol_names = nullptr;
    for (int i = 0; i < header.e_shnum; i++) {
        if (sections[i].sh_type == SHT_SYMTAB) {
            symbols = (const Elf64_Sym*)(file + sections[i].sh_offset);
            symbol_names = (const char*)file + sections[sections[i].sh_link].sh_offset;
        }
        if (starts_with(names + sections[i].sh_name, ".text.")) {
            image[names + sections[i].sh_name + strlen(".text.")].compiled = true;
        }
    }
    // Attributes are also there of subroutines ("$__internal_..."), which nobody launches.
    const auto kernel_of = [&](const std::string& name) {
        const auto it = image.find(name);
        return it == image.end() ? nullptr : &it->second;
    };
    for (int i = 0; i < header.e_shnum; i++) {
        const Elf64_Shdr& section = sections[i];
        const std::string name = names + section.sh_name;
        const uint8_t* content = file + section.sh_offset;
        if (starts_with(name, ".nv.info.")) {
            if (KernelImage* kernel = kernel_of(name.substr(strlen(".nv.info.")))) {
                read_kernel_attributes(content, section.sh_size, *kernel);
            }
        } else if (starts_with(name, ".nv.shared.")) {
            if (KernelImage* kernel = kernel_of(name.substr(strlen(".nv.shared.")))) {
                kernel->static_shared = (unsigned)(section.sh_size - std::min<uint64_t>(section.sh_size, DRIVER_SHARED));
            }
        } else if (name == ".nv.info" && symbols != nullptr) {  // {symbol, value} of every function
            for_attributes(content, section.sh_size, [&](const Attribute& a) {
                if (a.format != FORMAT_WITH_SIZE || a.bytes != 8 || (a.number != REGISTERS && a.number != FRAME_SIZE)) {
                    return;
                }
                if (KernelImage* kernel = kernel_of(symbol_names + symbols[word(a.value)].st_name)) {
                    (a.number == REGISTERS ? kernel->registers : kernel->local_bytes) = word(a.value, 4);
                }
            });
        }
    }
    return image.empty() ? INVALID_IMAGE : SUCCESS;
}

// ---- PTX ----

// The size of one declaration `.param .u64 name` or `.param .align 8 .b8 name[24]`.
static uint32_t parameter_size(const std::string& declaration) {
    const size_t bracket = declaration.find('[');
    if (bracket != std::string::npos) {
        return (uint32_t)atoi(declaration.c_str() + bracket + 1);
    }
    for (const char* type : {".u8", ".s8", ".b8", ".u16", ".s16", ".b16", ".f16", ".u32", ".s32", ".f32", ".b32", ".u64", ".s64", ".f64", ".b64"}) {
        if (declaration.find(std::string(type) + " ") != std::string::npos) {
            return (uint32_t)atoi(type + 2) / 8;
        }
    }
    return 0;
}

static void read_parameters(const std::string& list, KernelImage& kernel) {
    for (size_t at = list.find(".param "); at != std::string::npos; at = list.find(".param ", at + 1)) {
        kernel.parameter_bytes.push_back(parameter_size(list.substr(at, list.find(',', at) - at)));
    }
}

static int read_ptx(const std::string& text, Image& image) {
    int major = 0, minor = 0, target = 0;
    const size_t version = text.find(".version"), machine = text.find(".target");
    if (version == std::string::npos || machine == std::string::npos ||
        sscanf(text.c_str() + version, ".version %d.%d", &major, &minor) != 2 || sscanf(text.c_str() + machine, ".target sm_%d", &target) != 1) {
        return INVALID_IMAGE;
    }
    if (major * 10 + minor > 90) {
        return UNSUPPORTED_PTX_VERSION;
    }
    if (target > 90) {
        return NO_BINARY_FOR_GPU;
    }
    for (size_t at = text.find(".entry "); at != std::string::npos; at = text.find(".entry ", at + 1)) {
        const size_t open = text.find('(', at), body = text.find('{', at);
        if (open == std::string::npos || body == std::string::npos) {
            return INVALID_IMAGE;
        }
        const size_t close = text.find(')', open);
        std::string name = text.substr(at + 7, std::min(open, body) - at - 7);
        while (!name.empty() && isspace((unsigned char)name.back()) != 0) {
            name.pop_back();
        }
        KernelImage& kernel = image[name];
        read_parameters(text.substr(open, close - open), kernel);
        const std::string head = text.substr(close, body - close);
        unsigned x = 1, y = 1, z = 1;
        const size_t bounds = head.find(".maxntid");
        if (bounds != std::string::npos && sscanf(head.c_str() + bounds, ".maxntid %u, %u, %u", &x, &y, &z) >= 1) {
            kernel.max_threads = x * y * z;
        }
    }
    return image.empty() ? INVALID_IMAGE : SUCCESS;
}

int read_image(const void* data, Image& image) {
    return memcmp(data, ELFMAG, SELFMAG) == 0 ? read_cubin((const uint8_t*)data, image) : read_ptx((const char*)data, image);
}

}  // namespace driver
