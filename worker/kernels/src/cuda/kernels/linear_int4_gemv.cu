// W4A16 for 1 to 8 rows: every block streams the codes of one strip (32 outputs) once, its eight warps taking turns along k.
//
// The layout (linear_int4.cuh) serves both operands: two neighbouring words of a lane are the A fragment of 16 outputs, so that
// the codes are A here and the one to eight rows of activations the eight columns of B. Sums of activations per group come
// from an A operand of ones.
//
// Bytes in flight. Needed: 15.2 KB per SM (linear.cuh). Loads into registers would not do: the compiler puts the products of
// the first unit before the loads of the last. So a warp has a ring of units in shared memory that it fills with cp.async,
// three units ahead (two with 8 bits): 1.5 KB of codes, as much of activations, and scales. A lane reads what it has asked for
// itself, so that nothing but its own wait is needed. Eight warps have 12 KB of codes in flight, an SM with four blocks
// (59 registers, 48 KB of shared memory each) 48 KB. What a warp computes for a unit (about 50 integer and BF16
// instructions, 6 mma) takes some 90 clocks of a quarter SM, and the 2 KB of four warps arrive in 140 (modelled). 4096 outputs
// are 128 blocks, one per SM: `splits` of 2 or 3 fill the SMs there.
//
// Activations are read from L2 once per strip: 64 bytes a unit and row against 512 of codes. At 8 rows that is as much
// again, within what L2 gives beside the memory (about 5.5 TB/s, modelled); above 4 rows linear_int4_m16 reads them four
// times more seldom.

// Units of the largest group: a warp takes as many in a row, so that groups are not divided between warps.
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

    // A unit in the ring: 16 bytes for each lane of each plane of codes, of scales and minima, of activations.
    static constexpr u32 PIECE = 512;
    static constexpr u32 AFFINE = PLANES * PIECE;
    static constexpr u32 ROWS = AFFINE + PIECE;
    static constexpr u32 STAGE = ROWS + PIECE;
    static constexpr u32 STAGES = PLANES == 1 ? 4 : 3;
    static constexpr u32 SHARED = LINEAR_WARPS * STAGES * STAGE;
    static_assert(SHARED <= 48 * 1024 && SHARED >= LINEAR_SHARED(1) * sizeof(float), "static, and the warps' sums fit");

    __device__ __forceinline__ void run(
        const LinearOut& to, const u16* x, const u8* codes, const u8* affine, const float* row_scales, u32 k, u32 size) {
        __shared__ __align__(16) u8 shared[SHARED];
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, strip = blockIdx.x, warp = threadIdx.x / 32;
        const u32 units = k / 32, chunks = (units + GEMV_UNITS - 1) / GEMV_UNITS;
        const u32 shift = size == 32 ? 0 : size == 64 ? 1 : 2, mask = (1u << shift) - 1;
        const u8* strip_codes = codes + (u64)strip * units * (INT4_UNIT_BYTES * PLANES) + lane * 16;
        const u8* strip_affine = affine + (u64)strip * (units >> shift) * INT4_AFFINE_BYTES + g * 16;
        const u16* row = x + (u64)(g < to.m ? g : 0) * k + t * 8;
        u8* ring = shared + warp * STAGES * STAGE + lane * 16;
        // This warp's units are those of every eighth chunk of the block's.
        const u32 first = to.begin(chunks) + warp, end = to.end(chunks);
        const u32 count = first < end ? (end - first + LINEAR_WARPS - 1) / LINEAR_WARPS * GEMV_UNITS : 0;
        auto start = [&](u32 i) {
            if (i < count) {
                const u32 at = (first + i / GEMV_UNITS * LINEAR_WARPS) * GEMV_UNITS + i % GEMV_UNITS;
                // The last chunk may have fewer units: zeros stand for the others, and for rows that x has not.
                const bool exists = at < units;
                const u32 from = exists ? at : 0;
                u8* slot = ring + i % STAGES * STAGE;
#pragma unroll
                for (int p = 0; p < PLANES; p++) {
                    cp_async16(slot + p * PIECE, strip_codes + ((u64)from * PLANES + p) * INT4_UNIT_BYTES, exists);
                }
                const u8* scales = strip_affine + (u64)(from >> shift) * INT4_AFFINE_BYTES;
                cp_async16(slot + AFFINE, scales, exists && (at & mask) == mask);
                cp_async16(slot + ROWS, row + from * 32, exists && g < to.m);
            }
            cp_async_commit();
        };
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++) {
            start(i);
        }
        for (u32 i = 0; i < count; i++) {
            cp_async_wait<STAGES - 2>();
            // The stage that is filled next held the unit before, which this lane has in registers.
            start(i + STAGES - 1);
            const u8* slot = ring + i % STAGES * STAGE;
            uint4 planes[PLANES];
#pragma unroll
            for (int p = 0; p < PLANES; p++) {
                planes[p] = *reinterpret_cast<const uint4*>(slot + p * PIECE);
            }
            unit(planes, *reinterpret_cast<const uint4*>(slot + ROWS));
            if ((i & mask) == mask) {
                apply(*reinterpret_cast<const uint4*>(slot + AFFINE));
            }
        }
        const float sums[2][1][4] = {{{total[0][0], total[0][1], total[0][2], total[0][3]}},
                                     {{total[1][0], total[1][1], total[1][2], total[1][3]}}};
        // The warps' sums meet where the rings were.
        __syncthreads();
        linear_add_warps<float, 1>(
            reinterpret_cast<float*>(shared), sums, [&](u32 of_row, u32 output, float sum) {
                const u32 column = strip * INT4_STRIP + output;
                to.store(of_row, column, sum * row_scales[column]);
            });
    }
};

// x [m, k] BF16, m at most 8. Grid: x = n / 32, y = splits of k.
extern "C" __global__ void __launch_bounds__(256) linear_int4_m8(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    grid_start();
    Int4Gemv<1> gemv = {};
    gemv.run(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, codes, affine, row_scales, k, group);
}

extern "C" __global__ void __launch_bounds__(256) linear_int8g_m8(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    grid_start();
    Int4Gemv<2> gemv = {};
    gemv.run(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, codes, affine, row_scales, k, group);
}
