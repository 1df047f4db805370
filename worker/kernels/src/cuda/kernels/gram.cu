// Statistics of activations: Gram matrices, and the largest magnitude of columns. Needs tiles.cuh.

// Tile number i of the upper triangle, row by row.
DEV uint2 upper_tile(u32 i, u32 tiles) {
    u32 row = 0;
    while (i >= tiles - row) {
        i -= tiles - row;
        row++;
    }
    return make_uint2(row, row + i);
}

// gram [k, k] += x^T x over `rows` rows of x [rows, k]. The upper triangle is continued, both are valid afterwards.
// Grid: the tiles of the upper triangle, t (t + 1) / 2 for t = k / 128 rounded up.
extern "C" __global__ void __launch_bounds__(256) gram(float* gram, const float* x, u32 rows, u32 k) {
    grid_start();
    __shared__ __align__(16) float left[2][DEPTH][SIDE];
    __shared__ __align__(16) float right[2][DEPTH][SIDE];
    const uint2 tile = upper_tile(blockIdx.x, (k + SIDE - 1) / SIDE);
    const u32 i0 = tile.x * SIDE;
    const u32 j0 = tile.y * SIDE;
    const u32 part_x = threadIdx.x % 16;
    const u32 part_y = threadIdx.x / 16;
    float sums[8][8] = {};

    const u32 slices = (rows + DEPTH - 1) / DEPTH;
    copy_band(left[0], x, rows, k, 0, i0);
    copy_band(right[0], x, rows, k, 0, j0);
    cp_async_commit();
    for (u32 slice = 0; slice < slices; slice++) {
        const u32 now = slice % 2;
        // An empty group behind the last slice keeps the count of what may be unfinished the same.
        if (slice + 1 < slices) {
            copy_band(left[1 - now], x, rows, k, (slice + 1) * DEPTH, i0);
            copy_band(right[1 - now], x, rows, k, (slice + 1) * DEPTH, j0);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
#pragma unroll 4
        for (u32 d = 0; d < DEPTH; d++) {
            float a[8], b[8];
            read_eight(a, left[now][d], part_y);
            read_eight(b, right[now][d], part_x);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
#pragma unroll
                for (u32 j = 0; j < 8; j++) {
                    sums[i][j] += a[i] * b[j];
                }
            }
        }
        // The next copy overwrites this slice.
        __syncthreads();
    }

#pragma unroll
    for (u32 i = 0; i < 8; i++) {
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            const u32 row = i0 + sum_place(part_y, i);
            const u32 column = j0 + sum_place(part_x, j);
            // Below the diagonal nothing is read: the thread of the mirrored element writes both.
            if (row <= column && column < k) {
                const float sum = gram[(u64)row * k + column] + sums[i][j];
                gram[(u64)row * k + column] = sum;
                gram[(u64)column * k + row] = sum;
            }
        }
    }
}

// out[j] = max(out[j], |x[r, j]|) over the rows of x [rows, k]. out holds values that are not negative, whose bits are
// ordered as integers are: the result does not depend on the order of the blocks.
// Grid: (k / 128 rounded up, any number that shares the rows).
extern "C" __global__ void __launch_bounds__(256) column_absmax(float* out, const float* x, u32 rows, u32 k) {
    grid_start();
    __shared__ __align__(16) float tops[8][SIDE];
    const u32 warp = threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32;
    const u32 column = blockIdx.x * SIDE + 4 * lane;
    float4 top = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (column < k) {
#pragma unroll 4
        for (u32 row = blockIdx.y * 8 + warp; row < rows; row += 8 * gridDim.y) {
            const float4 v = *reinterpret_cast<const float4*>(x + (u64)row * k + column);
            top.x = fmaxf(top.x, fabsf(v.x));
            top.y = fmaxf(top.y, fabsf(v.y));
            top.z = fmaxf(top.z, fabsf(v.z));
            top.w = fmaxf(top.w, fabsf(v.w));
        }
    }
    reinterpret_cast<float4*>(tops[warp])[lane] = top;
    __syncthreads();
    if (threadIdx.x < SIDE && blockIdx.x * SIDE + threadIdx.x < k) {
        float most = 0.0f;
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            most = fmaxf(most, tops[i][threadIdx.x]);
        }
        atomicMax(reinterpret_cast<u32*>(out) + blockIdx.x * SIDE + threadIdx.x, __float_as_uint(most));
    }
}
