// W4A16 for 1 to 64 rows a block: BF16 activations with 4-bit (or 8-bit) group-wise codes, unpacked in registers, BF16 mma.
//
// Activations are the A operand (rows of 16), codes the B operand; the scheme of a step of 128 inputs:
//
//   global --cp.async--> stage: x [rows][128] BF16 | codes 4 strips x 4 units | affine 4 strips x groups
//   stage --16-byte loads--> registers; a warp has one strip (32 outputs) and 16 or 32 rows
//
// Bytes in flight. Needed: 15.2 KB per SM (linear.cuh). Three of four stages are in flight: 24 KB of codes and 6 KB of scales
// and minima of a block. One block per SM suffices, two and more are there while rows are few:
//
//   rows  threads  shared memory  registers  blocks per SM
//    16     128        56 KB          95           4
//    32     128        72 KB         128           3
//    64     256       104 KB         128           2
//
// With 8-bit codes a stage has 8 KB more. `splits` parts of k fill the 132 SMs where n / 128 alone does not: 4096 outputs
// are 32 blocks, so 4 splits.
//
// Products: 64 rows take 4 x 4 x 2 mma per unit and strip, and 4 x 2 for the sums of activations. mma.sync reaches about 60 %
// of the 2,048 BF16 multiply-adds that an SM does in a clock, and 30 codes arrive in one, so that the weight's bytes decide
// up to some 32 rows and the products above (modelled). From a few hundred rows on one unpacking to BF16 and cuBLASLt win.
//
// Shared memory: rows of x have 256 bytes; the 16-byte pieces of odd rows are exchanged four by four, so that the eight
// lanes of a quarter warp (two rows, four pieces each) meet all 32 banks once.

#define INT4_STEP_UNITS 4
#define INT4_STEP (32 * INT4_STEP_UNITS)
#define INT4_STAGES 4
#define INT4_X_PITCH (2 * INT4_STEP)
// Outputs of a block: one strip for each of four warps.
#define INT4_STRIPS 4
// A stage has room for the groups of 32, of which a step has the most.
#define INT4_STAGE_AFFINE (INT4_STRIPS * INT4_STEP_UNITS * INT4_AFFINE_BYTES)

// Place of the 16 bytes `piece` (8 inputs) of a row of x in its stage.
DEV u32 int4_x_at(u32 row, u32 piece) {
    return row * INT4_X_PITCH + (piece ^ ((row & 1) << 2)) * 16;
}

// The operands of a product, in global memory.
struct Int4Weight {
    const u8* codes;
    const u8* affine;
    const float* row_scales;  // [n padded to 32]
    u32 strips;
    u32 units;         // k / 32
    u32 group_units;   // units of a group: 1, 2 or 4
    u32 group_shift;   // its logarithm
};
DEV Int4Weight int4_weight(const u8* codes, const u8* affine, const float* row_scales, u32 n, u32 k, u32 group) {
    const u32 shift = group == 32 ? 0 : group == 64 ? 1 : 2;
    return Int4Weight{codes, affine, row_scales, (n + INT4_STRIP - 1) / INT4_STRIP, k / 32, 1u << shift, shift};
}

// MT: row tiles of a warp. WM: warps along the rows. PLANES: 4 or 8 bits.
template <int MT, int WM, int PLANES>
struct Int4Gemm {
    static constexpr u32 ROWS = 16 * MT * WM;
    static constexpr u32 THREADS = 128 * WM;
    static constexpr u32 X_BYTES = ROWS * INT4_X_PITCH;
    static constexpr u32 STRIP_BYTES = INT4_STEP_UNITS * INT4_UNIT_BYTES * PLANES;
    static constexpr u32 STAGE = X_BYTES + INT4_STRIPS * STRIP_BYTES + INT4_STAGE_AFFINE;

    // What a warp adds up: sums of the whole part of k, of the current group, and of the group's activations (in c[0] and
    // c[1] those of row g, in c[2] and c[3] of row g + 8).
    float total[MT][4][4];
    float group[MT][4][4];
    float x_sums[MT][4];

