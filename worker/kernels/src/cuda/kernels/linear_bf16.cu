// Products with BF16 weights for at most 32 rows: the output layer (128 k outputs x 4 k inputs are 1 GB, a fifth of what an
// INT4 step of an 8B model reads) and the outlier columns of LLM.int8.
//
// Bound by the weight's bytes: one row does one multiply-add for two bytes, and an H100 could do 295 while they arrive, by
// mma.sync some 170 (modelled: 989 TFLOP/s, 3.35 TB/s). linear.cuh says how many bytes are in flight. 64 registers for 8 rows,
// 76 for 16, 102 for 32. More rows than 16 go to cuBLASLt where it is there, which reads the activations less often.
//
// x [m, k] and w [n padded to 32, k] are BF16, k a multiple of 8. Grid: x = n / 32, y = splits. 256 threads.

template <int TILES>
DEV void linear_bf16(const LinearOut& to, const u16* x, const u16* w, u32 k) {
    linear_rows<LinearBf16, TILES>(to, reinterpret_cast<const u8*>(x), reinterpret_cast<const u8*>(w), 2 * k,
                                   [](u32, u32) { return 1.0f; });
}

extern "C" __global__ void __launch_bounds__(256) linear_bf16_m8(
    float* out, float* partial, const u16* x, const u16* w, const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_bf16<1>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, w, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_bf16_m16(
    float* out, float* partial, const u16* x, const u16* w, const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_bf16<2>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, w, k);
}

extern "C" __global__ void __launch_bounds__(256) linear_bf16_m32(
    float* out, float* partial, const u16* x, const u16* w, const float* bias, u32 m, u32 n, u32 k, u32 add) {
    linear_bf16<4>(LinearOut{out, partial, bias, m, n, add, blockIdx.y, gridDim.y}, x, w, k);
}
