// The gated activation silu(gate) * up, alone and fused with the quantization of what the down projection reads.
//
// Bound by bytes when there are many rows: 8 read per value, 1 to 4 written, 90 us for 2048 rows of 14336 as bytes
// (modelled). Bound by latency when there are few: a row is one block, which reads 112 KiB for 14336 values.
//
//   - A thread has a batch of loads, 224 bytes, in flight before it uses the first, so that such a row takes two round
//     trips and not fourteen. Two blocks per SM have more bytes in flight so than their eight times as many threads would.
//   - The forms with a dynamic scale keep the activation in registers between the largest magnitude and the codes: 56
//     values a thread, rows of 14336 values. What is behind them is read and computed twice. Reading all twice took 171 us
//     for 2048 rows (measured on an H100 80GB HBM3): a row is 112 KiB, neither L1 nor L2 hold those of all resident blocks.
//
// Grid: one block of 256 threads per row. x [rows, 2 width] is FP32, gates first; codes [rows, pitch] or, where no pitch is
// given, [rows, width].

// Float4s that a thread reads of gates and of ups, each, before it uses any.
#define SILU_BATCH 7
// Batches that a thread keeps.
#define SILU_KEPT 2
// Blocks of an SM: what its registers have room for.
#define SILU_BLOCKS 2
// The same of the kernels that keep nothing.
#define SILU_STREAM_BLOCKS 3

// x * sigmoid(x), some 4 ulp off. Beyond -88 the exponential would leave FP32's range; the result is nearly zero there.
DEV float silu(float x) {
    return __fdividef(x, 1.0f + __expf(fminf(-x, 88.0f)));
}

// silu(gate) * up, the two halves of a row of twice the width (SwiGLU, Shazeer 2020).
struct GatedRow {
    const float* gate;
    const float* up;
    u32 width;

    // Float4s first, first + 256 ..., zeros behind the row's end.
    __device__ __forceinline__ void batch(u32 first, float4 (&v)[SILU_BATCH]) const {
        const float4 zeros = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float4* gates = reinterpret_cast<const float4*>(gate) + first;
        const float4* ups = reinterpret_cast<const float4*>(up) + first;
        float4 g[SILU_BATCH], u[SILU_BATCH];
#pragma unroll
        for (u32 j = 0; j < SILU_BATCH; j++) {
            const bool inside = first + j * ROW_THREADS < width / 4;
            g[j] = inside ? gates[j * ROW_THREADS] : zeros;
            u[j] = inside ? ups[j * ROW_THREADS] : zeros;
        }
#pragma unroll
        for (u32 j = 0; j < SILU_BATCH; j++) {
            v[j] = make_float4(silu(g[j].x) * u[j].x, silu(g[j].y) * u[j].y, silu(g[j].z) * u[j].z,
                               silu(g[j].w) * u[j].w);
        }
    }
};

DEV GatedRow gated_row(const float* x, u32 width) {
    const float* row = row_of(x, 2 * width);
    return GatedRow{row, row + width, width};
}

// The first of a thread's float4s in batch b.
DEV u32 batch_start(u32 b) {
    return b * SILU_BATCH * ROW_THREADS + threadIdx.x;
}

// The block's row, made word by word of float4s: `words` of them.
template <class Word, class Make>
DEV void store_batch(Word* to, u32 first, u32 words, const float4 (&v)[SILU_BATCH], Make make) {
#pragma unroll
    for (u32 j = 0; j < SILU_BATCH; j++) {
        if (first + j * ROW_THREADS < words) {
            (to + first)[j * ROW_THREADS] = make(v[j]);
        }
    }
}

// From batch b on.
template <class Word, class Make>
DEV void store_gated(Word* to, u32 b, u32 words, const GatedRow& row, Make make) {
    for (u32 first = batch_start(b); first < words; first += SILU_BATCH * ROW_THREADS) {
        float4 v[SILU_BATCH];
        row.batch(first, v);
        store_batch(to, first, words, v, make);
    }
}

DEV float batch_absmax(const float4 (&v)[SILU_BATCH]) {
    float top = 0.0f;
#pragma unroll
    for (u32 j = 0; j < SILU_BATCH; j++) {
        top = fmaxf(top, absmax4(v[j]));
    }
    return top;
}

