// What calibrated quantization asks of a device (calibrate.rs): Gram matrices, the largest magnitude of columns, what a
// rounding changes, quadratic forms.
//
// gram and quadratic_forms are bound by FP32 arithmetic: products of matrices that must stay FP32, since GPTQ's Cholesky
// factor and AWQ's comparisons of nearly equal errors do not survive TF32. Tiles of 128 x 128 by 256 threads, 8 x 8 sums
// per thread: 16 floats from shared memory for 64 multiply-adds; the next slice of both operands arrives by cp.async
// meanwhile. Only the upper triangle is computed. The other two are bound by bytes: each value is read once or twice.
// Sums have an order of their own, always the same; they differ from the CPU's by FP32 rounding.
//
// Shapes: matrices are row-major FP32, k a multiple of 4.

constexpr u32 SIDE = 128;
constexpr u32 DEPTH = 16;
constexpr u32 QUADS = SIDE / 4;
// Row of a slice whose rows are not its depth: 16 values and 4 that keep the rows of a warp's two reads in different banks.
constexpr u32 SLICE_PITCH = DEPTH + 4;

// A thread's sums: rows 4 y .. and 64 + 4 y .., columns 4 x .. and 64 + 4 x .. of the tile, for x = thread % 16 and
// y = thread / 16: the 16 threads of a row read 256 consecutive bytes, the banks of no two of a phase are the same.
DEV u32 sum_place(u32 part, u32 i) {
    return i / 4 * (SIDE / 2) + 4 * part + i % 4;
}

