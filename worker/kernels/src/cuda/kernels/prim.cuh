// Device primitives: the one file with inline PTX.
//
// Every kernel source is concatenated behind this file and compiled as one translation unit, without headers. Where
// CUDA_EMU is defined (kernels executed on the host by tests) a header that came before supplies the same names with
// the same contracts, and the first part of this file is left out.
//
// "Lane" is the thread's number within its warp, 0..31. Functions marked "warp" are warp-collective: all 32 lanes
// must call them together, at the same place. Section numbers are of the PTX ISA 9.0 manual.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEV static __device__ __forceinline__

#ifndef CUDA_EMU

// The block's dynamic shared memory, as bytes.
#define DYN_SMEM(name) extern __shared__ __align__(128) unsigned char name[]

// ---------------------------------------------------------------------------------------------- addresses and bits

// The shared-window address (32 bit) of a generic pointer into shared memory. (cvta, 9.7.9.20)
DEV u32 smem_u32(const void* p) {
    return (u32)__cvta_generic_to_shared(p);
}

// (a & mask) | bits in one instruction. (lop3, 9.7.8.6; 0xEA = (a & b) | c)
DEV u32 and_or(u32 a, u32 mask, u32 bits) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(mask), "r"(bits));
    return r;
}

// 2^x, at most 2 ulp off; denormal results are zero. exp2_fast(-inf) = 0. (ex2.approx.ftz, 9.7.3.21)
DEV float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// ------------------------------------------------------------------------------------------------ dependent launches

// Kernels can be launched to overlap with the one ahead of them in the stream (programmatic dependent launch): blocks may
// start when all blocks of the kernel ahead have let them, or are done. Every thread calls grid_wait before it reads or
// writes what another kernel writes or reads: then the kernel ahead, and with it all before, is done and its memory seen.
// Before that only what no kernel writes may be read: weights. (griddepcontrol, 9.7.13.13)
DEV void grid_wait() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Lets the next kernel's blocks start as soon as all blocks of this one run: they wait for this kernel's end themselves. For
// kernels of few small blocks: behind a wide one the next one's blocks would find places where it leaves some, and not evenly.
DEV void grid_let_next_start() {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ------------------------------------------------------------------------------------------------------ conversions
// All are elementwise, to nearest even, `lo` in the low bits. (cvt, 9.7.9.21)

// Two FP32 as BF16.
DEV u32 pack_bf16x2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

// Two FP32 as FP16; beyond 65504 (after rounding) the result is infinite.
DEV u32 pack_f16x2(float lo, float hi) {
    u32 r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

// Two FP32 as E4M3, saturating at +-448; NaN becomes 0x7f.
DEV u16 pack_e4m3x2(float lo, float hi) {
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}

// Two FP32 as E5M2, saturating at +-57344; NaN becomes 0x7f.
DEV u16 pack_e5m2x2(float lo, float hi) {
    u16 r;
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}

// Two FP16, exactly.
DEV void f16x2_to_f32(u32 v, float (&f)[2]) {
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(f[0]), "=f"(f[1])
        : "r"(v));
}

// Four E4M3 bytes, the lowest first, exactly.
DEV void e4m3x4_to_f32(u32 v, float (&f)[4]) {
    u32 lo, hi;
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b;}"
        : "=r"(lo), "=r"(hi)
        : "r"(v));
    float a[2], b[2];
    f16x2_to_f32(lo, a);
    f16x2_to_f32(hi, b);
    f[0] = a[0], f[1] = a[1], f[2] = b[0], f[3] = b[1];
}

// Four E5M2 bytes, the lowest first, exactly: an E5M2 value is the upper byte of the FP16 of the same value, so bytes
// are moved and no conversion to FP16 is needed. (prmt, 9.7.9.7)
DEV void e5m2x4_to_f32(u32 v, float (&f)[4]) {
    float a[2], b[2];
    f16x2_to_f32(__byte_perm(v, 0, 0x1404), a);
    f16x2_to_f32(__byte_perm(v, 0, 0x3424), b);
    f[0] = a[0], f[1] = a[1], f[2] = b[0], f[3] = b[1];
}

// Four E4M3 bytes as two pairs of FP16, the lowest first, exactly: FP16 holds every E4M3 value, subnormals included.
DEV void e4m3x4_to_f16x4(u32 v, u32 (&h)[2]) {
    asm("{.reg .b16 a, b; mov.b32 {a, b}, %2; cvt.rn.f16x2.e4m3x2 %0, a; cvt.rn.f16x2.e4m3x2 %1, b;}"
        : "=r"(h[0]), "=r"(h[1])
        : "r"(v));
}