    // Starts copying step `step` into a stage. What lies outside of x or the weight becomes zero.
    static __device__ __forceinline__ void fetch(
        u8* stage, const u16* x, const Int4Weight& w, u32 m, u32 first_row, u32 first_strip, u32 step) {
        const u32 k = w.units * 32;
#pragma unroll
        for (u32 i = 0; i < X_BYTES / 16 / THREADS; i++) {
            const u32 at = threadIdx.x + i * THREADS, row = at / 16, piece = at % 16;
            const u32 from_row = first_row + row, from_k = step * INT4_STEP + piece * 8;
            const bool exists = from_row < m && from_k < k;
            cp_async16(stage + int4_x_at(row, piece), exists ? x + (u64)from_row * k + from_k : x, exists);
        }
        u8* codes = stage + X_BYTES;
#pragma unroll
        for (u32 i = 0; i < INT4_STRIPS * STRIP_BYTES / 16 / THREADS; i++) {
            const u32 at = (threadIdx.x + i * THREADS) * 16, strip = at / STRIP_BYTES, in_strip = at % STRIP_BYTES;
            const u32 unit = step * INT4_STEP_UNITS + in_strip / (INT4_UNIT_BYTES * PLANES);
            const bool exists = first_strip + strip < w.strips && unit < w.units;
            const u64 from = ((u64)(first_strip + strip) * w.units + step * INT4_STEP_UNITS) * (INT4_UNIT_BYTES * PLANES);
            cp_async16(codes + at, exists ? w.codes + from + in_strip : w.codes, exists);
        }
        u8* affine = codes + INT4_STRIPS * STRIP_BYTES;
        const u32 groups = w.units >> w.group_shift, per_step = INT4_STEP_UNITS >> w.group_shift;
        if (threadIdx.x < INT4_STAGE_AFFINE / 16) {
            const u32 strip = threadIdx.x / 32, slot = threadIdx.x / 8 % 4, piece = threadIdx.x % 8;
            const u32 group = step * per_step + slot;
            const bool exists = first_strip + strip < w.strips && slot < per_step && group < groups;
            const u64 from = ((u64)(first_strip + strip) * groups + group) * INT4_AFFINE_BYTES + piece * 16;
            cp_async16(affine + threadIdx.x * 16, exists ? w.affine + from : w.affine, exists);
        }
    }

    // A group is complete: total += scale * group + min * sum of its activations.
    __device__ __forceinline__ void apply(const u8* affine) {
        const u32 t = threadIdx.x % 4;
        // This lane's columns of D are the outputs 2 t and 2 t + 1 of each tile of eight.
        const Int4Affine even = int4_affine(*reinterpret_cast<const uint4*>(affine + (2 * t) * 16));
        const Int4Affine odd = int4_affine(*reinterpret_cast<const uint4*>(affine + (2 * t + 1) * 16));
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const Int4Affine& a = i % 2 == 0 ? even : odd;
                    total[mt][j][i] += a.scale[j] * group[mt][j][i] + a.min[j] * x_sums[mt][i];
                    group[mt][j][i] = 0.0f;
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x_sums[mt][i] = 0.0f;
            }
        }
    }

    // The products of one stage.
    __device__ __forceinline__ void compute(const u8* stage, const Int4Weight& w) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
        const u32 strip = threadIdx.x / 32 % 4, first = threadIdx.x / 128 * 16 * MT;
        const u8* codes = stage + X_BYTES + strip * STRIP_BYTES;
        const u8* affine = stage + X_BYTES + INT4_STRIPS * STRIP_BYTES + strip * INT4_STEP_UNITS * INT4_AFFINE_BYTES;
        const u32 ones[2] = {INT4_ONES, INT4_ONES};
