// The gated activation silu(gate) * up, alone and fused with the quantization of what the down projection reads.
//
// Bound by bytes: 8 read per value, 1 to 4 written. The forms with a dynamic scale compute the activation twice (for the
// largest magnitude and for the codes) rather than keep it: two more special-function operations per value are hidden
// behind its bytes. The second walk reads gate and up from L1 (28 KiB for 3584 values) or L2.
//
// Grid: one block of 256 threads per row. x [rows, 2 width] is FP32, gates first; codes [rows, pitch] or, where no pitch is
// given, [rows, width].

// out [rows, width].
extern "C" __global__ void __launch_bounds__(256) gated_silu(float* out, const float* x, u32 width) {
    grid_start();
    store_f32(out, gated_row(x, width), width);
}

extern "C" __global__ void __launch_bounds__(256) silu_quantize_bf16(
    u16* codes, const float* x, u32 width, u32 pitch) {
    grid_start();
    store_bf16(codes, gated_row(x, width), width, pitch);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) silu_quantize_e4m3(
    u8* codes, float* scales, const float* x, u32 width, u32 pitch) {
    grid_start();
    quantize_e4m3_row(codes, scales, gated_row(x, width), width, pitch);
}

// One scale for all rows, measured beforehand: an input; saturating.
extern "C" __global__ void __launch_bounds__(256) silu_quantize_e4m3_static(
    u8* codes, const float* scale, const float* x, u32 width, u32 pitch) {
    grid_start();
    store_e4m3(codes, *scale, gated_row(x, width), width, pitch);
}

// scales [rows, width / 128].
extern "C" __global__ void __launch_bounds__(256) silu_quantize_e4m3_block(
    u8* codes, float* scales, const float* x, u32 width) {
    grid_start();
    quantize_e4m3_blocks(codes, scales, gated_row(x, width), width);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) silu_quantize_int8(
    u8* codes, float* scales, const float* x, u32 width, u32 pitch) {
    grid_start();
    quantize_int8_row(codes, scales, gated_row(x, width), width, pitch);
}
