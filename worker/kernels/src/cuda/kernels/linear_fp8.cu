// FP8 products for at most 32 rows, weights and activations E4M3. More rows go to cuBLASLt: mma.sync has no FP8 products on
// sm_90a, the compiler unpacks both operands to FP16 (F2FP) and multiplies those. That is exact, and it costs nothing where
// the weight's bytes are what is waited for: a chunk of 4 KB takes 8 mma for 8 rows, that is 16 FP16 products and about 80
// conversions, some 270 of the 1,090 clocks in which the chunks of four warps arrive at 15 bytes per clock (modelled).
//
// Bytes in flight and shapes: linear.cuh. 70 registers for 8 rows, 108 for 16, 143 for 32.
//
// x [m, k] and w [n padded to 32, k] are E4M3, k a multiple of 16. Grid: x = n / 32, y = splits. 256 threads.

// y = x_scales[m] w_scales[n] sum: dynamic scales per token, and static ones, which are the same for all tokens.
template <int TILES>
DEV void linear_fp8(const LinearOut& to, const u8* x, const float* x_scales, const u8* w, const float* w_scales, u32 k) {
    linear_rows<LinearE4m3, TILES>(
        to, x, w, k, [=](u32 row, u32 output) { return x_scales[row] * w_scales[output]; });
}

extern "C" __global__ void __launch_bounds__(256) linear_fp8_m8(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_fp8<1>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_fp8_m16(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_fp8<2>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_fp8_m32(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_fp8<4>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}

// One scale for 128 inputs of a token, x_scales [m, k / 128], and for 128 inputs of an output, w_scales [n padded to 32,
// k / 128]: the chunk of linear_rows is one block, so its sum is scaled and added in FP32 before the next begins
// (DeepSeek-V3, 2024, section 3.3: promotion every 128 inputs). k is a multiple of 128.
template <int TILES>
DEV void linear_fp8_block(
    const LinearOut& to, const u8* x, const float* x_scales, const u8* w, const float* w_scales, u32 k) {
    const u32 first = blockIdx.x * LINEAR_OUTPUTS, blocks = k / LINEAR_CHUNK;
    float total[2][TILES][4] = {};
    const u32 begin = to.begin(blocks) + threadIdx.x / 32, end = to.end(blocks);
    for (u32 block = begin; block < end; block += LINEAR_WARPS) {
        float sums[2][TILES][4] = {};
        linear_chunk<LinearE4m3, TILES>(sums, w + (u64)first * k, x, k, to.m, block, block == begin);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 row = linear_row(tile, i);
                const float x_scale = row < to.m ? x_scales[row * blocks + block] : 0.0f;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float w_scale = w_scales[(u64)(first + linear_output(half, i)) * blocks + block];
                    total[half][tile][i] += sums[half][tile][i] * (x_scale * w_scale);
                }
            }
        }
    }
    if (begin >= end) {
        grid_wait();
    }
    __shared__ float shared[LINEAR_SHARED(TILES)];
    linear_add_warps<float, TILES>(
        shared, total, [&](u32 row, u32 output, float sum) { to.store(row, first + output, sum); });
}

extern "C" __global__ void __launch_bounds__(256) linear_fp8_block_m8(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_fp8_block<1>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_fp8_block_m16(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_fp8_block<2>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_fp8_block_m32(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_fp8_block<4>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}
