// W4A16 for 17 and more rows, 32 or 64 a block: BF16 activations with 4-bit (or 8-bit) group-wise codes, unpacked in
// registers, BF16 mma. Up to 16 rows are linear_int4_gemv.cu's.
//
// A block has 128 outputs, a warp one strip (32) of them and all rows of the block, so that codes are unpacked once. A step
// of 128 inputs:
//
//   global --cp.async--> stage: x [rows][128] BF16 | codes 4 strips x 4 units;  scales and minima 4 strips x groups
//   stage --16-byte loads--> registers: codes once, activations once for each warp
//
// Codes are the A operand (16 outputs), activations the B operand (tiles of 8 rows): a lane's 16 bytes of a row are two B
// fragments as they lie, and the A fragments are made in registers anyway. With activations as A their rows g and g + 8, two
// loads, would have to be interleaved: three moves for each product.
//
// Sums of a group's activations: all four warps want the same ones, so each computes those of a quarter of the rows, by mma
// with ones, and they meet in shared memory. The barrier between them is that of the next step, which is why a step's
// minima are added a step later, and why scales and minima have one stage more than the rest.
//
// Bytes in flight. Needed: 15.2 KB per SM (linear.cuh). Three of four stages (two of three with 8 bits) are in flight: 24 KB
// of codes and up to 6 KB of scales and minima of a block (32 KB with 8 bits). `splits` parts of k fill the 132 SMs where
// n / 128 alone does not: 4096 outputs are 32 blocks.
//
//                 threads  shared memory  registers  blocks per SM
//   int4_m32        128         75 KB         128           3
//   int4_m64        128        108 KB         233           2
//   int8g_m64       128        106 KB         244           2
//
// What bounds 64 rows (modelled, clocks of a quarter SM for a unit of 64 rows): 36 mma of some 6.7 (mma.sync reaches about
// 60 % of the 512 BF16 multiply-adds of a clock), 240; 190 instructions (36 mma, 44 to unpack, 12 loads, 2 x 20 for scales
// and minima of groups of 128, 25 to copy); 36 x 4 accesses of shared memory, and 50 that fill it; the unit's bytes arrive in
// 150. From a few hundred rows on unpacking to BF16 and cuBLASLt win.
//
// Shared memory: rows of x have 256 bytes; the 16-byte pieces of odd rows are exchanged four by four, so that the eight
// lanes of a quarter warp (two rows, four pieces each) meet all 32 banks once.

#define INT4_STEP_UNITS 4
#define INT4_STEP (32 * INT4_STEP_UNITS)
#define INT4_X_PITCH (2 * INT4_STEP)
// Outputs of a block: one strip for each of four warps.
#define INT4_STRIPS 4
#define INT4_THREADS (32 * INT4_STRIPS)
// A stage has room for the groups of 32, of which a step has the most.
#define INT4_STAGE_AFFINE (INT4_STRIPS * INT4_STEP_UNITS * INT4_AFFINE_BYTES)

// Place of the 16 bytes `piece` (8 inputs) of a row of x in its stage.
DEV u32 int4_x_at(u32 row, u32 piece) {
    return row * INT4_X_PITCH + (piece ^ ((row & 1) << 2)) * 16;
}

// TILES: eights of rows, 4 or 8. PLANES: 4 or 8 bits.
template <int TILES, int PLANES>
struct Int4Gemm {
    static constexpr u32 ROWS = 8 * TILES;
    // Tiles whose sums of activations a warp computes for all.
    static constexpr int OWN = TILES / INT4_STRIPS;
    static constexpr u32 STAGES = PLANES == 1 ? 4 : 3;
    static constexpr u32 UNIT_BYTES = INT4_UNIT_BYTES * PLANES;
    static constexpr u32 STRIP_BYTES = INT4_STEP_UNITS * UNIT_BYTES;
    static constexpr u32 X_BYTES = ROWS * INT4_X_PITCH;
    static constexpr u32 STAGE = X_BYTES + INT4_STRIPS * STRIP_BYTES;
    // Scales and minima have a stage more: minima are wanted a step later.
    static constexpr u32 AFFINE = STAGES * STAGE;
    static constexpr u32 AFFINE_END = AFFINE + (STAGES + 1) * INT4_STAGE_AFFINE;
    // Sums of a step's activations, of this step and the one before: FP32 [group][row].
    static constexpr u32 SUMS = INT4_STEP_UNITS * ROWS * 4;

