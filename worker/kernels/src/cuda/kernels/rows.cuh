// Rows of FP32 activations and the forms that products take them in: norm.cu and quantize.cu, whose rows are short enough to
// be walked again, and the parts of it that activation.cu needs too.
//
//   source (plain, normed)  ->  float4 i of the row  ->  FP32, BF16, E4M3 or INT8 with scales
//
// What bounds these kernels: bytes when there are many rows (4 to 8 read, 1 to 4 written per value, some ten instructions
// between), latency when there are few. The shape follows: one block of 256 threads per row, so that a decode step of
// few rows spreads over as many multiprocessors; each thread takes every 256th float4, so that a warp reads 512
// consecutive bytes by one request and writes whole sectors. A row is walked two or three times (sum of squares, largest
// magnitude, codes): again from L1, which holds the rows of all resident blocks (16 KiB for 4096 values), so that any
// width works and registers stay free for eight blocks per multiprocessor.
//
// The formulas are those of the CPU backend: scale = max(absmax / largest code, 1e-12), code = round(v * (1 / scale)),
// ties to even. Division is IEEE division here (no fast math), so codes and scales are the CPU's wherever the values
// are.
//
// Shapes: width is a multiple of 4, rows of values start at multiples of 16 bytes. Rows of codes are `pitch` codes apart, a
// multiple of 4 and at least width; zeros fill what is behind width, as products want a length of their own. The grid is
// one block per row.

constexpr u32 ROW_THREADS = 256;
constexpr u32 ROW_WARPS = ROW_THREADS / 32;
// Keeps a row of zeros from dividing by zero.
constexpr float SMALLEST_SCALE = 1e-12f;
constexpr float E4M3_LARGEST = 448.0f;
constexpr float INT8_LARGEST = 127.0f;

// ------------------------------------------------------------------------------------------------ sums over a block

// The sum over the block, in every thread, always added in the same order. All threads call it, once per kernel: the
// place of the partial sums is not guarded against a second call.
DEV float block_sum(float v) {
    __shared__ float parts[ROW_WARPS];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = v;
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (u32 warp = 0; warp < ROW_WARPS; warp++) {
        sum += parts[warp];
    }
    return sum;
}

// The largest over the block of values that are not negative; otherwise as block_sum.
DEV float block_max(float v) {
    __shared__ float parts[ROW_WARPS];
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = v;
    }
    __syncthreads();
    float top = 0.0f;
#pragma unroll
    for (u32 warp = 0; warp < ROW_WARPS; warp++) {
        top = fmaxf(top, parts[warp]);
    }
    return top;
}

// --------------------------------------------------------------------------------------------------------- sources
// A source gives float4 i of its row: at(i). The gated activation's is in activation.cu.

// The block's row of a matrix.
DEV const float* row_of(const float* x, u32 width) {
    return x + (u64)blockIdx.x * width;
}

DEV float4 float4_at(const float* row, u32 i) {
    return reinterpret_cast<const float4*>(row)[i];
}

struct PlainRow {
    const float* x;
    __device__ __forceinline__ float4 at(u32 i) const {
        return float4_at(x, i);
    }
};

// x * factor * gain, in this order, with factor = 1 / sqrt(mean(x^2) + epsilon) (RMSNorm, Zhang and Sennrich 2019).
struct NormedRow {
    const float* x;
    const float* gain;
    float factor;
    __device__ __forceinline__ float4 at(u32 i) const {
        const float4 v = float4_at(x, i);
        const float4 g = float4_at(gain, i);
        return make_float4(v.x * factor * g.x, v.y * factor * g.y, v.z * factor * g.z, v.w * factor * g.w);
    }
};

// Reads the row once for its sum of squares; all threads call it.
DEV NormedRow normed_row(const float* x, const float* gain, u32 width, float epsilon) {
    const float* row = row_of(x, width);
    float sum = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < width / 4; i += ROW_THREADS) {
        const float4 v = float4_at(row, i);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    const float mean = block_sum(sum) / (float)width;
    return NormedRow{row, gain, 1.0f / sqrtf(mean + epsilon)};
}

// ----------------------------------------------------------------------------------------------------------- codes

DEV float absmax4(float4 v) {
    return fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
}

DEV uint2 bf16x4(float4 v) {
    return make_uint2(pack_bf16x2(v.x, v.y), pack_bf16x2(v.z, v.w));
}