// Codes of the block's row, by make(float4, 1 / scale), with a scale of its largest magnitude.
template <class Make>
DEV void quantize_gated(u8* codes, float* scales, const GatedRow& row, u32 pitch, float largest, Make make) {
    float4 kept[SILU_KEPT][SILU_BATCH];
    float top = 0.0f;
#pragma unroll
    for (u32 b = 0; b < SILU_KEPT; b++) {
        row.batch(batch_start(b), kept[b]);
        top = fmaxf(top, batch_absmax(kept[b]));
    }
    for (u32 first = batch_start(SILU_KEPT); first < row.width / 4; first += SILU_BATCH * ROW_THREADS) {
        float4 v[SILU_BATCH];
        row.batch(first, v);
        top = fmaxf(top, batch_absmax(v));
    }
    const float scale = scale_of(block_max(top), largest);
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = scale;
    }
    const float inverse = 1.0f / scale;
    const auto word = [=](float4 v) { return make(v, inverse); };
    u32* to = words_of<u32>(codes, pitch);
#pragma unroll
    for (u32 b = 0; b < SILU_KEPT; b++) {
        store_batch(to, batch_start(b), pitch / 4, kept[b], word);
    }
    store_gated(to, SILU_KEPT, pitch / 4, row, word);
}

// out [rows, width].
extern "C" __global__ void __launch_bounds__(256, SILU_STREAM_BLOCKS) gated_silu(float* out, const float* x, u32 width) {
    grid_start();
    store_gated(words_of<float4>(out, width), 0, width / 4, gated_row(x, width), [](float4 v) { return v; });
}

extern "C" __global__ void __launch_bounds__(256, SILU_STREAM_BLOCKS) silu_quantize_bf16(
    u16* codes, const float* x, u32 width, u32 pitch) {
    grid_start();
    store_gated(words_of<uint2>(codes, pitch), 0, pitch / 4, gated_row(x, width), [](float4 v) { return bf16x4(v); });
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256, SILU_BLOCKS) silu_quantize_e4m3(
    u8* codes, float* scales, const float* x, u32 width, u32 pitch) {
    grid_start();
    const auto make = [](float4 v, float inverse) { return e4m3x4(v, inverse); };
    quantize_gated(codes, scales, gated_row(x, width), pitch, E4M3_LARGEST, make);
}

// One scale for all rows, measured beforehand: an input; saturating.
extern "C" __global__ void __launch_bounds__(256, SILU_STREAM_BLOCKS) silu_quantize_e4m3_static(
    u8* codes, const float* scale, const float* x, u32 width, u32 pitch) {
    grid_start();
    const float inverse = 1.0f / *scale;
    store_gated(words_of<u32>(codes, pitch), 0, pitch / 4, gated_row(x, width),
                [=](float4 v) { return e4m3x4(v, inverse); });
}

// scales [rows, width / 128].
extern "C" __global__ void __launch_bounds__(256, SILU_STREAM_BLOCKS) silu_quantize_e4m3_block(
    u8* codes, float* scales, const float* x, u32 width) {
    grid_start();
    const GatedRow row = gated_row(x, width);
    u32* to = words_of<u32>(codes, width);
    float* row_scales = scales + (u64)blockIdx.x * (width / 128);
    for (u32 first = threadIdx.x; first < width / 4; first += SILU_BATCH * ROW_THREADS) {
        float4 v[SILU_BATCH];
        row.batch(first, v);
#pragma unroll
        for (u32 j = 0; j < SILU_BATCH; j++) {
            // Whole warps: width is a multiple of 128.
            const u32 i = first + j * ROW_THREADS;
            if (i < width / 4) {
                const float scale = scale_of(warp_max(absmax4(v[j])), E4M3_LARGEST);
                if (i % 32 == 0) {
                    row_scales[i / 32] = scale;
                }
                to[i] = e4m3x4(v[j], 1.0f / scale);
            }
        }
    }
}

// scales [rows].
extern "C" __global__ void __launch_bounds__(256, SILU_BLOCKS) silu_quantize_int8(
    u8* codes, float* scales, const float* x, u32 width, u32 pitch) {
    grid_start();
    const auto make = [](float4 v, float inverse) { return int8x4(v, inverse); };
    quantize_gated(codes, scales, gated_row(x, width), pitch, INT8_LARGEST, make);
}
