// What comes behind a product: rows of an unscaled product of cuBLASLt, or the parts of a product whose k was split, become
// FP32 values with scales, bias and the residual.
//
// Bound by bytes: 4 read and 4 written per value (12 with the residual), 158 us for 2048 x 28672 (modelled). 256 threads
// with 4 values each at a time, all of it in 16-byte pieces: 8 blocks per SM (32 registers) have 32 KB and more in flight,
// of the 15.2 KB that are wanted. Stores of 4 bytes, 16 apart within a warp, would write every sector four times: 325 us
// (measured on an H100 80GB HBM3). Rows that do not start at multiples of 16 bytes take one value per thread.

// One value's way out.
DEV void epilogue_store(float* out, const float* bias, u64 at, u32 column, u32 add, float value) {
    if (bias != nullptr) {
        value += bias[column];
    }
    out[at] = add ? out[at] + value : value;
}

// Products in memory, `pitch` values from row to row, a multiple of four.
struct ProductInt32 {
    const int* values;
    u32 pitch;
    __device__ __forceinline__ float at(u32 row, u32 column) const {
        return (float)values[(u64)row * pitch + column];
    }
    __device__ __forceinline__ float4 four_at(u32 row, u32 column) const {
        const int4 w = reinterpret_cast<const int4*>(values)[((u64)row * pitch + column) / 4];
        return make_float4((float)w.x, (float)w.y, (float)w.z, (float)w.w);
    }
};
struct ProductF32 {
    const float* values;
    u32 pitch;
    __device__ __forceinline__ float at(u32 row, u32 column) const {
        return values[(u64)row * pitch + column];
    }
    __device__ __forceinline__ float4 four_at(u32 row, u32 column) const {
        return reinterpret_cast<const float4*>(values)[((u64)row * pitch + column) / 4];
    }
};

// Grid: y = rows, x = any number of blocks over a row. Null scales are one. Scaled values are rounded before bias and
// residual are added.
template <class Product>
DEV void scale_rows(const Product& product, float* out, const float* row_scales, const float* column_scales,
                    const float* bias, u32 n, u32 add) {
    const u32 row = blockIdx.y;
    const float row_scale = row_scales != nullptr ? row_scales[row] : 1.0f;
    const u32 first = blockIdx.x * 256 + threadIdx.x, stride = gridDim.x * 256;
    if (n % 4 != 0) {
        for (u32 column = first; column < n; column += stride) {
            const float scale = column_scales != nullptr ? row_scale * column_scales[column] : row_scale;
            const float value = __fmul_rn(product.at(row, column), scale);
            epilogue_store(out, bias, (u64)row * n + column, column, add, value);
        }
        return;
    }
    float4* to = reinterpret_cast<float4*>(out) + (u64)row * (n / 4);
    for (u32 i = first; i < n / 4; i += stride) {
        // All that is read is on its way before any of it is used.
        float4 v = product.four_at(row, 4 * i), scale = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        float4 more = make_float4(0.0f, 0.0f, 0.0f, 0.0f), before = more;
        if (column_scales != nullptr) {
            scale = reinterpret_cast<const float4*>(column_scales)[i];
        }
        if (bias != nullptr) {
            more = reinterpret_cast<const float4*>(bias)[i];
        }
        if (add) {
            before = to[i];
        }
        v.x = __fmul_rn(v.x, row_scale * scale.x), v.y = __fmul_rn(v.y, row_scale * scale.y);
        v.z = __fmul_rn(v.z, row_scale * scale.z), v.w = __fmul_rn(v.w, row_scale * scale.w);
        if (bias != nullptr) {
            v = make_float4(v.x + more.x, v.y + more.y, v.z + more.z, v.w + more.w);
        }
        if (add) {
            v = make_float4(before.x + v.x, before.y + v.y, before.z + v.z, before.w + v.w);
        }
        to[i] = v;
    }
}

extern "C" __global__ void __launch_bounds__(256, 8) scale_store_int32(
    float* out, const int* product, const float* row_scales, const float* column_scales, const float* bias, u32 n,
    u32 pitch, u32 add) {
    grid_start();
    scale_rows(ProductInt32{product, pitch}, out, row_scales, column_scales, bias, n, add);
}

extern "C" __global__ void __launch_bounds__(256, 8) scale_store_f32(
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
