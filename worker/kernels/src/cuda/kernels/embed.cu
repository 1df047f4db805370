// Rows of an embedding into the residual, dequantized: out[r] = table[tokens[r]].
//
// Bound by latency: a row is a few KiB of codes from anywhere in the table. One block of 256 threads per row; a thread
// makes four values, so that the FP32 row leaves as 16-byte stores of a warp's consecutive 512 bytes, and a row of 4096 has
// all its loads in flight at once.
//
// The table lies as products read it (layout.rs), since a tied one is the logits' weight too. The formulas are those of
// HostWeight::dequantize_row, product by product in FP32: the values are the CPU's, bit by bit.
//
// A table may be a part of the vocabulary, of `vocab` tokens from `first` on, where several devices hold it together.
//
// Grid: one block per row. out [rows, width] is FP32, width a multiple of 4. A token that is not in the table gives a row of
// `missing`: NaN, which sampling reports, or zero, to which another device adds the row; nothing outside the table is read.

constexpr u32 EMBED_THREADS = 256;

// A row of `missing` where the table has none. Tokens before the first one wrap to rows far beyond it.
DEV bool is_in_table(float* out, u32 row, u32 vocab, u32 width, float missing) {
    if (row < vocab) {
        return true;
    }
    for (u32 i = threadIdx.x; i < width / 4; i += EMBED_THREADS) {
        reinterpret_cast<float4*>(out)[i] = make_float4(missing, missing, missing, missing);
    }
    return false;
}

DEV float* embed_out(float* out, u32 width) {
    return out + (u64)blockIdx.x * width;
}

// table [vocab, pitch] of BF16.
extern "C" __global__ void __launch_bounds__(256) embed_bf16(
    float* out, const u32* tokens, const u16* table, u32 vocab, u32 first, float missing,
    u32 width, u32 pitch) {
    grid_start();
    float* to = embed_out(out, width);
    const u32 row = tokens[blockIdx.x] - first;
    if (!is_in_table(to, row, vocab, width, missing)) {
        return;
    }
    const uint2* from = reinterpret_cast<const uint2*>(table + (u64)row * pitch);
    for (u32 i = threadIdx.x; i < width / 4; i += EMBED_THREADS) {
        const uint2 v = from[i];
        reinterpret_cast<float4*>(to)[i] = make_float4(bf16_lo(v.x), bf16_hi(v.x), bf16_lo(v.y), bf16_hi(v.y));
    }
}

// codes [vocab, pitch] of E4M3, scales [vocab].
extern "C" __global__ void __launch_bounds__(256) embed_e4m3(
    float* out, const u32* tokens, const u8* codes, const float* scales, u32 vocab, u32 first, float missing,
    u32 width, u32 pitch) {
    grid_start();
    float* to = embed_out(out, width);
    const u32 row = tokens[blockIdx.x] - first;
    if (!is_in_table(to, row, vocab, width, missing)) {
        return;
    }
    const u32* from = reinterpret_cast<const u32*>(codes + (u64)row * pitch);
    const float scale = scales[row];
    for (u32 i = threadIdx.x; i < width / 4; i += EMBED_THREADS) {
        float v[4];
        e4m3x4_to_f32(from[i], v);
        reinterpret_cast<float4*>(to)[i] = make_float4(scale * v[0], scale * v[1], scale * v[2], scale * v[3]);
    }
}

// codes [vocab, pitch] of E4M3, scales [vocab, width / 128].
extern "C" __global__ void __launch_bounds__(256) embed_e4m3_block(
    float* out, const u32* tokens, const u8* codes, const float* scales, u32 vocab, u32 first, float missing,
    u32 width, u32 pitch) {
    grid_start();
    float* to = embed_out(out, width);
    const u32 row = tokens[blockIdx.x] - first;
    if (!is_in_table(to, row, vocab, width, missing)) {
        return;
    }
    const u32* from = reinterpret_cast<const u32*>(codes + (u64)row * pitch);
    const float* row_scales = scales + (u64)row * (width / 128);
    for (u32 i = threadIdx.x; i < width / 4; i += EMBED_THREADS) {
        float v[4];
        e4m3x4_to_f32(from[i], v);
        const float scale = row_scales[i / 32];
        reinterpret_cast<float4*>(to)[i] = make_float4(scale * v[0], scale * v[1], scale * v[2], scale * v[3]);
    }
}

