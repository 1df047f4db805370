// A group-wise weight as BF16 [n, k], row-major, for cuBLASLt: each value s q + m is computed in FP32 and rounded once.
//
// A warp takes one unit, lane (g, t) the inputs 8 t .. 8 t + 7 of four outputs. For 16 (or 32) bytes read a lane writes 64,
// so writing decides: 2 n k bytes, 44 us for 4096 x 14336 at 3.35 TB/s with what is read (modelled). Stores wait for nothing;
// 16 warps with 640 bytes of loads each and the 32 KB of stores behind them keep an SM busy. 40 registers.

// Grid: x = strips, y = any number of blocks over the units. 256 threads.
template <int PLANES>
DEV void int4_to_bf16(u16* out, const u8* codes, const u8* affine, const float* row_scales, u32 n, u32 k, u32 size) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, strip = blockIdx.x, units = k / 32;
    const u32 shift = size == 32 ? 0 : size == 64 ? 1 : 2;
    for (u32 unit = blockIdx.y * 8 + threadIdx.x / 32; unit < units; unit += gridDim.y * 8) {
        const u64 group = (u64)strip * (units >> shift) + (unit >> shift);
        const Int4Affine a = int4_affine(ld_global_nc_v4(affine + group * INT4_AFFINE_BYTES + g * 16));
        uint4 planes[PLANES];
#pragma unroll
        for (int p = 0; p < PLANES; p++) {
            const u64 from = (((u64)strip * units + unit) * PLANES + p) * INT4_UNIT_BYTES + lane * 16;
            planes[p] = ld_global_nc_v4(codes + from);
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 output = strip * INT4_STRIP + j * 8 + g;
            u32 words[PLANES], pairs[4];
#pragma unroll
            for (int p = 0; p < PLANES; p++) {
                words[p] = int4_word(planes[p], j);
            }
            int4_unpack<PLANES>(words, pairs);
            const float row = row_scales[output];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float low = row * (a.scale[j] * bf16_lo(pairs[i]) + a.min[j]);
                const float high = row * (a.scale[j] * bf16_hi(pairs[i]) + a.min[j]);
                pairs[i] = pack_bf16x2(low, high);
            }
            if (output < n) {
                uint4* to = reinterpret_cast<uint4*>(out + (u64)output * k + unit * 32 + t * 8);
                *to = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) unpack_bf16_int4(
    u16* out, const u8* codes, const u8* affine, const float* row_scales, u32 n, u32 k, u32 group) {
    grid_start();
    int4_to_bf16<1>(out, codes, affine, row_scales, n, k, group);
}

extern "C" __global__ void __launch_bounds__(256) unpack_bf16_int8g(
    u16* out, const u8* codes, const u8* affine, const float* row_scales, u32 n, u32 k, u32 group) {
    grid_start();
    int4_to_bf16<2>(out, codes, affine, row_scales, n, k, group);
}
