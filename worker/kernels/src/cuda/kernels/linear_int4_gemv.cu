// W4A16 for 1 to 16 rows: every block streams the codes of one strip (32 outputs) or two once, its eight warps taking turns
// along k.
//
// The layout (linear_int4.cuh) serves both operands: two neighbouring words of a lane are the A fragment of 16 outputs, so that
// the codes are A here and eight rows of activations the eight columns of B. Sums of activations per group come from an A
// operand of ones.
//
// Bytes in flight. Needed: 15.2 KB per SM (linear.cuh). Loads into registers would not do: the compiler puts the products of
// the first unit before the loads of the last. So a warp has a ring of units in shared memory that it fills with cp.async,
// three units ahead (two with 8 bits): codes, activations, and scales. A lane reads what it has asked for itself, so that
// nothing but its own wait is needed, and no barrier of a block holds its warps together.
//
//             rows  strips  registers  shared memory  blocks per SM  codes in flight per SM
//   int4_m8     8      1        64          48 KB           4                48 KB
//   int8g_m8    8      1        64          48 KB           4                64 KB
//   int4_m16   16      2       122          96 KB           2                48 KB
//   int8g_m16  16      2       127          96 KB           2                64 KB
//
// What a warp computes for a unit of 16 rows takes some 110 clocks of a quarter SM to issue (10 mma, 44 instructions to
// unpack), and the 2 KB of four units, one for each quarter, arrive in 150 (modelled). Measured on an H100 80GB HBM3 with one
// row: int8g_m8 reaches 94 % of the memory's time for 128,256 outputs.
//
// Activations are read from L2 once per block: 64 bytes a unit and row against 512 of codes of a strip. At 8 rows that is as
// much again, within what L2 gives beside the memory (about 5.5 TB/s, modelled). With 16 rows and one strip it would be twice
// as much; with two strips, which also share the sums of activations, it is as much again.
//
// Places in the ring and pointers move unit by unit, and the loop over a group's units is not unrolled: the compiler would
// move the wait for the next unit before the products of this one.

// Units of the largest group: a warp takes as many in a row, so that groups are not divided between warps.
#define GEMV_UNITS 4

// PLANES: 4 or 8 bits. TILES: eights of rows. STRIPS: strips of a warp, and so of a block.
template <int PLANES, int TILES, int STRIPS>
struct Int4Gemv {
    float total[STRIPS][2][TILES][4];  // outputs (16 of a half), rows of x
    float group[STRIPS][2][TILES][4];
    float x_sums[TILES][4];  // in c[0] that of row 2 t, in c[1] of row 2 t + 1, and again