#pragma unroll
        for (int unit = 0; unit < INT4_STEP_UNITS; unit++) {
            u32 a[MT][2][4];
#pragma unroll
            for (int mt = 0; mt < MT; mt++) {
                const u32 row = first + mt * 16 + g;
                const uint4 low = *reinterpret_cast<const uint4*>(stage + int4_x_at(row, unit * 4 + t));
                const uint4 high = *reinterpret_cast<const uint4*>(stage + int4_x_at(row + 8, unit * 4 + t));
                a[mt][0][0] = low.x, a[mt][0][1] = high.x, a[mt][0][2] = low.y, a[mt][0][3] = high.y;
                a[mt][1][0] = low.z, a[mt][1][1] = high.z, a[mt][1][2] = low.w, a[mt][1][3] = high.w;
                mma_bf16_16816(x_sums[mt], a[mt][0], ones);
                mma_bf16_16816(x_sums[mt], a[mt][1], ones);
            }
            uint4 planes[PLANES];
#pragma unroll
            for (int p = 0; p < PLANES; p++) {
                const u8* at = codes + (unit * PLANES + p) * INT4_UNIT_BYTES + lane * 16;
                planes[p] = *reinterpret_cast<const uint4*>(at);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 words[PLANES], pairs[4];
#pragma unroll
                for (int p = 0; p < PLANES; p++) {
                    words[p] = int4_word(planes[p], j);
                }
                int4_unpack<PLANES>(words, pairs);
                const u32 b0[2] = {pairs[0], pairs[1]}, b1[2] = {pairs[2], pairs[3]};
#pragma unroll
                for (int mt = 0; mt < MT; mt++) {
                    mma_bf16_16816(group[mt][j], a[mt][0], b0);
                    mma_bf16_16816(group[mt][j], a[mt][1], b1);
                }
            }
            if (((unit + 1) & (w.group_units - 1)) == 0) {
                apply(affine + (unit >> w.group_shift) * INT4_AFFINE_BYTES);
            }
        }
    }

    __device__ __forceinline__ void run(u8* smem, const LinearOut& to, const u16* x, const Int4Weight& w) {
        const u32 first_row = blockIdx.y * ROWS, first_strip = blockIdx.x * INT4_STRIPS;
        const u32 steps = (w.units + INT4_STEP_UNITS - 1) / INT4_STEP_UNITS;
        const u32 begin = to.begin(steps), end = to.end(steps);
        // Groups of commits are counted, so an empty one stands for a step that does not exist.
        auto start = [&](u32 step) {
            if (step < end) {
                fetch(smem + step % INT4_STAGES * STAGE, x, w, to.m, first_row, first_strip, step);
            }
            cp_async_commit();
        };
#pragma unroll
        for (u32 i = 0; i < INT4_STAGES - 1; i++) {
            start(begin + i);
        }
        for (u32 step = begin; step < end; step++) {
            cp_async_wait<INT4_STAGES - 2>();
            // The step's bytes of all threads are there, and all warps are done with the stage that is filled next.
            __syncthreads();
            start(step + INT4_STAGES - 1);
            compute(smem + step % INT4_STAGES * STAGE, w);
        }
        const u32 lane = threadIdx.x % 32;
        const u32 strip = first_strip + threadIdx.x / 32 % 4, warp_row = first_row + threadIdx.x / 128 * 16 * MT;
        if (strip >= w.strips) {
            return;
        }
#pragma unroll
        for (int mt = 0; mt < MT; mt++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 row = warp_row + mt * 16 + lane / 4 + (i >= 2 ? 8 : 0);
                    const u32 output = strip * INT4_STRIP + j * 8 + lane % 4 * 2 + i % 2;
                    to.store(row, output, total[mt][j][i] * w.row_scales[output]);
                }
            }
        }
    }
};

// Every entry: x [m, k] BF16, grid: x = n / 128, y = m / rows, z = splits of k; k is a multiple of `group`.
extern "C" __global__ void __launch_bounds__(128) linear_int4_m16(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    grid_start();
    DYN_SMEM(smem);
    Int4Gemm<1, 1, 1> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x,
             int4_weight(codes, affine, row_scales, n, k, group));
}

extern "C" __global__ void __launch_bounds__(128) linear_int4_m32(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    grid_start();
    DYN_SMEM(smem);
    Int4Gemm<2, 1, 1> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x,
             int4_weight(codes, affine, row_scales, n, k, group));
}

extern "C" __global__ void __launch_bounds__(256) linear_int4_m64(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    grid_start();
    DYN_SMEM(smem);
    Int4Gemm<2, 2, 1> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x,
             int4_weight(codes, affine, row_scales, n, k, group));
}

extern "C" __global__ void __launch_bounds__(128) linear_int8g_m16(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    grid_start();
    DYN_SMEM(smem);
    Int4Gemm<1, 1, 2> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x,
             int4_weight(codes, affine, row_scales, n, k, group));
}

extern "C" __global__ void __launch_bounds__(256) linear_int8g_m64(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    grid_start();
    DYN_SMEM(smem);
    Int4Gemm<2, 2, 2> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x,
             int4_weight(codes, affine, row_scales, n, k, group));
}
