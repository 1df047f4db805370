// The exported functions: handles, descriptors with their attributes, and a product in stream order.
#include <memory>
#include <set>

#include "../driver/control.h"
#include "lt.h"

using namespace lt;

#define LT_API extern "C" __attribute__((visibility("default"))) int

// Counts the call; a failure that a test asked for is the status to give.
#define LT_CALL(name)                                  \
    if (const int asked = cudasim_count(#name)) {      \
        return asked;                                  \
    }

namespace {
struct Handle {};
struct Preference {
    uint64_t workspace = 0;
};
constexpr uint64_t ALGORITHM = 0x6375646173696d;  // "cudasim"

// cublasLtMatmulHeuristicResult_t
struct HeuristicResult {
    uint64_t algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

// The bytes of each attribute: the real library refuses any other number. The list is from cublasLt.h.
size_t desc_attribute_bytes(int attribute) {
    switch (attribute) {
    case 0: case 1: case 2: case 3: case 4: case 5: case 6: case 7: case 15: case 22: case 26: case 31: case 32: case 33: case 34: return 4;
    case 8: case 10: case 11: case 12: case 13: case 14: case 17: case 18: case 19: case 20: case 21: case 23: case 24: return 8;
    case 25: return 1;
    default: return 0;
    }
}
}  // namespace

LT_API cublasLtCreate(void** handle) {
    LT_CALL(cublasLtCreate);
    *handle = new Handle;
    return SUCCESS;
}
LT_API cublasLtDestroy(void* handle) {
    LT_CALL(cublasLtDestroy);
    delete (Handle*)handle;
    return SUCCESS;
}
extern "C" __attribute__((visibility("default"))) size_t cublasLtGetVersion() { return 130000; }

LT_API cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
    LT_CALL(cublasLtMatmulDescCreate);
    *desc = new Description{compute, scale, {}};
    return SUCCESS;
}
LT_API cublasLtMatmulDescDestroy(void* desc) {
    LT_CALL(cublasLtMatmulDescDestroy);
    delete (Description*)desc;
    return SUCCESS;
}
LT_API cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
    LT_CALL(cublasLtMatmulDescSetAttribute);
    if (desc == nullptr || value == nullptr || bytes == 0 || bytes != desc_attribute_bytes(attribute)) {
        return INVALID_VALUE;
    }
    ((Description*)desc)->attributes[attribute].assign((const uint8_t*)value, (const uint8_t*)value + bytes);
    return SUCCESS;
}

LT_API cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    LT_CALL(cublasLtMatrixLayoutCreate);
    if (bytes_of(type) == 0) {
        return NOT_SUPPORTED;
    }
    *layout = new Layout{type, rows, columns, leading};
    return SUCCESS;
}
LT_API cublasLtMatrixLayoutDestroy(void* layout) {
    LT_CALL(cublasLtMatrixLayoutDestroy);
    delete (Layout*)layout;
    return SUCCESS;
}
LT_API cublasLtMatrixLayoutSetAttribute(void* handle, int attribute, const void* value, size_t bytes) {
    LT_CALL(cublasLtMatrixLayoutSetAttribute);
    auto* layout = (Layout*)handle;
    enum { TYPE = 0, ORDER = 1, ROWS = 2, COLUMNS = 3, LEADING = 4, BATCH = 5, BATCH_STRIDE = 6 };
    const bool wide = attribute == ROWS || attribute == COLUMNS || attribute == LEADING || attribute == BATCH_STRIDE;
    if (layout == nullptr || value == nullptr || attribute < TYPE || attribute > BATCH_STRIDE || bytes != (wide ? 8u : 4u)) {
        return INVALID_VALUE;
    }
    switch (attribute) {
    case TYPE: memcpy(&layout->type, value, bytes); break;
    case ORDER: memcpy(&layout->order, value, bytes); break;
    case ROWS: memcpy(&layout->rows, value, bytes); break;
    case COLUMNS: memcpy(&layout->columns, value, bytes); break;
    case LEADING: memcpy(&layout->leading, value, bytes); break;
    case BATCH: memcpy(&layout->batch, value, bytes); break;
    default: break;  // a stride means nothing without a batch
    }
    return SUCCESS;
}

LT_API cublasLtMatmulPreferenceCreate(void** preference) {
    LT_CALL(cublasLtMatmulPreferenceCreate);
    *preference = new Preference;
    return SUCCESS;
}
LT_API cublasLtMatmulPreferenceDestroy(void* preference) {
    LT_CALL(cublasLtMatmulPreferenceDestroy);
    delete (Preference*)preference;
    return SUCCESS;
}
LT_API cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
    LT_CALL(cublasLtMatmulPreferenceSetAttribute);
    constexpr int MAX_WORKSPACE = 1;
    if (preference == nullptr || value == nullptr || (attribute == MAX_WORKSPACE && bytes != 8)) {
        return INVALID_VALUE;
    }
    if (attribute == MAX_WORKSPACE) {
        memcpy(&((Preference*)preference)->workspace, value, bytes);
    }
    return SUCCESS;
}

LT_API cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted,
                                      HeuristicResult* results, int* found) {
    LT_CALL(cublasLtMatmulAlgoGetHeuristic);
    *found = 0;
    if (handle == nullptr || preference == nullptr || wanted < 1) {
        return INVALID_VALUE;
    }
    Problem problem{*(Description*)desc, *(Layout*)a, *(Layout*)b, *(Layout*)c, *(Layout*)d};
    if (const Status status = check(problem)) {
        return status;
    }
    results[0] = {};
    results[0].algorithm[0] = ALGORITHM;
    results[0].waves = 1.0f;
    *found = 1;
    return SUCCESS;
}

LT_API cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout, const void* beta,
                      const void* c, void* c_layout, void* d, void* d_layout, const uint64_t* algorithm, void* workspace, size_t workspace_bytes,
                      void* stream) {
    LT_CALL(cublasLtMatmul);
    if (handle == nullptr || alpha == nullptr || beta == nullptr || a == nullptr || b == nullptr || d == nullptr ||
        (algorithm != nullptr && algorithm[0] != ALGORITHM) || (workspace == nullptr && workspace_bytes > 0)) {
        return INVALID_VALUE;
    }
    auto problem = std::make_unique<Problem>(Problem{*(Description*)desc, *(Layout*)a_layout, *(Layout*)b_layout, *(Layout*)c_layout, *(Layout*)d_layout});
    const bool integer = problem->description.scale == INT32;
    problem->alpha = integer ? (double)*(const int*)alpha : (double)*(const float*)alpha;
    problem->beta = integer ? (double)*(const int*)beta : (double)*(const float*)beta;
    problem->a_data = a;
    problem->b_data = b;
    problem->c_data = c;
    problem->d_data = d;
    if (problem->beta != 0 && c == nullptr) {
        return INVALID_VALUE;
    }
    Status status = check(*problem);
    if (status == SUCCESS) {
        status = check_pointers(*problem);
    }
    if (status != SUCCESS) {
        return status;
    }
    const auto run = [](void* p) { return multiply(*(const Problem*)p); };
    const auto release = [](void* p) { delete (Problem*)p; };
    return cudasim_submit(-1, stream, "a product of cuBLASLt", run, problem.release(), release) == 0 ? SUCCESS : EXECUTION_FAILED;
}
