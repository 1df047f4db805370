// A group-wise weight as BF16 [n, k], row-major, for cuBLASLt: each value s q + m is computed in FP32 and rounded once.
//
// For 16 (or 32) bytes read a lane writes 64, so writing decides: 2 n k bytes, 101 us for 28672 x 4096 with what is read
// at 90 % of 3.35 TB/s (modelled; 103 measured on an H100 80GB HBM3). What that takes:
//   - A lane writes 8 inputs of an output by one store of 16 bytes, which takes an index into `uint4*`: through a u16* that
//     is cast where it is stored to, the compiler makes four stores of 4 bytes, and every sector is written four times:
//     202 us (measured on an H100 80GB HBM3).
//   - A warp takes four units and two g of them, so that a store covers 256 consecutive bytes of two outputs: whole cache
//     lines. It reads 128 consecutive bytes of each unit.
// Everything that a lane reads is on its way before the first store, which it does not wait for: six blocks, 48 warps of
// 640 bytes of loads.

// Units that a warp takes of eight: 1, 2, 4 or 8.
#define UNPACK_UNITS 4

// 8 inputs of an output: row (scale q + min) as BF16.
template <int PLANES>
DEV uint4 int4_eight(const u32 (&words)[PLANES], float row, float scale, float min) {
    u32 pairs[4];
    int4_unpack<PLANES>(words, pairs);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float low = row * (scale * bf16_lo(pairs[i]) + min);
        const float high = row * (scale * bf16_hi(pairs[i]) + min);
        pairs[i] = pack_bf16x2(low, high);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Grid: x = strips, y = any number of blocks over the units. 256 threads; eight units of a strip at a time.
template <int PLANES>
DEV void int4_to_bf16(u16* out, const u8* codes, const u8* affine, const float* row_scales, u32 n, u32 k, u32 size) {
    const u32 strip = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, t = lane % 4, units = k / 32;
    // Of the eight units, and of a unit's eight g.
    const u32 of_eight = warp / UNPACK_UNITS * UNPACK_UNITS + lane / 4 % UNPACK_UNITS;
    const u32 g = warp % UNPACK_UNITS * (8 / UNPACK_UNITS) + lane / 4 / UNPACK_UNITS;
    const u32 shift = size == 32 ? 0 : size == 64 ? 1 : 2;
    uint4* to = reinterpret_cast<uint4*>(out);
    for (u32 unit = blockIdx.y * 8 + of_eight; unit < units; unit += gridDim.y * 8) {
        const u64 group = (u64)strip * (units >> shift) + (unit >> shift);
        uint4 planes[PLANES];
#pragma unroll
        for (int p = 0; p < PLANES; p++) {
            const u64 from = (((u64)strip * units + unit) * PLANES + p) * INT4_UNIT_BYTES + (g * 4 + t) * 16;
            planes[p] = ld_global_nc_v4(codes + from);
        }
        const uint4 of_group = ld_global_nc_v4(affine + group * INT4_AFFINE_BYTES + g * 16);
        float rows[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            rows[j] = row_scales[strip * INT4_STRIP + j * 8 + g];
        }
        const Int4Affine a = int4_affine(of_group);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 output = strip * INT4_STRIP + j * 8 + g;
            u32 words[PLANES];
#pragma unroll
            for (int p = 0; p < PLANES; p++) {
                words[p] = int4_word(planes[p], j);
            }
            const uint4 eight = int4_eight<PLANES>(words, rows[j], a.scale[j], a.min[j]);
            if (output < n) {
                to[(u64)output * (k / 8) + unit * 4 + t] = eight;
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) unpack_bf16_int4(
    u16* out, const u8* codes, const u8* affine, const float* row_scales, u32 n, u32 k, u32 group) {
    grid_wait();
    int4_to_bf16<1>(out, codes, affine, row_scales, n, k, group);
}

extern "C" __global__ void __launch_bounds__(256) unpack_bf16_int8g(
    u16* out, const u8* codes, const u8* affine, const float* row_scales, u32 n, u32 k, u32 group) {
    grid_wait();
    int4_to_bf16<2>(out, codes, affine, row_scales, n, k, group);
}
