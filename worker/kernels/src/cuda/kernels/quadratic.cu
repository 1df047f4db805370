// Quadratic forms of changes with a Gram matrix. Needs tiles.cuh.
//
// d G d^T = 2 d H d^T for H = the upper triangle of G with half its diagonal: half the work. A block makes the product of
// 128 rows d with 128 columns of H, multiplies it with d and adds up the row: one partial sum per row and tile of columns.

// Copies columns column .. column + 15 of rows first .. first + 127 to a slice, zeros outside the matrix.
DEV void copy_rows(float (*slice)[SLICE_PITCH], const float* matrix, u32 rows, u32 k, u32 first, u32 column) {
#pragma unroll
    for (u32 part = threadIdx.x; part < SIDE * (DEPTH / 4); part += 256) {
        const u32 row = part / (DEPTH / 4);
        const u32 at = part % (DEPTH / 4) * 4;
        const bool inside = first + row < rows && column + at < k;
        const float* from = inside ? matrix + (u64)(first + row) * k + column + at : matrix;
        cp_async16(&slice[row][at], from, inside);
    }
}

// Eight values of a row of H, from the same of G: none below the diagonal, half on it.
DEV void keep_upper(float (&v)[8], u32 row, u32 column, u32 part) {
#pragma unroll
    for (u32 j = 0; j < 8; j++) {
        const u32 place = column + sum_place(part, j);
        v[j] = place < row ? 0.0f : place == row ? 0.5f * v[j] : v[j];
    }
}

// partials[tile, r] = d_r H[:, tile] . d_r[tile]. delta [rows, k], gram [k, k], of which the upper triangle is read;
// partials [tiles, rows] FP64, tiles = k / 128 rounded up.
// Grid: (tiles, rows / 128 rounded up). The last tiles have the most to do and go first.
extern "C" __global__ void __launch_bounds__(256) quadratic_partials(
    double* partials, const float* delta, const float* gram, u32 rows, u32 k) {
    grid_start();
    __shared__ __align__(16) float left[2][SIDE][SLICE_PITCH];
    __shared__ __align__(16) float right[2][DEPTH][SIDE];
    const u32 tile = gridDim.x - 1 - blockIdx.x;
    const u32 i0 = blockIdx.y * SIDE;
    const u32 j0 = tile * SIDE;
    const u32 part_x = threadIdx.x % 16;
    const u32 part_y = threadIdx.x / 16;
    float sums[8][8] = {};

    const u32 depth = j0 + SIDE < k ? j0 + SIDE : k;
    const u32 slices = (depth + DEPTH - 1) / DEPTH;
    copy_rows(left[0], delta, rows, k, i0, 0);
    copy_band(right[0], gram, k, k, 0, j0);
    cp_async_commit();
    for (u32 slice = 0; slice < slices; slice++) {
        const u32 now = slice % 2;
        if (slice + 1 < slices) {
            copy_rows(left[1 - now], delta, rows, k, i0, (slice + 1) * DEPTH);
            copy_band(right[1 - now], gram, k, k, (slice + 1) * DEPTH, j0);
        }
        cp_async_commit();
        cp_async_wait<1>();
        __syncthreads();
        const bool diagonal = (slice + 1) * DEPTH > j0;
#pragma unroll
        for (u32 d = 0; d < DEPTH; d += 4) {
            float4 a[8];
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                a[i] = *reinterpret_cast<const float4*>(&left[now][sum_place(part_y, i)][d]);
            }
#pragma unroll
            for (u32 e = 0; e < 4; e++) {
                float b[8];
                read_eight(b, right[now][d + e], part_x);
                if (diagonal) {
                    keep_upper(b, slice * DEPTH + d + e, j0, part_x);
                }
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    const float factor = e == 0 ? a[i].x : e == 1 ? a[i].y : e == 2 ? a[i].z : a[i].w;
#pragma unroll
                    for (u32 j = 0; j < 8; j++) {
                        sums[i][j] += factor * b[j];
                    }
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 row = i0 + sum_place(part_y, i);
        float sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < 8; j++) {
            const u32 column = j0 + sum_place(part_x, j);
            sum += row < rows && column < k ? sums[i][j] * delta[(u64)row * k + column] : 0.0f;
        }
        double whole = sum;
#pragma unroll
        for (u32 step = 1; step < 16; step *= 2) {
            whole += __shfl_xor_sync(0xffffffffu, whole, step);
        }
        if (part_x == 0 && row < rows) {
            partials[(u64)tile * rows + row] = whole;
        }
    }
}

// out[r] = 2 * the sum of the row's partial sums, in FP64.
// Grid: rows / 256 rounded up.
extern "C" __global__ void __launch_bounds__(256) quadratic_forms(
    float* out, const double* partials, u32 rows, u32 tiles) {
    grid_start();
    const u32 row = blockIdx.x * 256 + threadIdx.x;
    if (row >= rows) {
        return;
    }
    double sum = 0.0;
    for (u32 tile = 0; tile < tiles; tile++) {
        sum += partials[(u64)tile * rows + row];
    }
    out[row] = (float)(2.0 * sum);
}
