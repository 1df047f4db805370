// What comes behind a product: rows of an unscaled product of cuBLASLt, or the parts of a product whose k was split, become
// FP32 values with scales, bias and the residual.
//
// Bound by bytes: 4 read and 4 written per value (12 with the residual). 256 threads with 4 values each at a time in
// 16-byte pieces: 8 blocks per SM (about 30 registers) have 32 KB and more in flight, of the 15.2 KB that are wanted.

// One value's way out.
DEV void epilogue_store(float* out, const float* bias, u64 at, u32 column, u32 add, float value) {
    if (bias != nullptr) {
        value += bias[column];
    }
    out[at] = add ? out[at] + value : value;
}

// Grid: y = rows, x = any number of blocks over a row. `pitch` values from row to row of the product. Null scales are one.
template <class Product>
DEV void scale_rows(const Product& product, float* out, const float* row_scales, const float* column_scales,
                    const float* bias, u32 n, u32 add) {
    const u32 row = blockIdx.y;
    const float row_scale = row_scales != nullptr ? row_scales[row] : 1.0f;
    for (u32 column = (blockIdx.x * 256 + threadIdx.x) * 4; column < n; column += gridDim.x * 1024) {
        float values[4];
        product.load(row, column, values);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            if (column + i < n) {
                const float scale = column_scales != nullptr ? row_scale * column_scales[column + i] : row_scale;
                epilogue_store(out, bias, (u64)row * n + column + i, column + i, add, values[i] * scale);
            }
        }
    }
}

// Products in memory, rows padded to a multiple of four values (`pitch`).
struct ProductInt32 {
    const int* values;
    u32 pitch;
    __device__ __forceinline__ void load(u32 row, u32 column, float (&v)[4]) const {
        const uint4 w = *reinterpret_cast<const uint4*>(values + (u64)row * pitch + column);
        v[0] = (float)(int)w.x, v[1] = (float)(int)w.y, v[2] = (float)(int)w.z, v[3] = (float)(int)w.w;
    }
};
struct ProductF32 {
    const float* values;
    u32 pitch;
    __device__ __forceinline__ void load(u32 row, u32 column, float (&v)[4]) const {
        const float4 w = *reinterpret_cast<const float4*>(values + (u64)row * pitch + column);
        v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
    }
};

extern "C" __global__ void __launch_bounds__(256) scale_store_int32(
    float* out, const int* product, const float* row_scales, const float* column_scales, const float* bias, u32 n,
    u32 pitch, u32 add) {
    grid_start();
    scale_rows(ProductInt32{product, pitch}, out, row_scales, column_scales, bias, n, add);
}

extern "C" __global__ void __launch_bounds__(256) scale_store_f32(
    float* out, const float* product, const float* row_scales, const float* column_scales, const float* bias, u32 n,
    u32 pitch, u32 add) {
    grid_start();
    scale_rows(ProductF32{product, pitch}, out, row_scales, column_scales, bias, n, add);
}

// Adds the parts [splits, m, n] of a product up, always in the same order: a row's result does not depend on which block
// came first. Grid: y = m, x = any number of blocks over a row.
extern "C" __global__ void __launch_bounds__(256) linear_reduce(
    float* out, const float* partial, const float* bias, u32 n, u32 splits, u32 add) {
    grid_start();
    const u32 row = blockIdx.y, m = gridDim.y;
    for (u32 column = blockIdx.x * 256 + threadIdx.x; column < n; column += gridDim.x * 256) {
        float sum = 0.0f;
        for (u32 split = 0; split < splits; split++) {
            sum += partial[((u64)split * m + row) * n + column];
        }
        epilogue_store(out, bias, (u64)row * n + column, column, add, sum);
    }
}
