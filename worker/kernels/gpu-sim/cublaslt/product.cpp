// The products, plainly: operands decoded to FP32 (or kept as integers), one dot product for each element.
#include <cmath>
#include <type_traits>

#include "../driver/control.h"
#include "../shim/device.h"
#include "lt.h"

namespace lt {

template <class T>
static T load_element(const void* data, int type, size_t index) {
    switch (type) {
    case E4M3: return (T)emu::E4M3_VALUES[((const uint8_t*)data)[index]];
    case E5M2: return (T)emu::E5M2_VALUES[((const uint8_t*)data)[index]];
    case INT8: return (T)((const int8_t*)data)[index];
    case INT32: return (T)((const int32_t*)data)[index];
    case BF16: return (T)emu::from_bf16(((const uint16_t*)data)[index]);
    case FP16: return (T)emu::from_f16(((const uint16_t*)data)[index]);
    default: return (T)((const float*)data)[index];
    }
}

static void store(void* data, int type, size_t index, float value) {
    switch (type) {
    case BF16: ((uint16_t*)data)[index] = emu::to_bf16(value); break;
    case FP16: ((uint16_t*)data)[index] = emu::to_f16(value); break;
    default: ((float*)data)[index] = value;
    }
}

// Rows of K contiguous elements, padded with zeros to a multiple of LANES.
constexpr uint64_t LANES = 16;
static uint64_t padded(uint64_t k) { return (k + LANES - 1) / LANES * LANES; }

template <class T>
static std::vector<T> gather(const void* data, const Layout& layout, bool k_is_contiguous, uint64_t rows, uint64_t k) {
    std::vector<T> out(rows * padded(k), T(0));
    for (uint64_t row = 0; row < rows; row++) {
        for (uint64_t i = 0; i < k; i++) {
            const uint64_t index = k_is_contiguous ? row * (uint64_t)layout.leading + i : i * (uint64_t)layout.leading + row;
            out[row * padded(k) + i] = load_element<T>(data, layout.type, index);
        }
    }
    return out;
}

template <class T>
static T dot(const T* a, const T* b, uint64_t k) {
    using Sum = std::conditional_t<std::is_integral_v<T>, uint32_t, T>;  // integer sums wrap
    Sum sums[LANES] = {};
    for (uint64_t i = 0; i < k; i += LANES) {
        for (uint64_t lane = 0; lane < LANES; lane++) {
            sums[lane] += (Sum)(a[i + lane] * b[i + lane]);
        }
    }
    Sum total = 0;
    for (const Sum sum : sums) {
        total += sum;
    }
    return (T)total;
}

template <class T, class Finish>
static void for_products(const Problem& p, Finish finish) {
    const std::vector<T> a = gather<T>(p.a_data, p.a, p.description.number(TRANSPOSE_A, 0) != 0, p.m, p.k);
    const std::vector<T> b = gather<T>(p.b_data, p.b, p.description.number(TRANSPOSE_B, 0) == 0, p.n, p.k);
    const uint64_t k = padded(p.k);
    for (uint64_t column = 0; column < p.n; column++) {
        for (uint64_t row = 0; row < p.m; row++) {
            finish(row, column, dot(a.data() + row * k, b.data() + column * k, k));
        }
    }
}

static bool readable(const Problem& p) {
    const Description& d = p.description;
    const bool vector = d.number(A_SCALE_MODE, SCALAR) == OUTER_VECTOR;
    const auto valid = [](const void* data, size_t bytes) { return data == nullptr || cudasim_is_device_memory((uint64_t)data, bytes) != 0; };
    return valid(p.a_data, p.a.span_bytes()) && valid(p.b_data, p.b.span_bytes()) && valid(p.d_data, p.d.span_bytes()) &&
           (p.beta == 0 || valid(p.c_data, p.c.span_bytes())) && valid(d.pointer(A_SCALE), (vector ? p.m : 1) * sizeof(float)) &&
           valid(d.pointer(B_SCALE), (vector ? p.n : 1) * sizeof(float));
}

int multiply(const Problem& p) {
    constexpr int ILLEGAL_ADDRESS = 700;
    if (!readable(p)) {
        return ILLEGAL_ADDRESS;
    }
    const auto at = [](const Layout& layout, uint64_t row, uint64_t column) { return column * (uint64_t)layout.leading + row; };
    if (p.a.type == INT8) {
        for_products<int32_t>(p, [&](uint64_t row, uint64_t column, int32_t sum) {
            const int32_t before = p.beta != 0 ? ((const int32_t*)p.c_data)[at(p.c, row, column)] : 0;
            ((int32_t*)p.d_data)[at(p.d, row, column)] = (int32_t)p.alpha * sum + before;
        });
    } else {
        const float *a_scale = p.description.pointer(A_SCALE), *b_scale = p.description.pointer(B_SCALE);
        const bool vector = p.description.number(A_SCALE_MODE, SCALAR) == OUTER_VECTOR;
        for_products<float>(p, [&](uint64_t row, uint64_t column, float sum) {
            float value = (float)p.alpha * sum;
            value *= a_scale != nullptr ? a_scale[vector ? row : 0] : 1.0f;
            value *= b_scale != nullptr ? b_scale[vector ? column : 0] : 1.0f;
            if (p.beta != 0) {
                value += (float)p.beta * load_element<float>(p.c_data, p.c.type, at(p.c, row, column));
            }
            store(p.d_data, p.d.type, at(p.d, row, column), value);
        });
    }
    for (uint64_t column = 0; column < p.n; column++) {
        cudasim_written((uint64_t)p.d_data + at(p.d, 0, column) * bytes_of(p.d.type), p.m * bytes_of(p.d.type));
    }
    return 0;
}

}  // namespace lt