    // What a warp adds up, of outputs (16 of a half) and rows of x: sums of the whole part of k, of the current group, and of
    // the group's activations of the warp's own tiles (in c[0] that of row 2 t, in c[1] of row 2 t + 1, and again).
    float total[2][TILES][4];
    float group[2][TILES][4];
    float x_sums[OWN][4];

    // Rows of a warp's tile: each warp begins with its own ones.
    static __device__ __forceinline__ u32 tile_row(int tile) {
        return (tile + threadIdx.x / 32 * OWN) % TILES * 8;
    }

    // The products of a step. Sums of activations go to `sums`.
    __device__ __forceinline__ void compute(const u8* stage, const u8* affine, float* sums, u32 mask) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
        const u8* codes = stage + X_BYTES + warp * STRIP_BYTES + lane * 16;
        const u32 ones[4] = {INT4_ONES, INT4_ONES, INT4_ONES, INT4_ONES};
        affine += (warp * INT4_STEP_UNITS * 8 + g) * 16;
        sums += 2 * t;
        for (u32 unit = 0; unit < INT4_STEP_UNITS;) {
#pragma unroll 1
            do {
                uint4 planes[PLANES];
#pragma unroll
                for (int p = 0; p < PLANES; p++) {
                    planes[p] = *reinterpret_cast<const uint4*>(codes + (unit * PLANES + p) * INT4_UNIT_BYTES);
                }
                u32 words[4][4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    u32 of_planes[PLANES];
#pragma unroll
                    for (int p = 0; p < PLANES; p++) {
                        of_planes[p] = int4_word(planes[p], j);
                    }
                    int4_unpack<PLANES>(of_planes, words[j]);
                }
                const u8* rows = stage + int4_x_at(g, unit * 4 + t);
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
                    const uint4 x = *reinterpret_cast<const uint4*>(rows + tile_row(tile) * INT4_X_PITCH);
                    const u32 b[2][2] = {{x.x, x.y}, {x.z, x.w}};
#pragma unroll
                    for (int i = 0; i < 2; i++) {
#pragma unroll
                        for (int half = 0; half < 2; half++) {
                            const u32 a[4] = {words[2 * half][2 * i], words[2 * half + 1][2 * i],
                                              words[2 * half][2 * i + 1], words[2 * half + 1][2 * i + 1]};
                            mma_bf16_16816(group[half][tile], a, b[i]);
                        }
                        if (tile < OWN) {
                            mma_bf16_16816(x_sums[tile], ones, b[i]);
                        }
                    }
                }
                unit++;
            } while ((unit & mask) != 0);
            // A group is complete: total += scale * group. The minima's part follows a step later.
            float scales[4];
            const uint2 v = *reinterpret_cast<const uint2*>(affine);
            int4_halves(v.x, v.y, scales);
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        total[half][tile][i] += scales[2 * half + i / 2] * group[half][tile][i];
                        group[half][tile][i] = 0.0f;
                    }
                }
            }
