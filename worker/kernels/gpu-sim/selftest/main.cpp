// Self tests of the emulated device: `selftest plain FOLDER` or `selftest race FOLDER`, as the driver was built; FOLDER holds the
// sources of the kernels, whose lines messages name.
#include "harness.h"

#include <cstring>
#include <fstream>

namespace test {

static std::string kernels;

std::string marked(const std::string& file, const std::string& mark) {
    std::ifstream source(kernels + "/" + file);
    std::string line;
    for (int number = 1; std::getline(source, line); number++) {
        if (line.size() > mark.size() && line.compare(line.size() - mark.size(), mark.size(), mark) == 0 && line.find("// MARK ") != std::string::npos) {
            return file + ":" + std::to_string(number);
        }
    }
    fprintf(stderr, "%s has no line with the mark %s\n", (kernels + "/" + file).c_str(), mark.c_str());
    exit(1);
}

static void use_device(int ordinal) {
    void* context = nullptr;
    REQUIRE(cuDevicePrimaryCtxRetain(&context, ordinal) == 0);
    REQUIRE(cuCtxSetCurrent(context) == 0);
}

}  // namespace test

int main(int argc, char** argv) {
    using namespace test;
    if (argc != 3) {
        fprintf(stderr, "usage: selftest plain|race FOLDER\n");
        return 2;
    }
    kernels = argv[2];
    setenv("CUDASIM_DEVICES", "2", 1);
    setenv("CUDASIM_TIMEOUT", "5", 1);
    REQUIRE(cuInit(0) == 0);
    use_device(0);
    const bool race = strcmp(argv[1], "race") == 0;
    for (int order = 0; order < 4; order++) {
        cudasim_set_order(order, 1 + (uint64_t)order);
        collectives();
        tensor();
        memory();
    }
    cudasim_set_order(0, 1);
    if (race) {
        races();
    } else {
        orders();
        faults();
        driver();
        libraries();
    }
    printf("emulated device, %s: %d checks, %d failures\n", argv[1], checks, failures);
    return failures != 0;
}
