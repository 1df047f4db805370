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
