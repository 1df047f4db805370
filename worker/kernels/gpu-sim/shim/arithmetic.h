// Device functions for single threads: bits, integers, FP32. Where the hardware only approximates (__expf, rsqrtf),
// the host's exact function stands in: results agree within the error that CUDA documents, not bit by bit.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "keywords.h"

// CUDA overloads these for mixed arithmetic types; a NaN gives way to the other operand.
template <class A, class B>
EMU_INLINE auto min(A a, B b) {
    using T = std::common_type_t<A, B>;
    const T x = (T)a, y = (T)b;
    return y < x || x != x ? y : x;
}
template <class A, class B>
EMU_INLINE auto max(A a, B b) {
    using T = std::common_type_t<A, B>;
    const T x = (T)a, y = (T)b;
    return x < y || x != x ? y : x;
}

template <class To, class From>
EMU_INLINE To emu_bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

EMU_INLINE float __uint_as_float(unsigned u) { return emu_bit_cast<float>(u); }
EMU_INLINE unsigned __float_as_uint(float f) { return emu_bit_cast<unsigned>(f); }
EMU_INLINE float __int_as_float(int i) { return emu_bit_cast<float>(i); }
EMU_INLINE int __float_as_int(float f) { return emu_bit_cast<int>(f); }

// ---- FP32 ----
EMU_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
// glibc declares these names for itself.
#define __expf emu_expf
#define __exp2f emu_exp2f
#define __logf emu_logf
#define __log2f emu_log2f
#define __powf emu_powf
#define __sinf emu_sinf
#define __cosf emu_cosf
#define __sincosf emu_sincosf
EMU_INLINE float emu_expf(float x) { return expf(x); }
EMU_INLINE float emu_exp2f(float x) { return exp2f(x); }
EMU_INLINE float emu_logf(float x) { return logf(x); }
EMU_INLINE float emu_log2f(float x) { return log2f(x); }
EMU_INLINE float emu_powf(float x, float y) { return powf(x, y); }
EMU_INLINE float emu_sinf(float x) { return sinf(x); }
EMU_INLINE float emu_cosf(float x) { return cosf(x); }
EMU_INLINE void emu_sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
EMU_INLINE float __fdividef(float a, float b) { return a / b; }
EMU_INLINE float __fdiv_rn(float a, float b) { return a / b; }
EMU_INLINE float __frcp_rn(float x) { return 1.0f / x; }
EMU_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// These forbid the compiler to fuse them into a multiply-add.
__attribute__((noinline, unused)) static float __fmul_rn(float a, float b) { return a * b; }
__attribute__((noinline, unused)) static float __fadd_rn(float a, float b) { return a + b; }
__attribute__((noinline, unused)) static float __fsub_rn(float a, float b) { return a - b; }

// ---- conversions: to nearest even, or toward zero; out of range saturates and NaN becomes zero, as cvt does ----
template <class Integer>
EMU_INLINE Integer emu_saturating(double x) {
    if (x != x) {
        return 0;
    }
    // As doubles the limits of 64 bit are rounded up, which the comparisons below allow for.
    const double lowest = (double)std::numeric_limits<Integer>::min(), highest = (double)std::numeric_limits<Integer>::max();
    return x <= lowest ? std::numeric_limits<Integer>::min() : x >= highest ? std::numeric_limits<Integer>::max() : (Integer)x;
}
EMU_INLINE int __float2int_rn(float x) { return emu_saturating<int>(std::nearbyint((double)x)); }
EMU_INLINE int __float2int_rz(float x) { return emu_saturating<int>(std::trunc((double)x)); }
EMU_INLINE int __float2int_rd(float x) { return emu_saturating<int>(std::floor((double)x)); }
EMU_INLINE int __float2int_ru(float x) { return emu_saturating<int>(std::ceil((double)x)); }
EMU_INLINE unsigned __float2uint_rn(float x) { return emu_saturating<unsigned>(std::nearbyint((double)x)); }
EMU_INLINE unsigned __float2uint_rz(float x) { return emu_saturating<unsigned>(std::trunc((double)x)); }
EMU_INLINE unsigned long long __float2ull_rn(float x) { return emu_saturating<unsigned long long>(std::nearbyint((double)x)); }
EMU_INLINE unsigned long long __float2ull_rz(float x) { return emu_saturating<unsigned long long>(std::trunc((double)x)); }
EMU_INLINE long long __float2ll_rn(float x) { return emu_saturating<long long>(std::nearbyint((double)x)); }
EMU_INLINE float __int2float_rn(int x) { return (float)x; }
EMU_INLINE float __uint2float_rn(unsigned x) { return (float)x; }
EMU_INLINE float __ull2float_rn(unsigned long long x) { return (float)x; }

// ---- integers and bits ----
EMU_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
EMU_INLINE int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
EMU_INLINE int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
EMU_INLINE unsigned __brev(unsigned x) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) {
        r |= (x >> i & 1) << (31 - i);
    }
    return r;
}
// Each nibble of the selector picks one of the eight bytes of {y, x}; its upper bit spreads that byte's sign instead.
EMU_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned pick = selector >> (4 * i) & 15;
        unsigned byte = (unsigned)(bytes >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) {
            byte = byte & 0x80 ? 0xff : 0;
        }
        r |= byte << (8 * i);
    }
    return r;
}
EMU_INLINE unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) << (n & 31) >> 32);
}
EMU_INLINE unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) >> (n & 31));
}
EMU_INLINE int __dp4a(int a, int b, int c) {
    unsigned sum = (unsigned)c;
    for (int i = 0; i < 4; i++) {
        sum += (unsigned)((signed char)(a >> (8 * i)) * (signed char)(b >> (8 * i)));
    }
    return (int)sum;
}

// ---- loads and stores with a hint for the cache, which the emulator does not have ----
template <class T>
EMU_INLINE T __ldg(const T* p) { return *p; }
template <class T>
EMU_INLINE T __ldcg(const T* p) { return *p; }
template <class T>
EMU_INLINE T __ldcs(const T* p) { return *p; }
template <class T>
EMU_INLINE T __ldca(const T* p) { return *p; }
template <class T>
EMU_INLINE void __stcg(T* p, T v) { *p = v; }
template <class T>
EMU_INLINE void __stcs(T* p, T v) { *p = v; }
