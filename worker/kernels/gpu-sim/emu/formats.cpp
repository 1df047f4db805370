// Conversions between FP32 and the small formats, in integer arithmetic on the bits: to nearest even. They are written
// from the formats' definitions (OCP FP8, IEEE 754) and the selftest compares them with a search over all values.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "runtime.h"

namespace emu {

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

// The magnitude |x| in a format with `mantissa` bits and the given exponent bias, as its bits without the sign, rounded
// to nearest even and unbounded above: the caller looks at what is too large.
static uint32_t round_magnitude(float x, int mantissa, int bias) {
    const uint32_t u = bits_of(x) & 0x7fffffff;
    int exponent = (int)(u >> 23) - 127;
    uint32_t significand = u & 0x7fffff;
    if (u >= 0x00800000) {
        significand |= 0x800000;
    } else {
        exponent = -126;  // an FP32 subnormal
    }
    // Below the smallest normal number the exponent stays and the significand loses bits.
    const int lowest = 1 - bias;
    const int drop = 23 - mantissa + (exponent < lowest ? lowest - exponent : 0);
    if (drop > 24) {
        return 0;  // below half of the smallest subnormal
    }
    uint32_t rounded = significand >> drop;
    const uint32_t rest = significand & ((1u << drop) - 1), half = 1u << (drop - 1);
    rounded += rest > half || (rest == half && (rounded & 1) != 0);
    // The implicit bit of a normal number adds one to the exponent field; a carry out of the significand, one more.
    const int field = exponent < lowest ? 0 : exponent + bias - 1;
    return ((uint32_t)field << mantissa) + rounded;
}

static uint8_t to_fp8(float x, int mantissa, int bias, uint32_t largest) {
    if (std::isnan(x)) {
        return 0x7f;
    }
    const uint32_t magnitude = std::isinf(x) ? largest : std::min(round_magnitude(x, mantissa, bias), largest);
    return (uint8_t)(magnitude | bits_of(x) >> 31 << 7);
}

uint8_t to_e4m3(float x) { return to_fp8(x, 3, 7, 0x7e); }
uint8_t to_e5m2(float x) { return to_fp8(x, 2, 15, 0x7b); }

uint16_t to_f16(float x) {
    if (std::isnan(x)) {
        return 0x7fff;
    }
    constexpr uint32_t INFINITE = 0x7c00;
    const uint32_t magnitude = std::isinf(x) ? INFINITE : std::min(round_magnitude(x, 10, 15), INFINITE);
    return (uint16_t)(magnitude | bits_of(x) >> 31 << 15);
}

uint16_t to_bf16(float x) {
    const uint32_t u = bits_of(x);
    if (std::isnan(x)) {
        return 0x7fff;
    }
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// By way of FP32, where an inexact result keeps its lowest bit odd: rounding that again gives what one rounding gives.
uint16_t to_bf16(double x) {
    float f = (float)x;
    if ((double)f != x && !std::isnan(x) && !std::isinf(f)) {
        uint32_t u = bits_of(f);
        if (std::fabs((double)f) > std::fabs(x)) {
            u--;  // toward zero
        }
        u |= 1;
        memcpy(&f, &u, 4);
    }
    return to_bf16(f);
}

float from_f16(uint16_t x) {
    // The bits of |x| as those of an FP32 are x * 2^-112, also for subnormal numbers; infinity and NaN need all ones.
    const uint32_t magnitude = (uint32_t)(x & 0x7fff) << 13;
    uint32_t u = magnitude | 0x7f800000;
    if (magnitude < 0x0f800000) {
        float f;
        memcpy(&f, &magnitude, 4);
        u = bits_of(f * 0x1p112f);
    }
    u |= (uint32_t)(x >> 15) << 31;
    float result;
    memcpy(&result, &u, 4);
    return result;
}

// Decoded by definition: (-1)^s 2^(e - bias) 1.m, and 2^(1 - bias) 0.m where e = 0.
static constexpr float decode(int code, int mantissa_bits, int bias) {
    const int field = (code & 0x7f) >> mantissa_bits, mantissa = code & ((1 << mantissa_bits) - 1);
    float value = (float)(field != 0 ? mantissa + (1 << mantissa_bits) : mantissa);
    const int exponent = (field != 0 ? field : 1) - bias - mantissa_bits;
    for (int i = 0; i < exponent; i++) {
        value *= 2.0f;
    }
    for (int i = 0; i > exponent; i--) {
        value *= 0.5f;
    }
    return (code & 0x80) != 0 ? -value : value;
}
// E4M3 has no infinity and one NaN, all ones.
static constexpr std::array<float, 256> e4m3_values() {
    std::array<float, 256> values{};
    for (int code = 0; code < 256; code++) {
        values[(size_t)code] = (code & 0x7f) == 0x7f ? __builtin_nanf("") : decode(code, 3, 7);
    }
    return values;
}
static constexpr std::array<float, 256> e5m2_values() {
    std::array<float, 256> values{};
    for (int code = 0; code < 256; code++) {
        const int magnitude = code & 0x7f;
        const float infinite = (code & 0x80) != 0 ? -__builtin_inff() : __builtin_inff();
        values[(size_t)code] = magnitude > 0x7c ? __builtin_nanf("") : magnitude == 0x7c ? infinite : decode(code, 2, 15);
    }
    return values;
}
constexpr std::array<float, 256> E4M3_TABLE = e4m3_values(), E5M2_TABLE = e5m2_values();
const std::array<float, 256> E4M3_VALUES = E4M3_TABLE, E5M2_VALUES = E5M2_TABLE;

}  // namespace emu
