// Modules and launches. A kernel of an image is run by the host build of the same name; sizes of parameters must agree,
// and a launch must keep to the limits that the image states.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include "../shim/entries.h"
#include "image.h"
#include "state.h"

namespace driver {

constexpr unsigned SHARED_DEFAULT = 49152, SHARED_MOST = 232448, SHARED_OF_MULTIPROCESSOR = 233472, SHARED_RESERVED = 1024;
constexpr unsigned REGISTERS = 65536, MAX_THREADS = 1024;

struct Module;

struct Function {
    std::string name;
    KernelImage image;
    const emu::Entry* host = nullptr;
    unsigned max_dynamic = 0;  // as cuFuncSetAttribute has it; 0: never set

    unsigned dynamic_limit() const { return std::max(max_dynamic, SHARED_DEFAULT - std::min(SHARED_DEFAULT, image.static_shared)); }
    // Registers are given to a warp in units of 256.
    unsigned registers_of_block(unsigned threads) const { return (image.registers + 7) / 8 * 8 * ((threads + 31) / 32 * 32); }
};

struct Module {
    std::map<std::string, Function> functions;
};

static std::set<Module*> modules;
static std::set<Function*> functions;

static int refuse(const std::string& why) {
    fprintf(stderr, "cudasim: %s\n", why.c_str());
    return NO_BINARY_FOR_GPU;
}

static int load(void** out, const void* data) {
    Image image;
    if (const int code = read_image(data, image)) {
        return code;
    }
    if (!emu::kernels_problem().empty()) {
        return refuse(emu::kernels_problem());
    }
    auto module = std::make_unique<Module>();
    for (auto& [name, kernel] : image) {
        const emu::Entry* host = emu::find_entry(name);
        if (host == nullptr) {
            return refuse("the kernel library has no " + name);
        }
        const std::vector<uint32_t> sizes(host->parameter_bytes, host->parameter_bytes + host->parameters);
        if (kernel.parameter_bytes != sizes) {
            return refuse("the parameters of " + name + " differ between the device image and the kernel library");
        }
        Function& function = module->functions[name];
        function.name = name;
        function.image = kernel;
        function.host = host;
    }
    for (auto& [name, function] : module->functions) {
        functions.insert(&function);
    }
    *out = module.get();
    modules.insert(module.release());
    return SUCCESS;
}

// The parameters of one launch, copied when it is asked for, as the driver does.
class Arguments {
public:
    Arguments(const emu::Entry& entry, void** given) {
        size_t bytes = 0;
        for (uint32_t i = 0; i < entry.parameters; i++) {
            offsets_.push_back(bytes);
            bytes += (entry.parameter_bytes[i] + 15u) / 16 * 16;
        }
        storage_.resize(bytes);
        for (uint32_t i = 0; i < entry.parameters; i++) {
            memcpy(storage_.data() + offsets_[i], given[i], entry.parameter_bytes[i]);
        }
    }
    std::vector<void*> pointers() {
        std::vector<void*> all;
        for (const size_t offset : offsets_) {
            all.push_back(storage_.data() + offset);
        }
        return all;
    }

private:
    std::vector<size_t> offsets_;
    std::vector<char> storage_;
};

struct Shape {
    emu::Dim3 grid, block;
    unsigned dynamic_shared;
    bool overlaps = false;
};

static int check(const Function& function, const Shape& shape) {
    const emu::Dim3 &grid = shape.grid, &block = shape.block;
    const uint64_t threads = (uint64_t)block.x * block.y * block.z;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535 ||
        block.z > 64 || threads > MAX_THREADS || shape.dynamic_shared > function.dynamic_limit()) {
        return INVALID_VALUE;
    }
    if (threads > function.image.max_threads || function.registers_of_block((unsigned)threads) > REGISTERS) {
        return LAUNCH_OUT_OF_RESOURCES;
    }
    return SUCCESS;
}