    // A strip's group is complete; lane (g, t) has in `affine` the scales and minima of outputs g + 8 j.
    __device__ __forceinline__ void apply(int s, uint4 affine) {
        const Int4Affine a = int4_affine(affine);
#pragma unroll
        for (int half = 0; half < 2; half++) {
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int j = 2 * half + i / 2;
                    const float sum = a.scale[j] * group[s][half][tile][i] + total[s][half][tile][i];
                    total[s][half][tile][i] = a.min[j] * x_sums[tile][i] + sum;
                    group[s][half][tile][i] = 0.0f;
                }
            }
        }
    }

    // Sums of a unit's activations.
    __device__ __forceinline__ void add_rows(const uint4 (&x)[TILES]) {
        const u32 ones[4] = {INT4_ONES, INT4_ONES, INT4_ONES, INT4_ONES};
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const u32 b0[2] = {x[tile].x, x[tile].y};
            mma_bf16_16816(x_sums[tile], ones, b0);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const u32 b1[2] = {x[tile].z, x[tile].w};
            mma_bf16_16816(x_sums[tile], ones, b1);
        }
    }

    // The products of a unit of a strip.
    __device__ __forceinline__ void unit(int s, const uint4 (&planes)[PLANES], const uint4 (&x)[TILES]) {
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
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const u32 b0[2] = {x[tile].x, x[tile].y};
                mma_bf16_16816(group[s][half][tile], a0, b0);
            }
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const u32 b1[2] = {x[tile].z, x[tile].w};
                mma_bf16_16816(group[s][half][tile], a1, b1);
            }
        }
    }

    // A unit in the ring: 16 bytes for each lane of each plane of codes of each strip, of its scales and minima, of each tile
    // of activations.
    static constexpr u32 PIECE = 512;
    static constexpr u32 AFFINE = STRIPS * PLANES * PIECE;
    static constexpr u32 ROWS = AFFINE + STRIPS * PIECE;
    static constexpr u32 STAGE = ROWS + TILES * PIECE;
    static constexpr u32 STAGES = PLANES == 1 ? 4 : 3;
    static constexpr u32 SHARED = LINEAR_WARPS * STAGES * STAGE;
    static_assert(SHARED >= STRIPS * LINEAR_SHARED(TILES) * sizeof(float), "the warps' sums fit");
    static constexpr u32 UNIT_BYTES = PLANES * INT4_UNIT_BYTES;

    __device__ __forceinline__ void run(
        u8* shared, const LinearOut& to, u32 first_row, const u16* x, const u8* codes, const u8* affine,
        const float* row_scales, u32 k, u32 size) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
        const u32 units = k / 32, chunks = (units + GEMV_UNITS - 1) / GEMV_UNITS;
        const u32 strip = blockIdx.x * STRIPS, strips = (to.n + INT4_STRIP - 1) / INT4_STRIP;
        const u32 shift = size == 32 ? 0 : size == 64 ? 1 : 2, mask = (1u << shift) - 1;
        // This warp's units are those of every eighth chunk of the block's.
        const u32 first = to.begin(chunks) + warp, end = to.end(chunks);
        const u32 count = first < end ? (end - first + LINEAR_WARPS - 1) / LINEAR_WARPS * GEMV_UNITS : 0;
        // The unit that is copied next, and what this lane copies of it: of the first strip and tile, and how far the next are.
        struct Place {
            u32 next, left, filled;
            const u8* codes;
            const u16* row;
        };
        const u64 strip_unit = (u64)strip * units;
        const u8* affine_of = affine + (strip_unit >> shift) * INT4_AFFINE_BYTES + g * 16;
        const u32 codes_pitch = units * UNIT_BYTES, affine_pitch = (units >> shift) * INT4_AFFINE_BYTES;
        Place place = {first * GEMV_UNITS, count, 0, codes + (strip_unit + first * GEMV_UNITS) * UNIT_BYTES + lane * 16,
                       x + (u64)(first_row + g) * k + first * GEMV_UNITS * 32 + t * 8};
        u8* const ring = shared + warp * STAGES * STAGE + lane * 16;
        u32 now = 0;
        // The last chunk may have fewer units: zeros stand for the others, for rows that x has not, and for a strip that the
        // weight has not; nothing is read there.
        auto copy = [&](Place& at, bool weight, bool rows) {
            if (at.left == 0) {
                return;
            }
            const bool exists = at.next < units;
            u8* slot = ring + at.filled;
            if (weight) {
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
#pragma unroll
                    for (int p = 0; p < PLANES; p++) {
                        cp_async16(slot + (s * PLANES + p) * PIECE, at.codes + s * codes_pitch + p * INT4_UNIT_BYTES,
                                   exists && strip + s < strips);
                    }
                }
                // Scales and minima are wanted behind a group's last unit.
                if ((at.next & mask) == mask) {
                    const u8* scales = affine_of + (at.next >> shift) * INT4_AFFINE_BYTES;
#pragma unroll
                    for (int s = 0; s < STRIPS; s++) {
                        cp_async16(slot + AFFINE + s * PIECE, scales + s * affine_pitch, exists && strip + s < strips);
                    }
                }
            }
            if (rows) {
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    cp_async16(slot + ROWS + tile * PIECE, at.row + tile * 8 * k, exists && first_row + tile * 8 + g < to.m);
                }
            }
            at.left--;
            const u32 further = at.left % GEMV_UNITS == 0 ? (LINEAR_WARPS - 1) * GEMV_UNITS + 1 : 1;
            at.next += further;
            at.codes += further * UNIT_BYTES;
            at.row += further * 32;
            at.filled = at.filled == (STAGES - 1) * STAGE ? 0 : at.filled + STAGE;
        };
        // The weight's first units are on their way before the kernel ahead, which makes x, is waited for. Groups of commits are
        // counted, so an empty one stands for a unit that does not exist.
        Place ahead = place;
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++) {
            copy(ahead, true, false);
        }
        grid_wait();