// codes [vocab, pitch] of INT8, scales [vocab].
extern "C" __global__ void __launch_bounds__(256) embed_int8(
    float* out, const u32* tokens, const u8* codes, const float* scales, u32 vocab, u32 first, float missing,
    u32 width, u32 pitch) {
    grid_start();
    float* to = embed_out(out, width);
    const u32 row = tokens[blockIdx.x] - first;
    if (!is_in_table(to, row, vocab, width, missing)) {
        return;
    }
    const u32* from = reinterpret_cast<const u32*>(codes + (u64)row * pitch);
    const float scale = scales[row];
    for (u32 i = threadIdx.x; i < width / 4; i += EMBED_THREADS) {
        const u32 v = from[i];
        reinterpret_cast<float4*>(to)[i] =
            make_float4(scale * (float)(signed char)(v & 0xff), scale * (float)(signed char)(v >> 8 & 0xff),
                        scale * (float)(signed char)(v >> 16 & 0xff), scale * (float)(signed char)(v >> 24));
    }
}

// ------------------------------------------------------------------------------------------------ group-wise tables
// Strips of 32 rows x units of 32 inputs (layout.rs): a unit has 512 bytes per plane of nibbles, one plane for 4-bit
// codes, a second with the upper nibbles for 8-bit ones. A word holds eight inputs of a row: input i at bit
// 4 (i / 2) + 16 (i % 2).

constexpr u32 STRIP_ROWS = 32;
constexpr u32 UNIT_INPUTS = 32;
constexpr u32 PLANE_BYTES = 512;

// Of 64 bytes of a plane a row has every fourth word, so a row's sectors are read for a quarter of what is in them: with 8-bit
// codes as many bytes as the FP32 row has. 43 us for 2048 rows of 4096 when each thread wrote two halves of sectors (measured
// on an H100 80GB HBM3); 25 us are modelled for whole sectors both ways.

// The word within a plane of inputs 8 q .. 8 q + 7 of a unit.
DEV u32 plane_word(u32 row, u32 q) {
    return (row % 8 * 4 + q) * 4 + row % STRIP_ROWS / 8;
}

DEV u32 nibble(u32 word, u32 i) {
    return word >> (4 * (i / 2) + 16 * (i % 2)) & 15;
}

// FP16 scale and minimum of a group lie in 128 bytes per strip and group: the scale at this byte, the minimum 8 behind.
DEV u32 group_scale_at(u32 row) {
    return row % 8 * 16 + row % STRIP_ROWS / 8 * 2;
}

DEV float half_at(const u8* at) {
    float v[2];
    f16x2_to_f32(__ldg(reinterpret_cast<const u16*>(at)), v);
    return v[0];
}

// out = row_scale * (scale * code + min). codes and group_scales as above, row_scales [vocab]. planes: 1 for 4-bit codes, 2
// for 8-bit ones. width is a multiple of group, group of 32.
extern "C" __global__ void __launch_bounds__(256) embed_grouped(
    float* out, const u32* tokens, const u8* codes, const u8* group_scales, const float* row_scales, u32 vocab, u32 first,
    float missing, u32 width, u32 group, u32 planes) {
    grid_start();
    float* to = embed_out(out, width);
    const u32 row = tokens[blockIdx.x] - first;
    if (!is_in_table(to, row, vocab, width, missing)) {
        return;
    }
    const u64 strip = row / STRIP_ROWS;
    const float row_scale = row_scales[row];
    float4* values = reinterpret_cast<float4*>(to);
    // Loads that do not wait for the stores before them.
#pragma unroll 4
    for (u32 i = threadIdx.x; i < width / 4; i += EMBED_THREADS) {
        // The upper half of a word for odd i.
        const u32 eight = i / 2, half = i % 2 * 8;
        const u64 unit = strip * (width / UNIT_INPUTS) + eight / 4;
        const u8* plane = codes + unit * PLANE_BYTES * planes + plane_word(row, eight % 4) * 4;
        const u32 low = __ldg(reinterpret_cast<const u32*>(plane)) >> half;
        const u32 high = planes == 2 ? __ldg(reinterpret_cast<const u32*>(plane + PLANE_BYTES)) >> half : 0;
        const u8* scales = group_scales + (strip * (width / group) + eight * 8 / group) * 128 + group_scale_at(row);
        const float scale = half_at(scales);
        const float min = half_at(scales + 8);
        float v[4];
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const float code = (float)(nibble(low, j) | nibble(high, j) << 4);
            // Not fused, as the definition is not.
            v[j] = row_scale * __fadd_rn(__fmul_rn(scale, code), min);
        }
        values[i] = make_float4(v[0], v[1], v[2], v[3]);
    }
}
