// The emulated bodies of prim.cuh's primitives: same names, same contracts, which are documented there.
#pragma once
#include <cstring>

#include "arithmetic.h"
#include "collectives.h"
#include "keywords.h"

// ---- bits ----
EMU_INLINE unsigned and_or(unsigned a, unsigned mask, unsigned bits) { return (a & mask) | bits; }

EMU_INLINE float exp2_fast(float x) {
    const float r = exp2f(x);
    return r < 1.17549435e-38f ? 0.0f : r;  // denormal results are flushed; NaN passes
}

// ---- dependent launches ----
EMU_INLINE void grid_wait() { emu::current->waited = true; }
EMU_INLINE void grid_let_next_start() {}

// ---- conversions ----
EMU_INLINE unsigned emu_halves(uint16_t lo, uint16_t hi) { return lo | (unsigned)hi << 16; }
EMU_INLINE unsigned pack_bf16x2(float lo, float hi) { return emu_halves(emu::to_bf16(lo), emu::to_bf16(hi)); }
EMU_INLINE unsigned pack_f16x2(float lo, float hi) { return emu_halves(emu::to_f16(lo), emu::to_f16(hi)); }
EMU_INLINE unsigned short pack_e4m3x2(float lo, float hi) { return (unsigned short)(emu::to_e4m3(lo) | emu::to_e4m3(hi) << 8); }
EMU_INLINE unsigned short pack_e5m2x2(float lo, float hi) { return (unsigned short)(emu::to_e5m2(lo) | emu::to_e5m2(hi) << 8); }
EMU_INLINE void f16x2_to_f32(unsigned v, float (&f)[2]) {
    f[0] = emu::from_f16((uint16_t)v);
    f[1] = emu::from_f16((uint16_t)(v >> 16));
}
EMU_INLINE void e4m3x4_to_f32(unsigned v, float (&f)[4]) {
    for (int i = 0; i < 4; i++) {
        f[i] = emu::E4M3_VALUES[v >> (8 * i) & 0xff];
    }
}
EMU_INLINE void e5m2x4_to_f32(unsigned v, float (&f)[4]) {
    for (int i = 0; i < 4; i++) {
        f[i] = emu::E5M2_VALUES[v >> (8 * i) & 0xff];
    }
}
EMU_INLINE void e4m3x4_to_f16x4(unsigned v, unsigned (&h)[2]) {
    float f[4];
    e4m3x4_to_f32(v, f);
    h[0] = pack_f16x2(f[0], f[1]);
    h[1] = pack_f16x2(f[2], f[3]);
}
// Products of BF16 are exact in double, and so is nearly every sum; what is not, to_bf16 rounds only once.
EMU_INLINE unsigned fma_bf16x2(unsigned a, unsigned b, unsigned c) {
    const auto part = [](unsigned v, int i) { return (double)emu::from_bf16((uint16_t)(v >> (16 * i))); };
    return emu_halves(emu::to_bf16(part(a, 0) * part(b, 0) + part(c, 0)), emu::to_bf16(part(a, 1) * part(b, 1) + part(c, 1)));
}
EMU_INLINE unsigned sub_bf16x2(unsigned a, unsigned b) {
    const auto part = [](unsigned v, int i) { return (double)emu::from_bf16((uint16_t)(v >> (16 * i))); };
    return emu_halves(emu::to_bf16(part(a, 0) - part(b, 0)), emu::to_bf16(part(a, 1) - part(b, 1)));
}
EMU_INLINE int dp4a(int a, int b, int c) { return __dp4a(a, b, c); }

// ---- matrix fragments ----
template <class Sum>
EMU_INLINE void emu_mma(const emu::Collective& what, Sum (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], emu::Site site) {
    static_assert(sizeof(Sum) == 4);
    emu::MmaOperand operand;
    std::memcpy(operand.a, a, sizeof operand.a);
    std::memcpy(operand.b, b, sizeof operand.b);
    std::memcpy(operand.c, d, sizeof operand.c);
    emu::meet(what, ~0u, &operand, sizeof operand, d, sizeof d, site);
}
EMU_INLINE void mma_bf16_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMU_SITE) {
    emu_mma(emu::MMA_BF16, d, a, b, site);
}
EMU_INLINE void mma_f16_16816(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMU_SITE) {
    emu_mma(emu::MMA_F16, d, a, b, site);
}
EMU_INLINE void mma_e4m3_16832(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMU_SITE) {
    emu_mma(emu::MMA_E4M3, d, a, b, site);
}
EMU_INLINE void mma_s8_16832(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMU_SITE) {
    emu_mma(emu::MMA_S8, d, a, b, site);
}

template <int N>
EMU_INLINE void emu_ldmatrix(const emu::Collective& what, unsigned (&r)[N], const void* row, emu::Site site) {
    emu::require_shared(row, 16, 16, "ldmatrix", site);
    const emu::MatrixRow operand{row};
    emu::meet(what, ~0u, &operand, sizeof operand, r, sizeof r, site);
}
EMU_INLINE void ldmatrix_x4(unsigned (&r)[4], const void* row, EMU_SITE) {
    emu::note_access(row, 16, false, site);
    emu_ldmatrix(emu::LDMATRIX_X4, r, row, site);
}
EMU_INLINE void ldmatrix_x2(unsigned (&r)[2], const void* row, EMU_SITE) {
    if (emu::current->lane < 16) {
        emu::note_access(row, 16, false, site);
    }
    emu_ldmatrix(emu::LDMATRIX_X2, r, row, site);
}
EMU_INLINE void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, EMU_SITE) {
    emu::note_access(row, 16, false, site);
    emu_ldmatrix(emu::LDMATRIX_X4_TRANS, r, row, site);
}

// ---- memory movement ----
EMU_INLINE uint4 ld_global_nc_v4(const void* p) { return *(const uint4*)p; }

template <unsigned BYTES>
EMU_INLINE void emu_cp_async(void* dst, const void* src, bool pred, emu::Site site) {
    emu::require_shared(dst, BYTES, BYTES, "cp.async", site);
    if ((uintptr_t)src % BYTES != 0) {
        emu::kernel_fault("the source of a cp.async is not aligned to its size", site);
    }
    emu::copy_async(dst, src, BYTES, pred, site);
}
EMU_INLINE void cp_async4(void* dst, const void* src, bool pred, EMU_SITE) { emu_cp_async<4>(dst, src, pred, site); }
EMU_INLINE void cp_async8(void* dst, const void* src, bool pred, EMU_SITE) { emu_cp_async<8>(dst, src, pred, site); }
EMU_INLINE void cp_async16(void* dst, const void* src, bool pred, EMU_SITE) { emu_cp_async<16>(dst, src, pred, site); }
EMU_INLINE void cp_async_commit() { emu::copy_commit(); }
template <int N>
EMU_INLINE void cp_async_wait() {
    static_assert(N >= 0);
    emu::copy_wait(N);
}