// a - b of two pairs of BF16, each rounded to nearest even. (sub.bf16x2, 9.7.4.2)
DEV u32 sub_bf16x2(u32 a, u32 b) {
    u32 r;
    asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// a * b + c of two pairs of BF16, rounded once to nearest even. (fma.bf16x2, 9.7.4.4)
DEV u32 fma_bf16x2(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// ------------------------------------------------------------------------------------------------- integer products

// c + the sum over the four bytes of a * b, bytes and sum signed. (dp4a, 9.7.1.23)
DEV int dp4a(int a, int b, int c) {
    int r;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// ----------------------------------------------------------------------------------------------- matrix fragments
// With g = lane / 4 and t = lane % 4, for all products D[16, 8] += A[16, K] B[K, 8]:
//
//   D (9.7.14.5): d[0] = (g, 2t), d[1] = (g, 2t + 1), d[2] = (g + 8, 2t), d[3] = (g + 8, 2t + 1)   as (row, column)
//
// K = 16, two BF16 or FP16 in a register, the lower index in the low half (m16n8k16, 9.7.14.5.8):
//   A: a[0] = (g, 2t ..), a[1] = (g + 8, 2t ..), a[2] = (g, 2t + 8 ..), a[3] = (g + 8, 2t + 8 ..)  as (row, k)
//   B: b[0] = (2t .., g), b[1] = (2t + 8 .., g)                                                    as (k, column)
//
// K = 32, four bytes in a register, the lowest index in the low byte (m16n8k32, 9.7.14.5.10):
//   A: a[0] = (g, 4t ..), a[1] = (g + 8, 4t ..), a[2] = (g, 4t + 16 ..), a[3] = (g + 8, 4t + 16 ..)
//   B: b[0] = (4t .., g), b[1] = (4t + 16 .., g)

// Warp. BF16 operands, FP32 sums.
DEV void mma_bf16_16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Warp. FP16 operands in the places of BF16 ones, FP32 sums.
DEV void mma_f16_16816(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Warp. E4M3 operands, FP32 sums. On sm_90a this is unpacked to FP16 products: right, but not faster than BF16.
DEV void mma_e4m3_16832(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Warp. Signed 8-bit operands, 32-bit sums that wrap: exact while K * 128 * 128 < 2^31.
DEV void mma_s8_16832(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Warp. Loads 8 x 8 matrices of 16-bit elements from shared memory (ldmatrix, 9.7.14.5.15). Lane l gives the address of
// row l % 8 of matrix l / 8: 16 bytes, 16-byte aligned. Lane l gets in r[i] the elements 2 (l % 4) and 2 (l % 4) + 1 of
// row l / 4 of matrix i: what the fragments above want, both of 16-bit elements and of pairs of bytes.
DEV void ldmatrix_x4(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(row))
                 : "memory");
}

// Warp. As ldmatrix_x4 with two matrices: the addresses of lanes 0..15 count, those of the others must be valid too.
DEV void ldmatrix_x2(u32 (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_u32(row))
                 : "memory");
}

// Warp. As ldmatrix_x4, each matrix transposed: lane l gets in r[i] the elements (2 (l % 4), l / 4) and
// (2 (l % 4) + 1, l / 4) of matrix i as (row, column): the B fragment of a matrix that is stored [k][column].
DEV void ldmatrix_x4_trans(u32 (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_u32(row))
                 : "memory");
}

// ------------------------------------------------------------------------------------------------- memory movement

// 16 bytes of global memory that nothing writes while the kernel runs; p is 16-byte aligned. They take no place in L1:
// for what is read once, as weights are. (ld.global.nc, 9.7.9.9)
DEV uint4 ld_global_nc_v4(const void* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// Asynchronous copies from global (src) to shared memory (dst), both aligned to their size; when !pred zeros are
// written and src is not read (it must still be a valid pointer value). What was copied may be read by this thread
// after cp_async_commit and a cp_async_wait that covers it, by others after a barrier behind that. The 16-byte form
// bypasses L1. (cp.async, 9.7.9.25.3)
DEV void cp_async4(void* dst, const void* src, bool pred) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_u32(dst)), "l"(src), "r"(pred ? 4 : 0)
                 : "memory");
}
DEV void cp_async8(void* dst, const void* src, bool pred) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(smem_u32(dst)), "l"(src), "r"(pred ? 8 : 0)
                 : "memory");
}
DEV void cp_async16(void* dst, const void* src, bool pred) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_u32(dst)), "l"(src), "r"(pred ? 16 : 0)
                 : "memory");
}

// Closes a group of this thread's copies (an empty group is one too).
DEV void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the N newest groups of this thread are unfinished.
template <int N>
DEV void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif  // CUDA_EMU

// -------------------------------------------------------------------------------- the same on a device and emulated

// What a small kernel begins with that reads nothing before the kernel ahead is done.
DEV void grid_start() {
    grid_let_next_start();
    grid_wait();
}

DEV float bf16_to_f32(u16 x) {
    return __uint_as_float((u32)x << 16);
}
// The lower and the upper of two BF16.
DEV float bf16_lo(u32 x) {
    return __uint_as_float(x << 16);
}
DEV float bf16_hi(u32 x) {
    return __uint_as_float(x & 0xffff0000u);
}

// Warp. The sum over the warp, in every lane, always added in the same order.
DEV float warp_sum(float v) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        v += __shfl_xor_sync(0xffffffffu, v, step);
    }
    return v;
}

// Warp. The maximum over the warp, in every lane; a NaN counts only where all are.
DEV float warp_max(float v) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    }
    return v;
}