DEV void read_eight(float (&v)[8], const float* line, u32 part) {
    const float4 a = reinterpret_cast<const float4*>(line)[part];
    const float4 b = reinterpret_cast<const float4*>(line + SIDE / 2)[part];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// Copies rows first .. first + 15 of columns column .. column + 127 to a slice, zeros outside the matrix.
DEV void copy_band(float (*slice)[SIDE], const float* matrix, u32 rows, u32 k, u32 first, u32 column) {
#pragma unroll
    for (u32 part = threadIdx.x; part < DEPTH * QUADS; part += 256) {
        const u32 row = part / QUADS;
        const u32 at = column + part % QUADS * 4;
        const bool inside = first + row < rows && at < k;
        const float* from = inside ? matrix + (u64)(first + row) * k + at : matrix;
        cp_async16(&slice[row][part % QUADS * 4], from, inside);
    }
}

// ------------------------------------------------------------------------------------------------------------- gram

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

// ---------------------------------------------------------------------------------------------------- column absmax

// out[j] = max(out[j], |x[r, j]|) over the rows of x [rows, k]. out holds values that are not negative, whose bits are
// ordered as integers are: the result does not depend on the order of the blocks.
// Grid: (k / 128 rounded up, any number that shares the rows).
extern "C" __global__ void __launch_bounds__(256) column_absmax(float* out, const float* x, u32 rows, u32 k) {
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

// ------------------------------------------------------------------------------------------------- rounding changes
// The definition is rtn/groups.rs's, operation by operation, each rounded on its own: the changes are the CPU's bit by bit.

constexpr u32 SYMMETRIC = 0;
constexpr u32 INTEGER = 1;

// The nearest FP16, as FP32.
DEV float half_of(float v) {
    float out[2];
    f16x2_to_f32(pack_f16x2(v, 0.0f), out);
    return out[0];
}

struct GroupGrid {
    float scale;
    float min;
};

// Scale and minimum of values between low and high: of the symmetric grid w = s (q - 2^(bits-1)), the one with an integer
// zero, or the one with a free minimum.
DEV GroupGrid range_grid(u32 grid, u32 bits, float low, float high) {
    const float top = (float)((1u << bits) - 1);
    const float middle = (float)(1u << (bits - 1));
    if (grid == SYMMETRIC) {
        const float extreme = fabsf(high) > fabsf(low) ? high : low;
        const float scale = half_of(extreme / -middle);
        return GroupGrid{scale, half_of(-middle * scale)};
    }
    if (grid == INTEGER) {
        low = fminf(low, 0.0f);
        high = fmaxf(high, 0.0f);
        const float scale = half_of((high - low) / top);
        const float zero = scale > 0.0f ? fminf(fmaxf(roundf(-low / scale), 0.0f), top) : 0.0f;
        return GroupGrid{scale, half_of(-zero * scale)};
    }
    return GroupGrid{half_of((high - low) / top), half_of(low)};
}

// The power of two at or below a magnitude; 1 for zero.
DEV float magnitude_scale(float magnitude) {
    const u32 bits = __float_as_uint(magnitude) & 0x7f800000u;
    if (bits != 0) {
        return __uint_as_float(bits);
    }
    return magnitude == 0.0f ? 1.0f : __uint_as_float(0x00800000u);
}

// A row of weights and its scales (null: ones).
struct ScaledRow {
    const float* weights;
    const float* scales;
    __device__ __forceinline__ float at(u32 i) const {
        return scales == nullptr ? weights[i] : weights[i] * scales[i];
    }
};

struct Range {
    float low;
    float high;
};

// Warp. The range of a group's values, cut to a part of its largest magnitude.
DEV Range group_range(const ScaledRow& row, u32 first, u32 group, float cut) {
    float low = __uint_as_float(0x7f800000u);
    float high = -low;
    for (u32 i = threadIdx.x % 32; i < group; i += 32) {
        const float v = row.at(first + i);
        low = fminf(low, v);
        high = fmaxf(high, v);
    }
    high = warp_max(high);
    low = -warp_max(-low);
    if (cut < 1.0f) {
        const float limit = fmaxf(high, -low) * cut;
        low = fminf(fmaxf(low, -limit), limit);
        high = fminf(fmaxf(high, -limit), limit);
    }
    return Range{low, high};
}

// changes = Q(W s) / s - W, row by row. weights, changes [rows, k]; scales [k] or null; group divides k; cut in (0, 1].
// Two walks: the row's unit is known only when all its groups' ranges are; the second reads from L1. A warp owns a group:
// its range needs shuffles only.
// Grid: one block per row. Needs rows.cuh.
extern "C" __global__ void __launch_bounds__(256) rounding_changes(
    float* changes, const float* weights, const float* scales, u32 k, u32 bits, u32 group, u32 grid, float cut) {
    const ScaledRow row = {weights + (u64)blockIdx.x * k, scales};
    float* out = changes + (u64)blockIdx.x * k;
    const u32 lane = threadIdx.x % 32;
    const u32 first = threadIdx.x / 32 * group;
    float magnitude = 0.0f;
    for (u32 start = first; start < k; start += ROW_WARPS * group) {
        const Range range = group_range(row, start, group, cut);
        magnitude = fmaxf(magnitude, fmaxf(range.high, -range.low));
    }
    const float unit = magnitude_scale(block_max(magnitude));
    const float top = (float)((1u << bits) - 1);
    for (u32 start = first; start < k; start += ROW_WARPS * group) {
        const Range range = group_range(row, start, group, cut);
        const GroupGrid points = range_grid(grid, bits, range.low / unit, range.high / unit);
        const float inverse = points.scale == 0.0f ? 0.0f : 1.0f / points.scale;
        for (u32 i = start + lane; i < start + group; i += 32) {
            // Values beyond a cut are at the range's end.
            const float value = fminf(fmaxf(row.at(i), range.low), range.high) / unit;
            const float code = fminf(fmaxf(rintf(__fmul_rn(__fsub_rn(value, points.min), inverse)), 0.0f), top);
            float rounded = __fmul_rn(unit, __fadd_rn(__fmul_rn(points.scale, code), points.min));
            if (scales != nullptr) {
                rounded = rounded / scales[i];
            }
            out[i] = __fsub_rn(rounded, weights[(u64)blockIdx.x * k + i]);
        }
    }
}

// -------------------------------------------------------------------------------------------------- quadratic forms
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
