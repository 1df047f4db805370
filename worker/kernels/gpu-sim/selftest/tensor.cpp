// Fragments are laid out here by strides, the form in which CUTLASS's CuTe states them for these instructions
// (mma_traits_sm80.hpp), and not by the formulas of the PTX manual that the emulator follows: two descriptions that must
// agree.
#include <cmath>
#include <cstring>
#include <functional>

#include "harness.h"

namespace test {

// The index of (thread, value) in a matrix stored with the first coordinate fastest: each mode has a size and a stride.
struct Mode {
    unsigned size, stride;
};
static unsigned place(const std::vector<Mode>& modes, unsigned thread, unsigned value) {
    unsigned rest = thread + 32 * value, index = 0;
    for (const Mode mode : modes) {
        index += rest % mode.size * mode.stride;
        rest /= mode.size;
    }
    return index;
}

struct Layouts {
    unsigned k, per_register;
    std::vector<Mode> a, b, c;
};
static const Layouts K16{16, 2, {{4, 32}, {8, 1}, {2, 16}, {2, 8}, {2, 128}}, {{4, 16}, {8, 1}, {2, 8}, {2, 64}}, {{4, 32}, {8, 1}, {2, 16}, {2, 8}}};
static const Layouts K32{32, 4, {{4, 64}, {8, 1}, {4, 16}, {2, 8}, {2, 256}}, {{4, 32}, {8, 1}, {4, 8}, {2, 128}}, {{4, 32}, {8, 1}, {2, 16}, {2, 8}}};

// Small integers, which all formats hold: products and sums are exact.
using Encode = std::function<uint32_t(int)>;

template <class Sum>
static void test_mma(const char* kernel, const Layouts& layouts, const Encode& encode) {
    const unsigned k = layouts.k, per = layouts.per_register, bits = 32 / per;
    std::vector<int> a(16 * k), b(8 * k);
    for (int& v : a) v = (int)(next_random() % 9) - 4;
    for (int& v : b) v = (int)(next_random() % 9) - 4;
    std::vector<uint32_t> a_fragments(32 * 4, 0), b_fragments(32 * 2, 0);
    std::vector<Sum> c(32 * 4);
    for (unsigned thread = 0; thread < 32; thread++) {
        for (unsigned v = 0; v < 4 * per; v++) {
            a_fragments[thread * 4 + v / per] |= encode(a[place(layouts.a, thread, v)]) << (bits * (v % per));
        }
        for (unsigned v = 0; v < 2 * per; v++) {
            b_fragments[thread * 2 + v / per] |= encode(b[place(layouts.b, thread, v)]) << (bits * (v % per));
        }
        for (unsigned v = 0; v < 4; v++) {
            c[thread * 4 + v] = (Sum)(int)place(layouts.c, thread, v);
        }
    }
    Buffer<Sum> d(c);
    Buffer<uint32_t> da(a_fragments), db(b_fragments);
    CHECK(Kernel(kernel, {8, 8, 8}).run({1, 32}, d.p, da.p, db.p) == 0);
    const std::vector<Sum> got = d.get();
    for (unsigned thread = 0; thread < 32; thread++) {
        for (unsigned v = 0; v < 4; v++) {
            const unsigned at = place(layouts.c, thread, v), row = at % 16, column = at / 16;
            int want = (int)at;
            for (unsigned i = 0; i < k; i++) {
                want += a[row + 16 * i] * b[column + 8 * i];
            }
            CHECK(got[thread * 4 + v] == (Sum)want);
        }
    }
}

static uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
// -4..4 in each format, by hand.
static uint32_t in_bf16(int v) { return float_bits((float)v) >> 16; }
static uint32_t small(int v, const uint32_t (&codes)[5], uint32_t sign) { return codes[v < 0 ? -v : v] | (v < 0 ? sign : 0); }
static uint32_t in_f16(int v) { return small(v, {0, 0x3c00, 0x4000, 0x4200, 0x4400}, 0x8000); }
static uint32_t in_e4m3(int v) { return small(v, {0, 0x38, 0x40, 0x44, 0x48}, 0x80); }

static void test_ldmatrix() {
    std::vector<uint16_t> in(32 * 8);
    for (uint16_t& v : in) v = (uint16_t)next_random();
    Buffer<uint16_t> rows(in);
    Buffer<uint32_t> out(32 * 10);
    CHECK(Kernel("probe_ldmatrix", {8, 8}).run({1, 32}, out.p, rows.p) == 0);
    const std::vector<uint32_t> got = out.get();
    const auto element = [&](unsigned matrix, unsigned row, unsigned column) { return (uint32_t)in[(matrix * 8 + row) * 8 + column]; };
    for (unsigned lane = 0; lane < 32; lane++) {
        const unsigned row = lane / 4, pair = lane % 4 * 2;
        for (unsigned m = 0; m < 4; m++) {
            const uint32_t straight = element(m, row, pair) | element(m, row, pair + 1) << 16;
            CHECK(got[lane * 10 + m] == straight);
            CHECK(got[lane * 10 + 4 + m] == (element(m, pair, row) | element(m, pair + 1, row) << 16));
            if (m < 2) {
                CHECK(got[lane * 10 + 8 + m] == straight);
            }
        }
    }
}

// ---- conversions: compared with a search for the nearest value ----

struct Format {
    unsigned mantissa;
    int bias;
    uint32_t largest;  // the code of the largest finite magnitude
    bool saturates;
};
static double value_of(uint32_t code, const Format& f) {
    const uint32_t field = code >> f.mantissa, m = code & ((1u << f.mantissa) - 1);
    return field == 0 ? std::ldexp(m, 1 - f.bias - (int)f.mantissa) : std::ldexp(m + (1u << f.mantissa), (int)field - f.bias - (int)f.mantissa);
}
// The code of the magnitude nearest to |x|, even codes at ties; beyond the largest by half a step: that or infinity.
static uint32_t nearest(double x, const Format& f) {
    uint32_t low = 0, high = f.largest + 1;  // value(low) <= x < value(high)
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        (value_of(middle, f) <= x ? low : high) = middle;
    }
    const double below = x - value_of(low, f), above = value_of(low + 1, f) - x;
    const uint32_t rounded = below > above || (below == above && low % 2 == 1) ? low + 1 : low;
    return f.saturates && rounded > f.largest ? f.largest : rounded;
}