#pragma unroll
        for (u32 i = 0; i < STAGES - 1; i++) {
            copy(place, false, true);
            cp_async_commit();
        }
        // Groups lie whole in chunks. The stage of a group's last unit has its scales and minima.
        const u8* last = ring;
        for (u32 i = 0; i < count;) {
#pragma unroll 1
            do {
                cp_async_wait<STAGES - 2>();
                // The stage that is filled next held the unit before, which this lane has in registers.
                copy(place, true, true);
                cp_async_commit();
                const u8* slot = ring + now;
                uint4 planes[STRIPS][PLANES], activations[TILES];
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    activations[tile] = *reinterpret_cast<const uint4*>(slot + ROWS + tile * PIECE);
                }
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
#pragma unroll
                    for (int p = 0; p < PLANES; p++) {
                        planes[s][p] = *reinterpret_cast<const uint4*>(slot + (s * PLANES + p) * PIECE);
                    }
                }
                add_rows(activations);
#pragma unroll
                for (int s = 0; s < STRIPS; s++) {
                    unit(s, planes[s], activations);
                }
                i++;
                last = slot;
                now = now == (STAGES - 1) * STAGE ? 0 : now + STAGE;
            } while ((i & mask) != 0);
#pragma unroll
            for (int s = 0; s < STRIPS; s++) {
                apply(s, *reinterpret_cast<const uint4*>(last + AFFINE + s * PIECE));
            }
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    x_sums[tile][j] = 0.0f;
                }
            }
        }
        // The warps' sums meet where the rings were.
        __syncthreads();
#pragma unroll
        for (int s = 0; s < STRIPS; s++) {
            linear_add_warps<float, TILES>(
                reinterpret_cast<float*>(shared) + s * LINEAR_SHARED(TILES), total[s],
                [&](u32 of_row, u32 output, float sum) {
                    const u32 column = (strip + s) * INT4_STRIP + output;
                    if (column < to.n) {
                        to.store(first_row + of_row, column, sum * row_scales[column]);
                    }
                });
        }
    }
};

// x [m, k] BF16, m at most 8. Grid: x = n / 32, y = splits of k.
extern "C" __global__ void __launch_bounds__(256, 4) linear_int4_m8(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    __shared__ __align__(16) u8 shared[Int4Gemv<1, 1, 1>::SHARED];
    Int4Gemv<1, 1, 1> gemv = {};
    gemv.run(shared, LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, 0, x, codes, affine, row_scales, k, group);
}

extern "C" __global__ void __launch_bounds__(256, 4) linear_int8g_m8(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    __shared__ __align__(16) u8 shared[Int4Gemv<2, 1, 1>::SHARED];
    Int4Gemv<2, 1, 1> gemv = {};
    gemv.run(shared, LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, 0, x, codes, affine, row_scales, k, group);
}

// x [m, k] BF16. Grid: x = n / 64, y = m / 16, z = splits of k.
extern "C" __global__ void __launch_bounds__(256, 2) linear_int4_m16(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    DYN_SMEM(shared);
    Int4Gemv<1, 2, 2> gemv = {};
    gemv.run(shared, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, blockIdx.y * 16, x, codes, affine,
             row_scales, k, group);
}

extern "C" __global__ void __launch_bounds__(256, 2) linear_int8g_m16(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    DYN_SMEM(shared);
    Int4Gemv<2, 2, 2> gemv = {};
    gemv.run(shared, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, blockIdx.y * 16, x, codes, affine,
             row_scales, k, group);
}