// Saturating; NaN stays NaN, so that a damaged activation shows in the logits.
DEV u32 e4m3x4(float4 v, float inverse) {
    const u32 lo = pack_e4m3x2(v.x * inverse, v.y * inverse);
    const u32 hi = pack_e4m3x2(v.z * inverse, v.w * inverse);
    return lo | hi << 16;
}

// The scale keeps codes within -127..127; NaN becomes 0.
DEV u32 int8x4(float4 v, float inverse) {
    const int a = __float2int_rn(v.x * inverse);
    const int b = __float2int_rn(v.y * inverse);
    const int c = __float2int_rn(v.z * inverse);
    const int d = __float2int_rn(v.w * inverse);
    const u32 lo = ((u32)a & 0xff) | ((u32)b & 0xff) << 8;
    const u32 hi = ((u32)c & 0xff) | ((u32)d & 0xff) << 8;
    return lo | hi << 16;
}

DEV float scale_of(float absmax, float largest) {
    return fmaxf(absmax / largest, SMALLEST_SCALE);
}

// ----------------------------------------------------------------------------------------- whole rows: one scale each

// Float4 i, or zeros behind the row's end.
template <class Row>
DEV float4 padded_at(const Row& row, u32 i, u32 width) {
    return i < width / 4 ? row.at(i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// The block's row of codes.
template <class Word, class Code>
DEV Word* words_of(Code* codes, u32 pitch) {
    return reinterpret_cast<Word*>(codes + (u64)blockIdx.x * pitch);
}

template <class Row>
DEV void store_f32(float* out, const Row& row, u32 width) {
    float4* to = words_of<float4>(out, width);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < width / 4; i += ROW_THREADS) {
        to[i] = row.at(i);
    }
}

template <class Row>
DEV void store_bf16(u16* codes, const Row& row, u32 width, u32 pitch) {
    uint2* to = words_of<uint2>(codes, pitch);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < pitch / 4; i += ROW_THREADS) {
        to[i] = bf16x4(padded_at(row, i, width));
    }
}

template <class Row>
DEV float row_absmax(const Row& row, u32 width) {
    float top = 0.0f;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < width / 4; i += ROW_THREADS) {
        top = fmaxf(top, absmax4(row.at(i)));
    }
    return block_max(top);
}

// With a scale that was measured beforehand: larger values saturate.
template <class Row>
DEV void store_e4m3(u8* codes, float scale, const Row& row, u32 width, u32 pitch) {
    const float inverse = 1.0f / scale;
    u32* to = words_of<u32>(codes, pitch);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < pitch / 4; i += ROW_THREADS) {
        to[i] = e4m3x4(padded_at(row, i, width), inverse);
    }
}

template <class Row>
DEV void quantize_e4m3_row(u8* codes, float* scales, const Row& row, u32 width, u32 pitch) {
    const float scale = scale_of(row_absmax(row, width), E4M3_LARGEST);
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = scale;
    }
    store_e4m3(codes, scale, row, width, pitch);
}

template <class Row>
DEV void quantize_int8_row(u8* codes, float* scales, const Row& row, u32 width, u32 pitch) {
    const float scale = scale_of(row_absmax(row, width), INT8_LARGEST);
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = scale;
    }
    const float inverse = 1.0f / scale;
    u32* to = words_of<u32>(codes, pitch);
#pragma unroll 4
    for (u32 i = threadIdx.x; i < pitch / 4; i += ROW_THREADS) {
        to[i] = int8x4(padded_at(row, i, width), inverse);
    }
}

// ------------------------------------------------------------------------------ blocks of a row: one scale each

// One scale per 128 values, which a warp holds: a shuffle's work, no barrier (DeepSeek-V3, 2024, section 3.3). Width is a
// multiple of 128.
template <class Row>
DEV void quantize_e4m3_blocks(u8* codes, float* scales, const Row& row, u32 width) {
    u32* to = words_of<u32>(codes, width);
    float* row_scales = scales + (u64)blockIdx.x * (width / 128);
    // Whole warps: width is a multiple of 128.
    for (u32 i = threadIdx.x; i < width / 4; i += ROW_THREADS) {
        const float4 v = row.at(i);
        const float scale = scale_of(warp_max(absmax4(v)), E4M3_LARGEST);
        if (i % 32 == 0) {
            row_scales[i / 32] = scale;
        }
        to[i] = e4m3x4(v, 1.0f / scale);
    }
}
