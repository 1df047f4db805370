// Matrix instructions on fragments that the host lays out, and conversions.

#define MMA_PROBE(name, instruction, sum)                                                                        \
    extern "C" __global__ void __launch_bounds__(32) name(sum* d, const u32* a, const u32* b) {                  \
        const u32 lane = threadIdx.x;                                                                            \
        const u32 mine_a[4] = {a[lane * 4], a[lane * 4 + 1], a[lane * 4 + 2], a[lane * 4 + 3]};                  \
        const u32 mine_b[2] = {b[lane * 2], b[lane * 2 + 1]};                                                    \
        sum mine[4] = {d[lane * 4], d[lane * 4 + 1], d[lane * 4 + 2], d[lane * 4 + 3]};                          \
        instruction(mine, mine_a, mine_b);                                                                       \
        for (u32 i = 0; i < 4; i++) {                                                                            \
            d[lane * 4 + i] = mine[i];                                                                           \
        }                                                                                                        \
    }
MMA_PROBE(probe_bf16, mma_bf16_16816, float)
MMA_PROBE(probe_f16, mma_f16_16816, float)
MMA_PROBE(probe_e4m3, mma_e4m3_16832, float)
MMA_PROBE(probe_s8, mma_s8_16832, int)

// Four matrices of 8 x 8 numbers of 16 bit, with rows 48 bytes apart.
extern "C" __global__ void __launch_bounds__(32) probe_ldmatrix(u32* out, const u16* in) {
    __shared__ __align__(16) u16 rows[32 * 24];
    const u32 lane = threadIdx.x;
    for (u32 i = 0; i < 8; i++) {
        rows[lane * 24 + i] = in[lane * 8 + i];
    }
    __syncwarp();
    u32 straight[4], transposed[4], two[2];
    ldmatrix_x4(straight, rows + lane * 24);
    ldmatrix_x4_trans(transposed, rows + lane * 24);
    ldmatrix_x2(two, rows + (lane & 15) * 24);
    for (u32 i = 0; i < 4; i++) {
        out[lane * 10 + i] = straight[i];
        out[lane * 10 + 4 + i] = transposed[i];
    }
    out[lane * 10 + 8] = two[0];
    out[lane * 10 + 9] = two[1];
}

extern "C" __global__ void __launch_bounds__(256) narrow(u16* e4m3, u16* e5m2, u32* f16, u32* bf16, const float* in, u32 n) {
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) {
        e4m3[i] = pack_e4m3x2(in[i], -in[i]);
        e5m2[i] = pack_e5m2x2(in[i], -in[i]);
        f16[i] = pack_f16x2(in[i], -in[i]);
        bf16[i] = pack_bf16x2(in[i], -in[i]);
    }
}

// All 256 codes of each FP8 format, and FP16 numbers, as FP32.
extern "C" __global__ void __launch_bounds__(64) widen(float* e4m3, float* e5m2, float* by_f16) {
    const u32 base = threadIdx.x * 4;
    const u32 codes = base | (base + 1) << 8 | (base + 2) << 16 | (base + 3) << 24;
    float a[4], b[4], c[2];
    u32 halves[2];
    e4m3x4_to_f32(codes, a);
    e5m2x4_to_f32(codes, b);
    e4m3x4_to_f16x4(codes, halves);
    for (u32 i = 0; i < 4; i++) {
        e4m3[base + i] = a[i];
        e5m2[base + i] = b[i];
        f16x2_to_f32(halves[i / 2], c);
        by_f16[base + i] = c[i % 2];
    }
}

extern "C" __global__ void __launch_bounds__(32) integers(int* out, const int* in) {
    const u32 i = threadIdx.x;
    out[i] = dp4a(in[i], in[i + 1], (int)i);
    out[32 + i] = (int)__byte_perm((u32)in[i], (u32)in[i + 1], 0x7531u);
    out[64 + i] = __float2int_rn((float)in[i] * 0.5f);
}
