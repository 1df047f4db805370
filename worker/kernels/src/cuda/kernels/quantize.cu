// Plain FP32 rows into the forms that products take: for inputs that neither a norm nor the gated activation precedes
// (the attention's output), and for weights whose outlier columns are kept apart.
//
// Bound by bytes (4 read, 1 or 2 written per value) or, with few rows, by latency; rows.cuh says how the shape follows.
//
// Grid: one block of 256 threads per row. x [rows, width] is FP32, out is [rows, width].

extern "C" __global__ void __launch_bounds__(256) quantize_bf16(const float* x, u32 width, u16* out) {
    store_bf16(PlainRow{row_of(x, width)}, width, out);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) quantize_e4m3(const float* x, u32 width, u8* out, float* scales) {
    quantize_e4m3_row(PlainRow{row_of(x, width)}, width, out, scales);
}

// One scale for all rows, measured beforehand; saturating.
extern "C" __global__ void __launch_bounds__(256) quantize_e4m3_static(
    const float* x, u32 width, const float* scale, u8* out) {
    store_e4m3(PlainRow{row_of(x, width)}, width, *scale, out);
}

// scales [rows, width / 128].
extern "C" __global__ void __launch_bounds__(256) quantize_e4m3_block(
    const float* x, u32 width, u8* out, float* scales) {
    quantize_e4m3_blocks(PlainRow{row_of(x, width)}, width, out, scales);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) quantize_int8(const float* x, u32 width, u8* out, float* scales) {
    quantize_int8_row(PlainRow{row_of(x, width)}, width, out, scales);
}

// scales and sums [rows, width / group], group 32, 64 or 128.
extern "C" __global__ void __launch_bounds__(256) quantize_int8_group(
    const float* x, u32 width, u32 group, u8* out, float* scales, float* sums) {
    quantize_int8_groups(PlainRow{row_of(x, width)}, width, group, out, scales, sums);
}

// A row with zeros in the places of its outlier columns. `flags` has one byte per column, not zero for outliers: one
// 32-bit read from shared memory, the same bank for no two lanes, covers a float4.
struct RestRow {
    const float* x;
    const unsigned char* flags;
    __device__ __forceinline__ float4 at(u32 i) const {
        const float4 v = float4_at(x, i);
        const u32 out = reinterpret_cast<const u32*>(flags)[i];
        return make_float4(out & 0xff ? 0.0f : v.x, out & 0xff00 ? 0.0f : v.y, out & 0xff0000 ? 0.0f : v.z,
                           out & 0xff000000 ? 0.0f : v.w);
    }
};

// INT8 with the outlier columns split off (LLM.int8, Dettmers et al. 2022): they are zero in the codes and do not count for
// the row's scale, and go to picked [rows, picked_width] as BF16, zeros behind the last (a product of BF16 wants a width
// of its own). columns [count] are different from each other, count is at most picked_width and 256.
// Dynamic shared memory: width bytes.
extern "C" __global__ void __launch_bounds__(256) quantize_int8_outliers(
    const float* x, u32 width, const u32* columns, u32 count, u8* out, float* scales, u16* picked,
    u32 picked_width) {
    DYN_SMEM(flags);
    for (u32 i = threadIdx.x; i < width / 4; i += ROW_THREADS) {
        reinterpret_cast<u32*>(flags)[i] = 0;
    }
    __syncthreads();
    const float* row = row_of(x, width);
    u16* row_picked = picked + (u64)blockIdx.x * picked_width;
    for (u32 i = threadIdx.x; i < picked_width; i += ROW_THREADS) {
        float value = 0.0f;
        if (i < count) {
            flags[columns[i]] = 1;
            value = row[columns[i]];
        }
        row_picked[i] = (u16)pack_bf16x2(value, 0.0f);
    }
    __syncthreads();
    quantize_int8_row(RestRow{row, flags}, width, out, scales);
}
