// Which products cuBLASLt does on Hopper. Source: its documentation, cublasLtMatmul, "supported" tables and the notes on
// FP8 and IMMA kernels.
#include <cstdio>

#include "lt.h"

namespace lt {

static Status refuse(const char* why) {
    fprintf(stderr, "cudasim cublasLt: not supported: %s\n", why);
    return NOT_SUPPORTED;
}

static bool set(const Description& d, int attribute) { return d.pointer(attribute) != nullptr; }

// FP8: TN, every dimension and pointer fit for 16 bytes, FP32 sums; scales are one number or one a row of the output
// matrix and one a column.
static Status check_fp8(const Problem& p) {
    const Description& d = p.description;
    if (d.number(TRANSPOSE_A, 0) != 1 || d.number(TRANSPOSE_B, 0) != 0) {
        return refuse("FP8 on Hopper wants A transposed and B not (TN)");
    }
    if (p.a.type == E5M2 && p.b.type == E5M2) {
        return refuse("E5M2 by E5M2");
    }
    if (d.compute != COMPUTE_32F || d.scale != FP32) {
        return refuse("FP8 wants compute type 32F with scale type 32F");
    }
    if (p.k % 16 != 0 || p.m % 16 != 0 || p.a.leading % 16 != 0 || p.b.leading % 16 != 0 ||
        p.d.leading * (int64_t)bytes_of(p.d.type) % 16 != 0) {
        return refuse("FP8 wants k, m and the leading dimensions in multiples of 16 (bytes, for the output)");
    }
    if ((p.d.type != BF16 && p.d.type != FP32 && p.d.type != FP16) || p.c.type != p.d.type) {
        return refuse("an output type of an FP8 product other than BF16, FP16 and FP32");
    }
    const int a_mode = d.number(A_SCALE_MODE, SCALAR), b_mode = d.number(B_SCALE_MODE, SCALAR);
    if ((a_mode != SCALAR && a_mode != OUTER_VECTOR) || a_mode != b_mode) {
        return refuse("scale modes other than scalar for both, or outer vector for both");
    }
    if (a_mode == OUTER_VECTOR && (!set(d, A_SCALE) || !set(d, B_SCALE))) {
        return refuse("outer vector scales without their pointers");
    }
    if (set(d, D_SCALE) || set(d, C_SCALE)) {
        return refuse("scales of C and D, which are for FP8 outputs");
    }
    return SUCCESS;
}

// INT8 to INT32 ("IMMA kernels" with regular data order): TN, m, k and leading dimensions multiples of 4, integer
// alpha and beta of 0 or 1.
static Status check_int8(const Problem& p) {
    const Description& d = p.description;
    if (d.compute != COMPUTE_32I || d.scale != INT32 || p.c.type != INT32 || p.d.type != INT32) {
        return refuse("INT8 wants compute type 32I, scale type 32I and INT32 output");
    }
    if (d.number(TRANSPOSE_A, 0) != 1 || d.number(TRANSPOSE_B, 0) != 0) {
        return refuse("INT8 wants A transposed and B not (TN)");
    }
    if (p.m % 4 != 0 || p.k % 4 != 0 || p.a.leading % 4 != 0 || p.b.leading % 4 != 0 || p.d.leading % 4 != 0) {
        return refuse("INT8 wants m, k and the leading dimensions in multiples of 4");
    }
    return SUCCESS;
}

static Status check_float(const Problem& p) {
    const Description& d = p.description;
    if (p.a.type != BF16 && p.a.type != FP16 && p.a.type != FP32) {
        return refuse("this input type");
    }
    if (d.compute != COMPUTE_32F || d.scale != FP32) {
        return refuse("compute type other than 32F with scale type 32F");
    }
    if ((p.d.type != p.a.type && p.d.type != FP32) || p.c.type != p.d.type) {
        return refuse("an output type that is neither the inputs' nor FP32");
    }
    return set(d, A_SCALE) || set(d, B_SCALE) ? refuse("scales with inputs that are not FP8") : SUCCESS;
}

Status check(Problem& p) {
    const Description& d = p.description;
    const bool ta = d.number(TRANSPOSE_A, 0) != 0, tb = d.number(TRANSPOSE_B, 0) != 0;
    p.m = ta ? p.a.columns : p.a.rows;
    p.k = ta ? p.a.rows : p.a.columns;
    p.n = tb ? p.b.rows : p.b.columns;
    const auto fits = [](const Layout& l) { return l.rows > 0 && l.columns > 0 && l.leading >= (int64_t)l.rows; };
    if ((tb ? p.b.columns : p.b.rows) != p.k || p.d.rows != p.m || p.d.columns != p.n || p.c.rows != p.m || p.c.columns != p.n ||
        !fits(p.a) || !fits(p.b) || !fits(p.c) || !fits(p.d)) {
        return INVALID_VALUE;
    }
    if (d.number(POINTER_MODE, 0) != 0) {
        return refuse("alpha and beta on the device");
    }
    constexpr int EPILOGUE_DEFAULT = 1;
    if (d.number(EPILOGUE, EPILOGUE_DEFAULT) != EPILOGUE_DEFAULT) {
        return refuse("an epilogue");
    }
    for (const Layout* layout : {&p.a, &p.b, &p.c, &p.d}) {
        if (layout->order != 0 || layout->batch != 1) {
            return refuse("row order, or a batch");
        }
    }
    const bool fp8 = p.a.type == E4M3 || p.a.type == E5M2;
    if (p.a.type != p.b.type && !(fp8 && (p.b.type == E4M3 || p.b.type == E5M2))) {
        return refuse("inputs of different types");
    }
    return fp8 ? check_fp8(p) : p.a.type == INT8 ? check_int8(p) : check_float(p);
}

Status check_pointers(const Problem& p) {
    const size_t alignment = p.a.type == INT8 ? 4 : p.a.type == E4M3 || p.a.type == E5M2 ? 16 : bytes_of(p.a.type);
    const uintptr_t all = (uintptr_t)p.a_data | (uintptr_t)p.b_data | (uintptr_t)p.d_data | (p.beta != 0 ? (uintptr_t)p.c_data : 0);
    if (all % alignment != 0) {
        return refuse("an operand's address is not aligned as its type asks");
    }
    if (p.description.scale == INT32 && ((p.alpha != 0 && p.alpha != 1) || (p.beta != 0 && p.beta != 1))) {
        return refuse("integer alpha or beta other than 0 and 1");
    }
    return SUCCESS;
}

}  // namespace lt