static int run(const Function& function, const Shape& shape, const std::shared_ptr<Arguments>& arguments, Device& device) {
    std::vector<void*> pointers = arguments->pointers();
    emu::Launch launch{};
    launch.kernel = function.name.c_str();
    launch.call = function.host->call;
    launch.arguments = pointers.data();
    launch.grid = shape.grid;
    launch.block = shape.block;
    launch.dynamic_shared = shape.dynamic_shared;
    launch.has_statics = !function.image.compiled || function.image.static_shared > 0;
    launch.schedule = next_schedule();
    launch.device = device.ordinal;
    launch.overlaps = shape.overlaps;
    static const bool trace = getenv("CUDASIM_TRACE") != nullptr;
    const double begin = now_milliseconds();
    emu::Fault fault;
    const bool ok = emu::run_grid(launch, fault);
    if (trace) {
        fprintf(stderr, "cudasim: %s grid (%u, %u, %u) block %u: %.2f ms of emulation\n", launch.kernel, shape.grid.x, shape.grid.y, shape.grid.z,
                shape.block.x * shape.block.y * shape.block.z, now_milliseconds() - begin);
    }
    if (ok) {
        return SUCCESS;
    }
    const int code = fault.illegal_address ? ILLEGAL_ADDRESS : LAUNCH_FAILED;
    fail(device, code, fault.text);
    return code;
}

static int launch(Call& call, void* handle, const Shape& shape, void* stream_handle, void** parameters, void** extra) {
    auto* function = (Function*)handle;
    if (functions.count(function) == 0) {
        return INVALID_HANDLE;
    }
    call.detail("%s (%u, %u, %u) x (%u, %u, %u)", function->name.c_str(), shape.grid.x, shape.grid.y, shape.grid.z, shape.block.x,
                shape.block.y, shape.block.z);
    Stream* stream = stream_of(call.device(), stream_handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    if (extra != nullptr || (function->host->parameters > 0 && parameters == nullptr)) {
        return INVALID_VALUE;
    }
    if (const int code = check(*function, shape)) {
        return code;
    }
    const auto arguments = std::make_shared<Arguments>(*function->host, parameters);
    Device& device = call.device();
    Operation operation;
    operation.what = "a kernel";
    operation.run = [function = *function, shape, arguments, &device] { return run(function, shape, arguments, device); };
    return submit(*stream, std::move(operation));
}

}  // namespace driver

using namespace driver;

CUDA_API cuModuleLoadData(void** module, const void* image) {
    CALL(cuModuleLoadData, Context);
    return load(module, image);
}
CUDA_API cuModuleLoad(void** module, const char* path) {
    CALL(cuModuleLoad, Context);
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        return FILE_NOT_FOUND;
    }
    const std::string image((std::istreambuf_iterator<char>(file)), {});
    return image.size() < 64 ? (int)INVALID_IMAGE : load(module, image.c_str());
}
CUDA_API cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*) {
    CALL(cuModuleLoadDataEx, Context);
    return load(module, image);
}
CUDA_API cuModuleUnload(void* handle) {
    CALL(cuModuleUnload, Context);
    auto* module = (Module*)handle;
    if (modules.erase(module) == 0) {
        return INVALID_HANDLE;
    }
    run_all(call, call.device());
    for (auto& [name, function] : module->functions) {
        functions.erase(&function);
    }
    delete module;
    return SUCCESS;
}
CUDA_API cuModuleGetFunction(void** function, void* handle, const char* name) {
    CALL(cuModuleGetFunction, Context);
    call.detail("%s", name);
    auto* module = (Module*)handle;
    if (modules.count(module) == 0) {
        return INVALID_HANDLE;
    }
    const auto it = module->functions.find(name);
    if (it == module->functions.end()) {
        return NOT_FOUND;
    }
    *function = &it->second;
    return SUCCESS;
}
// Kernels have no global variables here.
CUDA_API cuModuleGetGlobal_v2(Address*, size_t*, void*, const char*) {
    CALL(cuModuleGetGlobal_v2, Context);
    return NOT_FOUND;
}
enum { MAX_THREADS_PER_BLOCK = 0, SHARED_SIZE = 1, LOCAL_SIZE = 3, NUMBER_OF_REGISTERS = 4, PTX_VERSION = 5, BINARY_VERSION = 6,
       MAX_DYNAMIC_SHARED = 8, SHARED_CARVEOUT = 9 };

