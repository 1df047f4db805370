// INT8 products for at most 32 rows, weights and activations signed 8 bits, sums exact in 32 bits (127^2 k < 2^31 up to k of
// 133 k). mma and not dp4a: for eight rows the 64 codes that a lane holds at a time would take 128 dp4a, and take 4 mma. More
// rows than 32 go to cuBLASLt.
//
// The outlier columns of LLM.int8 are zero in both operands here; their part is a BF16 product of at most 64 inputs
// (linear_bf16.cu) added behind this one.
//
// Bytes in flight and shapes: linear.cuh. 64 registers for 8 rows, 98 for 16, 114 for 32.
//
// x [m, k] and w [n padded to 32, k] are INT8, k a multiple of 16. Grid: x = n / 32, y = splits. 256 threads.

template <int TILES>
DEV void linear_int8(const LinearOut& to, const u8* x, const float* x_scales, const u8* w, const float* w_scales, u32 k) {
    linear_rows<LinearInt8, TILES>(
        to, x, w, k, [=](u32 row, u32 output) { return x_scales[row] * w_scales[output]; });
}

extern "C" __global__ void __launch_bounds__(256) linear_int8_m8(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_int8<1>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_int8_m16(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_int8<2>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_int8_m32(
    float* out, float* partial, const u8* x, const float* x_scales, const u8* w, const float* w_scales,
    const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_int8<4>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, x_scales, w, w_scales, k);
}
