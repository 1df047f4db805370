// Plain FP32 rows into the forms that products take: for inputs that neither a norm nor the gated activation precedes
// (the attention's output), and for weights whose outlier columns are kept apart.
//
// Bound by bytes (4 read, 1 or 2 written per value) or, with few rows, by latency; rows.cuh says how the shape follows.
//
// Grid: one block of 256 threads per row. x [rows, width] is FP32, codes [rows, pitch] or, where no pitch is given,
// [rows, width].

extern "C" __global__ void __launch_bounds__(256) quantize_bf16(
    u16* codes, const float* x, u32 width, u32 pitch) {
    grid_start();
    store_bf16(codes, PlainRow{row_of(x, width)}, width, pitch);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) quantize_e4m3(
    u8* codes, float* scales, const float* x, u32 width, u32 pitch) {
    grid_start();
    quantize_e4m3_row(codes, scales, PlainRow{row_of(x, width)}, width, pitch);
}

// One scale for all rows, measured beforehand: an input; saturating.
extern "C" __global__ void __launch_bounds__(256) quantize_e4m3_static(
    u8* codes, const float* scale, const float* x, u32 width, u32 pitch) {
    grid_start();
    store_e4m3(codes, *scale, PlainRow{row_of(x, width)}, width, pitch);
}

// scales [rows, width / 128].
extern "C" __global__ void __launch_bounds__(256) quantize_e4m3_block(
    u8* codes, float* scales, const float* x, u32 width) {
    grid_start();
    quantize_e4m3_blocks(codes, scales, PlainRow{row_of(x, width)}, width);
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256) quantize_int8(
    u8* codes, float* scales, const float* x, u32 width, u32 pitch) {
    grid_start();
    quantize_int8_row(codes, scales, PlainRow{row_of(x, width)}, width, pitch);
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
// the row's scale, and go to picked [rows, picked_pitch] as BF16, zeros behind the last. columns [count] are different
// from each other, count is at most picked_pitch.
// Dynamic shared memory: width bytes.
extern "C" __global__ void __launch_bounds__(256) quantize_int8_outliers(
    u8* codes, float* scales, u16* picked, const float* x, const u32* columns, u32 width, u32 pitch, u32 count,
    u32 picked_pitch) {
    grid_start();
    DYN_SMEM(flags);
    for (u32 i = threadIdx.x; i < width / 4; i += ROW_THREADS) {
        reinterpret_cast<u32*>(flags)[i] = 0;
    }
    __syncthreads();
    const float* row = row_of(x, width);
    u16* row_picked = picked + (u64)blockIdx.x * picked_pitch;
    for (u32 i = threadIdx.x; i < picked_pitch; i += ROW_THREADS) {
        float value = 0.0f;
        if (i < count) {
            flags[columns[i]] = 1;
            value = row[columns[i]];
        }
        row_picked[i] = (u16)pack_bf16x2(value, 0.0f);
    }
    __syncthreads();
    quantize_int8_row(codes, scales, RestRow{row, flags}, width, pitch);
}
