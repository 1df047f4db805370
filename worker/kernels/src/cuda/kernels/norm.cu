// RMS norm, alone and fused with the quantization of what the next product reads.
//
// Bound by bytes (many rows) or latency (few); rows.cuh says how the shape follows. Fused, the normed row is never
// written as FP32: per value 4 bytes are read and 1 or 2 written, instead of 4 read, 4 written, 4 read again.
//
// Grid: one block of 256 threads per row. x [rows, width] and gain [width] are FP32, codes [rows, pitch] or, where no pitch
// is given, [rows, width].

// out [rows, width] may be x.
extern "C" __global__ void __launch_bounds__(256) rms_norm(
    float* out, const float* x, const float* gain, u32 width, float epsilon) {
    grid_start();
    store_f32(out, normed_row(x, gain, width, epsilon), width);
}

extern "C" __global__ void __launch_bounds__(256) norm_quantize_bf16(
    u16* codes, const float* x, const float* gain, u32 width, u32 pitch, float epsilon) {
    grid_start();
    store_bf16(codes, normed_row(x, gain, width, epsilon), width, pitch);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) norm_quantize_e4m3(
    u8* codes, float* scales, const float* x, const float* gain, u32 width, u32 pitch, float epsilon) {
    grid_start();
    quantize_e4m3_row(codes, scales, normed_row(x, gain, width, epsilon), width, pitch);
}

// One scale for all rows, measured beforehand: an input; saturating.
extern "C" __global__ void __launch_bounds__(256) norm_quantize_e4m3_static(
    u8* codes, const float* scale, const float* x, const float* gain, u32 width, u32 pitch, float epsilon) {
    grid_start();
    store_e4m3(codes, *scale, normed_row(x, gain, width, epsilon), width, pitch);
}

// scales [rows, width / 128].
extern "C" __global__ void __launch_bounds__(256) norm_quantize_e4m3_block(
    u8* codes, float* scales, const float* x, const float* gain, u32 width, float epsilon) {
    grid_start();
    quantize_e4m3_blocks(codes, scales, normed_row(x, gain, width, epsilon), width);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) norm_quantize_int8(
    u8* codes, float* scales, const float* x, const float* gain, u32 width, u32 pitch, float epsilon) {
    grid_start();
    quantize_int8_row(codes, scales, normed_row(x, gain, width, epsilon), width, pitch);
}
