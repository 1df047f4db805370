// RMS norm, alone and fused with the quantization of what the next product reads.
//
// Bound by bytes (many rows) or latency (few); rows.cuh says how the shape follows. Fused, the normed row is never
// written as FP32: per value 4 bytes are read and 1 or 2 written, instead of 4 read, 4 written, 4 read again.
//
// Grid: one block of 256 threads per row. x [rows, width] and gain [width] are FP32, out is [rows, width].

extern "C" __global__ void __launch_bounds__(256) rms_norm(
    const float* x, const float* gain, u32 width, float epsilon, float* out) {
    store_f32(normed_row(x, gain, width, epsilon), width, out);
}

extern "C" __global__ void __launch_bounds__(256) norm_quantize_bf16(
    const float* x, const float* gain, u32 width, float epsilon, u16* out) {
    store_bf16(normed_row(x, gain, width, epsilon), width, out);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) norm_quantize_e4m3(
    const float* x, const float* gain, u32 width, float epsilon, u8* out, float* scales) {
    quantize_e4m3_row(normed_row(x, gain, width, epsilon), width, out, scales);
}

// One scale for all rows, measured beforehand; saturating.
extern "C" __global__ void __launch_bounds__(256) norm_quantize_e4m3_static(
    const float* x, const float* gain, u32 width, float epsilon, const float* scale, u8* out) {
    store_e4m3(normed_row(x, gain, width, epsilon), width, *scale, out);
}

// scales [rows, width / 128].
extern "C" __global__ void __launch_bounds__(256) norm_quantize_e4m3_block(
    const float* x, const float* gain, u32 width, float epsilon, u8* out, float* scales) {
    quantize_e4m3_blocks(normed_row(x, gain, width, epsilon), width, out, scales);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) norm_quantize_int8(
    const float* x, const float* gain, u32 width, float epsilon, u8* out, float* scales) {
    quantize_int8_row(normed_row(x, gain, width, epsilon), width, out, scales);
}

// scales and sums [rows, width / group], group 32, 64 or 128.
extern "C" __global__ void __launch_bounds__(256) norm_quantize_int8_group(
    const float* x, const float* gain, u32 width, float epsilon, u32 group, u8* out, float* scales,
    float* sums) {
    quantize_int8_groups(normed_row(x, gain, width, epsilon), width, group, out, scales, sums);
}
