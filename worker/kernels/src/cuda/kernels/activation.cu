// The gated activation silu(gate) * up, alone and fused with the quantization of what the down projection reads.
//
// Bound by bytes: 8 read per value, 1 to 4 written. The forms with a dynamic scale compute the activation twice (for the
// largest magnitude and for the codes) rather than keep it: two more special-function operations per value are hidden
// behind its bytes. The second walk reads gate and up from L1 (28 KiB for 3584 values) or L2.
//
// Grid: one block of 256 threads per row. x [rows, 2 width] is FP32, gates first; out is [rows, width].

extern "C" __global__ void __launch_bounds__(256) gated_silu(const float* x, u32 width, float* out) {
    store_f32(gated_row(x, width), width, out);
}

extern "C" __global__ void __launch_bounds__(256) silu_quantize_bf16(const float* x, u32 width, u16* out) {
    store_bf16(gated_row(x, width), width, out);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) silu_quantize_e4m3(const float* x, u32 width, u8* out, float* scales) {
    quantize_e4m3_row(gated_row(x, width), width, out, scales);
}

// One scale for all rows, measured beforehand; saturating.
extern "C" __global__ void __launch_bounds__(256) silu_quantize_e4m3_static(
    const float* x, u32 width, const float* scale, u8* out) {
    store_e4m3(gated_row(x, width), width, *scale, out);
}

// scales [rows, width / 128].
extern "C" __global__ void __launch_bounds__(256) silu_quantize_e4m3_block(
    const float* x, u32 width, u8* out, float* scales) {
    quantize_e4m3_blocks(gated_row(x, width), width, out, scales);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) silu_quantize_int8(const float* x, u32 width, u8* out, float* scales) {
    quantize_int8_row(gated_row(x, width), width, out, scales);
}

// scales and sums [rows, width / group], group 32, 64 or 128.
extern "C" __global__ void __launch_bounds__(256) silu_quantize_int8_group(
    const float* x, u32 width, u32 group, u8* out, float* scales, float* sums) {
    quantize_int8_groups(gated_row(x, width), width, group, out, scales, sums);
}
