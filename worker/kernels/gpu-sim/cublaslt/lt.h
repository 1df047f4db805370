// The reference cuBLASLt: what the worker asks for, with the limits of the real library on Hopper.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <vector>

namespace lt {

enum Status : int {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};
enum DataType : int { FP32 = 0, FP16 = 2, INT8 = 3, INT32 = 10, BF16 = 14, E4M3 = 28, E5M2 = 29 };
enum ComputeType : int { COMPUTE_32F = 68, COMPUTE_32I = 72 };
enum ScaleMode : int { SCALAR = 0, OUTER_VECTOR = 3 };

// cublasLtMatmulDescAttributes_t, those that are read.
enum DescAttribute : int {
    POINTER_MODE = 2,
    TRANSPOSE_A = 3,
    TRANSPOSE_B = 4,
    EPILOGUE = 7,
    A_SCALE = 17,
    B_SCALE = 18,
    C_SCALE = 19,
    D_SCALE = 20,
    A_SCALE_MODE = 31,
    B_SCALE_MODE = 32,
};

// 0 for what is not known.
inline size_t bytes_of(int type) {
    switch (type) {
    case FP32:
    case INT32: return 4;
    case FP16:
    case BF16: return 2;
    case INT8:
    case E4M3:
    case E5M2: return 1;
    default: return 0;
    }
}

// Column-major, as cuBLAS has it: element (row, column) is at column * leading + row.
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
    int order = 0;
    int batch = 1;

    size_t span_bytes() const { return ((columns - 1) * (uint64_t)leading + rows) * bytes_of(type); }
};

struct Description {
    int compute, scale;
    std::map<int, std::vector<uint8_t>> attributes;

    int number(int attribute, int otherwise) const {
        const auto it = attributes.find(attribute);
        int value = otherwise;
        if (it != attributes.end()) {
            memcpy(&value, it->second.data(), it->second.size() < 4 ? it->second.size() : 4);
        }
        return value;
    }
    const float* pointer(int attribute) const {
        const auto it = attributes.find(attribute);
        const float* value = nullptr;
        if (it != attributes.end()) {
            memcpy(&value, it->second.data(), sizeof value);
        }
        return value;
    }
};

// D = alpha * op(A) op(B) + beta * C.
struct Problem {
    Description description;
    Layout a, b, c, d;
    const void *a_data = nullptr, *b_data = nullptr, *c_data = nullptr;
    void* d_data = nullptr;
    double alpha = 1, beta = 0;
    uint64_t m = 0, n = 0, k = 0;
};

// Fills in m, n and k; NOT_SUPPORTED, with a line on stderr that says why, where the real library has no kernel.
Status check(Problem& problem);
// The pointers, which the heuristic does not see.
Status check_pointers(const Problem& problem);
// Gives a CUresult: run in stream order.
int multiply(const Problem& problem);

}  // namespace lt
