// W4A16 for 1 to 8 rows: every block streams the codes of one strip (32 outputs) once, its eight warps taking turns along k.
//
// The layout (linear_int4.cuh) serves both operands: two neighbouring words of a lane are the A fragment of 16 outputs, so that
// the codes are A here and the one to eight rows of activations the eight columns of B. Sums of activations per group come
// from an A operand of ones.
//
// Bytes in flight: a warp asks for a chunk of 4 units, 2 KB of codes with 128 to 512 bytes of scales and minima, before it
// waits; 8 warps 16 KB, and three blocks per SM (80 registers, 9 KB of shared memory) 48 KB, three times the 15.2 KB
// that 3.35 TB/s x 600 ns want of an SM. What a warp computes meanwhile (about 180 integer and BF16 instructions and 24 mma
// a chunk) takes some 330 clocks of a quarter SM, and the 8 KB of four warps arrive in 550 (modelled). 4096 outputs are 128
// blocks, one per SM with 16 KB, barely enough: `splits` of 2 or 3 fill the SMs there.
//
// Activations are read from L2 once per strip: 64 bytes a unit and row against 512 of codes. At 8 rows that is as much
// again, within what L2 gives beside the memory (about 5.5 TB/s, modelled); above 4 rows linear_int4_m16 reads them four
// times more seldom.

// Units that a warp takes at once: the largest group.
#define GEMV_UNITS 4

template <int PLANES>
struct Int4Gemv {
    float total[2][4];  // outputs (16 of a half), rows of x
    float group[2][4];
    float x_sums[4];  // in c[0] that of row 2 t, in c[1] of row 2 t + 1, and again

    // lane (g, t) has in `affine` the scales and minima of outputs g + 8 j.
    __device__ __forceinline__ void apply(uint4 affine) {
        const Int4Affine a = int4_affine(affine);
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int j = 2 * half + i / 2;
                total[half][i] += a.scale[j] * group[half][i] + a.min[j] * x_sums[i];
                group[half][i] = 0.0f;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x_sums[i] = 0.0f;
        }
    }

    __device__ __forceinline__ void unit(const uint4 (&planes)[PLANES], uint4 x) {
        const u32 ones[4] = {INT4_ONES, INT4_ONES, INT4_ONES, INT4_ONES};
        const u32 b0[2] = {x.x, x.y}, b1[2] = {x.z, x.w};
        mma_bf16_16816(x_sums, ones, b0);
        mma_bf16_16816(x_sums, ones, b1);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            u32 words[PLANES], low[4], high[4];
#pragma unroll
            for (int p = 0; p < PLANES; p++) {
                words[p] = int4_word(planes[p], 2 * half);
            }
            int4_unpack<PLANES>(words, low);
#pragma unroll
            for (int p = 0; p < PLANES; p++) {
                words[p] = int4_word(planes[p], 2 * half + 1);
            }
            int4_unpack<PLANES>(words, high);
            const u32 a0[4] = {low[0], high[0], low[1], high[1]}, a1[4] = {low[2], high[2], low[3], high[3]};
            mma_bf16_16816(group[half], a0, b0);
            mma_bf16_16816(group[half], a1, b1);
        }
    }

    __device__ __forceinline__ void run(
        const LinearOut& to, const u16* x, const u8* codes, const u8* affine, const float* row_scales, u32 k, u32 size) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, strip = blockIdx.x;
        const u32 units = k / 32, chunks = (units + GEMV_UNITS - 1) / GEMV_UNITS;
        const u32 shift = size == 32 ? 0 : size == 64 ? 1 : 2, mask = (1u << shift) - 1;
        const u8* strip_codes = codes + (u64)strip * units * (INT4_UNIT_BYTES * PLANES) + lane * 16;
        const u8* strip_affine = affine + (u64)strip * (units >> shift) * INT4_AFFINE_BYTES + g * 16;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        for (u32 chunk = to.begin(chunks) + threadIdx.x / 32; chunk < to.end(chunks); chunk += LINEAR_WARPS) {
            // All of the chunk's loads first: they are in flight together.
            uint4 planes[GEMV_UNITS][PLANES], scales[GEMV_UNITS], rows[GEMV_UNITS];
#pragma unroll
            for (int u = 0; u < GEMV_UNITS; u++) {
                const u32 at = chunk * GEMV_UNITS + u;
                const bool exists = at < units;
#pragma unroll
                for (int p = 0; p < PLANES; p++) {
                    const u64 from = ((u64)at * PLANES + p) * INT4_UNIT_BYTES;
                    planes[u][p] = exists ? ld_global_nc_v4(strip_codes + from) : zero;
                }
                const bool last = exists && (u & mask) == mask;
                scales[u] = last ? ld_global_nc_v4(strip_affine + (u64)(at >> shift) * INT4_AFFINE_BYTES) : zero;
                const u16* from = x + (u64)g * k + at * 32 + t * 8;
                rows[u] = exists && g < to.m ? *reinterpret_cast<const uint4*>(from) : zero;
            }
#pragma unroll
            for (int u = 0; u < GEMV_UNITS; u++) {
                unit(planes[u], rows[u]);
                if ((u & mask) == mask) {
                    apply(scales[u]);
                }
            }
        }
        const float sums[2][1][4] = {{{total[0][0], total[0][1], total[0][2], total[0][3]}},
                                     {{total[1][0], total[1][1], total[1][2], total[1][3]}}};
        linear_add_warps<float, 1>(sums, [&](u32 row, u32 output, float sum) {
            const u32 column = strip * INT4_STRIP + output;
            to.store(row, column, sum * row_scales[column]);
        });
    }
};

// x [m, k] BF16, m at most 8. Grid: x = n / 32, y = splits of k.
extern "C" __global__ void __launch_bounds__(256) linear_int4_m8(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    Int4Gemv<1> gemv = {};
    gemv.run(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, codes, affine, row_scales, k, group);
}

extern "C" __global__ void __launch_bounds__(256) linear_int8g_m8(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    Int4Gemv<2> gemv = {};
    gemv.run(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, codes, affine, row_scales, k, group);
}