static void test_narrowing() {
    std::vector<float> in;
    for (uint32_t i = 0; i < 1 << 16; i++) {  // every exponent, and both sides of ties
        float f;
        const uint32_t bits = (i << 15) | (i % 3 == 0 ? 0 : next_random() % 2 == 0 ? 1 : next_random() & 0x7fff);
        memcpy(&f, &bits, 4);
        if (std::isfinite(f)) {
            in.push_back(f);
        }
    }
    const auto n = (unsigned)in.size();
    Buffer<float> x(in);
    Buffer<uint16_t> e4m3(n), e5m2(n);
    Buffer<uint32_t> f16(n), bf16(n);
    CHECK(Kernel("narrow", {8, 8, 8, 8, 8, 4}).run({(n + 255) / 256, 256}, e4m3.p, e5m2.p, f16.p, bf16.p, x.p, n) == 0);
    const auto got4 = e4m3.get(), got5 = e5m2.get();
    const auto got16 = f16.get(), got_bf = bf16.get();
    const Format as_e4m3{3, 7, 0x7e, true}, as_e5m2{2, 15, 0x7b, true}, as_f16{10, 15, 0x7bff, false}, as_bf16{7, 127, 0x7f7f, false};
    int wrong = 0;
    for (unsigned i = 0; i < n; i++) {
        const uint32_t a = nearest(in[i], as_e4m3), b = nearest(in[i], as_e5m2), c = nearest(in[i], as_f16), d = nearest(in[i], as_bf16);
        wrong += got4[i] != (a | (a | 0x80) << 8) || got5[i] != (b | (b | 0x80) << 8) || got16[i] != (c | (c | 0x8000) << 16) ||
                 got_bf[i] != (d | (d | 0x8000) << 16);
    }
    CHECK(wrong == 0);
}

static void test_widening() {
    Buffer<float> e4m3(256), e5m2(256), by_f16(256);
    CHECK(Kernel("widen", {8, 8, 8}).run({1, 64}, e4m3.p, e5m2.p, by_f16.p) == 0);
    const auto got4 = e4m3.get(), got5 = e5m2.get(), got16 = by_f16.get();
    for (uint32_t code = 0; code < 256; code++) {
        const uint32_t magnitude = code & 0x7f;
        const double sign = code & 0x80 ? -1 : 1;
        const auto same = [](double got, double want) { return std::isnan(want) ? std::isnan(got) : got == want && std::signbit(got) == std::signbit(want); };
        const double four = magnitude == 0x7f ? NAN : sign * value_of(magnitude, {3, 7, 0x7e, true});
        const double five = magnitude > 0x7c ? NAN : magnitude == 0x7c ? sign * INFINITY : sign * value_of(magnitude, {2, 15, 0x7b, true});
        CHECK(same(got4[code], four) && same(got16[code], four) && same(got5[code], five));
    }
}

static void test_integers() {
    std::vector<int> in(33);
    for (int& v : in) v = (int)(next_random() << 3 ^ next_random());
    in[3] = 5;  // halves to 2.5
    Buffer<int> from(in), to(96);
    CHECK(Kernel("integers", {8, 8}).run({1, 32}, to.p, from.p) == 0);
    const std::vector<int> got = to.get();
    for (size_t i = 0; i < 32; i++) {
        int dot = (int)i;
        for (int byte = 0; byte < 4; byte++) {
            dot += (int8_t)(in[i] >> (8 * byte)) * (int8_t)(in[i + 1] >> (8 * byte));
        }
        CHECK(got[i] == dot);
        const auto x = (uint32_t)in[i], y = (uint32_t)in[i + 1];
        CHECK((uint32_t)got[32 + i] == ((x >> 8 & 0xff) | (x >> 24) << 8 | (y >> 8 & 0xff) << 16 | (y >> 24) << 24));
    }
    CHECK(got[64 + 3] == 2);
}

void tensor() {
    test_mma<float>("probe_bf16", K16, in_bf16);
    test_mma<float>("probe_f16", K16, in_f16);
    test_mma<float>("probe_e4m3", K32, in_e4m3);
    test_mma<int>("probe_s8", K32, [](int v) { return (uint32_t)v & 0xff; });
    test_ldmatrix();
    test_narrowing();
    test_widening();
    test_integers();
}

}  // namespace test