CUDA_API cuFuncSetAttribute(void* handle, int attribute, int value) {
    CALL(cuFuncSetAttribute, Context);
    auto* function = (Function*)handle;
    if (functions.count(function) == 0) {
        return INVALID_HANDLE;
    }
    if (attribute == SHARED_CARVEOUT) {
        return SUCCESS;
    }
    if (attribute != MAX_DYNAMIC_SHARED || value < 0 || (unsigned)value + function->image.static_shared > SHARED_MOST) {
        return INVALID_VALUE;
    }
    function->max_dynamic = (unsigned)value;
    return SUCCESS;
}
CUDA_API cuFuncGetAttribute(int* value, int attribute, void* handle) {
    CALL(cuFuncGetAttribute, Context);
    auto* function = (Function*)handle;
    if (functions.count(function) == 0) {
        return INVALID_HANDLE;
    }
    switch (attribute) {
    case MAX_THREADS_PER_BLOCK: *value = (int)function->image.max_threads; break;
    case SHARED_SIZE: *value = (int)function->image.static_shared; break;
    case LOCAL_SIZE: *value = (int)function->image.local_bytes; break;
    case NUMBER_OF_REGISTERS: *value = (int)function->image.registers; break;
    case PTX_VERSION:
    case BINARY_VERSION: *value = 90; break;
    case MAX_DYNAMIC_SHARED: *value = (int)function->dynamic_limit(); break;
    default: *value = 0;
    }
    return SUCCESS;
}
CUDA_API cuFuncSetCacheConfig(void*, int) {
    CALL(cuFuncSetCacheConfig, Context);
    return SUCCESS;
}
// From the registers and the shared memory that the image states.
CUDA_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t dynamic_shared) {
    CALL(cuOccupancyMaxActiveBlocksPerMultiprocessor, Context);
    auto* function = (Function*)handle;
    if (functions.count(function) == 0 || threads < 1 || threads > (int)MAX_THREADS) {
        return INVALID_VALUE;
    }
    const unsigned warps = ((unsigned)threads + 31) / 32, registers = function->registers_of_block((unsigned)threads);
    const auto shared = (unsigned)(function->image.static_shared + dynamic_shared + SHARED_RESERVED);
    *blocks = (int)std::min({32u, 64 / warps, registers > 0 ? REGISTERS / registers : 32u, SHARED_OF_MULTIPROCESSOR / shared});
    return SUCCESS;
}
CUDA_API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned dynamic_shared,
                        void* stream, void** parameters, void** extra) {
    CALL(cuLaunchKernel, Context);
    return launch(call, function, {{gx, gy, gz}, {bx, by, bz}, dynamic_shared}, stream, parameters, extra);
}
// CUlaunchAttribute, as far as it is read: the value is a union of 64 bytes.
struct LaunchAttribute {
    int id;
    char pad[4];
    int value;
    char rest[60];
};
static_assert(sizeof(LaunchAttribute) == 72, "as the driver's header has it");
enum { PROGRAMMATIC_STREAM_SERIALIZATION = 6 };

// CUlaunchConfig, as far as it is read.
struct LaunchConfig {
    unsigned gx, gy, gz, bx, by, bz, dynamic_shared;
    void* stream;
    const LaunchAttribute* attributes;
    unsigned attribute_count;
};
CUDA_API cuLaunchKernelEx(const LaunchConfig* c, void* function, void** parameters, void** extra) {
    CALL(cuLaunchKernelEx, Context);
    // Kernels run one after the other here; of one that need not, it is seen to that it waits where it must on hardware. Clusters
    // and the rest change what a kernel may do; none is emulated.
    bool overlaps = false;
    for (unsigned i = 0; i < c->attribute_count; i++) {
        if (c->attributes[i].id != PROGRAMMATIC_STREAM_SERIALIZATION) {
            return NOT_SUPPORTED;
        }
        overlaps = c->attributes[i].value != 0;
    }
    const Shape shape{{c->gx, c->gy, c->gz}, {c->bx, c->by, c->bz}, c->dynamic_shared, overlaps};
    return launch(call, function, shape, c->stream, parameters, extra);
}
// Blocks that wait for each other would wait forever: they need not run at once here.
CUDA_API cuLaunchCooperativeKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**) {
    CALL(cuLaunchCooperativeKernel, Context);
    return NOT_SUPPORTED;
}
