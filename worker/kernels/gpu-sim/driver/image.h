// What a device image, a cubin or PTX, says of its kernels.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "results.h"

namespace driver {

struct KernelImage {
    std::vector<uint32_t> parameter_bytes;
    unsigned max_threads = 1024;  // __launch_bounds__
    unsigned static_shared = 0;
    unsigned registers = 0;  // a thread; 0 in PTX, which does not know
    unsigned local_bytes = 0;
    bool compiled = false;  // a cubin: what it does not state is zero, not unknown
};

using Image = std::map<std::string, KernelImage>;

// Both give SUCCESS or the code that cuModuleLoadData gives.
int read_image(const void* data, Image& image);

}  // namespace driver