#pragma unroll
            for (int tile = 0; tile < OWN; tile++) {
                if (g == 0) {
                    *reinterpret_cast<float2*>(sums + tile_row(tile)) = make_float2(x_sums[tile][0], x_sums[tile][1]);
                }
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    x_sums[tile][i] = 0.0f;
                }
            }
            affine += INT4_AFFINE_BYTES;
            sums += ROWS;
        }
    }

    // A step's total += min * sum of a group's activations.
    __device__ __forceinline__ void add_minima(const u8* affine, const float* sums, u32 groups) {
        const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
        affine += (warp * INT4_STEP_UNITS * 8 + g) * 16 + 8;
        sums += 2 * t;
#pragma unroll 1
        for (u32 group = 0; group < groups; group++) {
            float minima[4];
            const uint2 v = *reinterpret_cast<const uint2*>(affine);
            int4_halves(v.x, v.y, minima);
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const float2 of_rows = *reinterpret_cast<const float2*>(sums + tile_row(tile));
#pragma unroll
                for (int half = 0; half < 2; half++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        total[half][tile][i] += minima[2 * half + i / 2] * (i % 2 == 0 ? of_rows.x : of_rows.y);
                    }
                }
            }
            affine += INT4_AFFINE_BYTES;
            sums += ROWS;
        }
    }

    __device__ __forceinline__ void run(
        u8* smem, const LinearOut& to, const u16* x, const u8* codes, const u8* affine, const float* row_scales, u32 k,
        u32 size) {
        const u32 shift = size == 32 ? 0 : size == 64 ? 1 : 2, mask = (1u << shift) - 1;
        const u32 units = k / 32, groups = units >> shift, step_groups = INT4_STEP_UNITS >> shift;
        const u32 first_row = blockIdx.y * ROWS, first_strip = blockIdx.x * INT4_STRIPS;
        const u32 strips = (to.n + INT4_STRIP - 1) / INT4_STRIP;
        const u32 steps = (units + INT4_STEP_UNITS - 1) / INT4_STEP_UNITS;
        const u32 begin = to.begin(steps), end = to.end(steps);

        // What this thread copies of the step `next`: 16 bytes of every eighth row, of every strip and of scales and minima.
        struct Place {
            u32 next, filled, affine_filled;
            const u16* x;
            const u8 *codes, *affine;
        };
        const u32 row = threadIdx.x / 16, piece = threadIdx.x % 16;
        const u32 strip = threadIdx.x / 32, slot = threadIdx.x / 8 % 4;
        const u32 codes_pitch = units * UNIT_BYTES;
        Place place = {begin, 0, 0, x + (u64)(first_row + row) * k + begin * INT4_STEP + piece * 8,
                       codes + ((u64)first_strip * units + begin * INT4_STEP_UNITS) * UNIT_BYTES + threadIdx.x * 16,
                       affine + ((u64)(first_strip + strip) * groups + begin * step_groups + slot) * INT4_AFFINE_BYTES +
                           threadIdx.x % 8 * 16};
        // What lies outside of x or the weight becomes zero and is not read.
        auto copy = [&](Place& at, bool weight, bool rows) {
            if (at.next >= end) {
                return;
            }
            u8* stage = smem + at.filled;
            if (rows) {
                const bool has_piece = at.next * INT4_STEP + piece * 8 < k;
#pragma unroll
                for (u32 i = 0; i < ROWS / 8; i++) {
                    cp_async16(stage + int4_x_at(row, piece) + i * 8 * INT4_X_PITCH, at.x + i * 8 * k,
                               has_piece && first_row + row + i * 8 < to.m);
                }
            }
            if (weight) {
                u8* stage_codes = stage + X_BYTES + threadIdx.x * 16;
#pragma unroll
                for (u32 i = 0; i < INT4_STRIPS; i++) {
#pragma unroll
                    for (u32 part = 0; part < PLANES; part++) {
                        // All threads together copy 2 KB.
                        const u32 in_strip = part * INT4_THREADS * 16 + threadIdx.x * 16;
                        const bool exists = at.next * INT4_STEP_UNITS + in_strip / UNIT_BYTES < units && first_strip + i < strips;
                        cp_async16(stage_codes + i * STRIP_BYTES + part * INT4_THREADS * 16,
                                   at.codes + i * codes_pitch + part * INT4_THREADS * 16, exists);
                    }
                }
                if (slot < step_groups) {
                    cp_async16(smem + AFFINE + at.affine_filled + threadIdx.x * 16, at.affine,
                               first_strip + strip < strips && at.next * step_groups + slot < groups);
                }
            }
            at.next++;
            at.x += INT4_STEP;
            at.codes += STRIP_BYTES;
            at.affine += step_groups * INT4_AFFINE_BYTES;
            at.filled = at.filled == (STAGES - 1) * STAGE ? 0 : at.filled + STAGE;
            at.affine_filled = at.affine_filled == STAGES * INT4_STAGE_AFFINE ? 0 : at.affine_filled + INT4_STAGE_AFFINE;
        };
        // The weight's first stages are on their way before the kernel ahead, which makes x, is waited for. Groups of commits are
        // counted, so an empty one stands for a step that does not exist.
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
        u32 now = 0, affine_now = 0, affine_before = 0;
        u8* sums = smem + AFFINE_END;
        u32 sums_now = 0;
        for (u32 step = begin; step < end; step++) {
            cp_async_wait<STAGES - 2>();
            // The step's bytes of all threads are there, the sums of the step before too, and all warps are done with the
            // stage that is filled next.
            __syncthreads();
            copy(place, true, true);
            cp_async_commit();
            if (step > begin) {
                add_minima(smem + AFFINE + affine_before, reinterpret_cast<float*>(sums + (sums_now ^ SUMS)), step_groups);
            }
            compute(smem + now, smem + AFFINE + affine_now, reinterpret_cast<float*>(sums + sums_now), mask);
            affine_before = affine_now;
            sums_now ^= SUMS;
            now = now == (STAGES - 1) * STAGE ? 0 : now + STAGE;
            affine_now = affine_now == STAGES * INT4_STAGE_AFFINE ? 0 : affine_now + INT4_STAGE_AFFINE;
        }
        __syncthreads();
        if (begin < end) {
            add_minima(smem + AFFINE + affine_before, reinterpret_cast<float*>(sums + (sums_now ^ SUMS)), step_groups);
        }
        store(to, row_scales, first_row, first_strip + strip);
    }

    // As LinearOut::store, with what is the same for a row or an output looked up once.
    __device__ __forceinline__ void store(const LinearOut& to, const float* row_scales, u32 first_row, u32 strip) const {
        const u32 lane = threadIdx.x % 32, first = strip * INT4_STRIP + lane / 4;
        const bool parts = to.splits > 1;
        const bool add = !parts && to.add != 0;
        float* const out = parts ? to.partial + (u64)to.split * to.m * to.n : to.out;
        float scales[4], bias[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 output = first + j * 8;
            const bool exists = output < to.n;
            scales[j] = exists ? row_scales[output] : 0.0f;
            bias[j] = exists && !parts && to.bias != nullptr ? to.bias[output] : 0.0f;
        }
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                const u32 row = first_row + tile_row(tile) + lane % 4 * 2 + odd;
                if (row >= to.m) {
                    continue;
                }
                float* const at = out + (u64)row * to.n + first;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    if (first + j * 8 < to.n) {
                        const float value = total[j / 2][tile][j % 2 * 2 + odd] * scales[j] + bias[j];
                        at[j * 8] = add ? at[j * 8] + value : value;
                    }
                }
            }
        }
    }
};

// Every entry: x [m, k] BF16, grid: x = n / 128, y = m / rows, z = splits of k; k is a multiple of `group`.
extern "C" __global__ void __launch_bounds__(128) linear_int4_m32(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    DYN_SMEM(smem);
    Int4Gemm<4, 1> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x, codes, affine, row_scales, k,
             group);
}

extern "C" __global__ void __launch_bounds__(128, 2) linear_int4_m64(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    DYN_SMEM(smem);
    Int4Gemm<8, 1> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x, codes, affine, row_scales, k,
             group);
}

extern "C" __global__ void __launch_bounds__(128, 2) linear_int8g_m64(
    float* out, float* partial, const u16* x, const u8* codes, const u8* affine, const float* row_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 group, u32 add) {
    DYN_SMEM(smem);
    Int4Gemm<8, 2> gemm = {};
    gemm.run(smem, LinearOut{out, partial, bias, m, n, add, blockIdx.z, gridDim.z}, x, codes, affine, row_scales, k,
             group);
}
