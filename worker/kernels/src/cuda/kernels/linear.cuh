// What the kernels of linear layers share: y[m, n] = sum_k x[m, k] w[n, k], a few rows of x against a whole weight.
//
// Few rows means that the weight's bytes decide: each is used for at most a few dozen products. So every kernel here streams
// the weight once, straight into registers, and keeps enough of it in flight.
//
// Bytes in flight. Little's law: 3.35 TB/s x 600 ns = 2.0 MB over the whole H100, 15.2 KB on each of 132 SMs. A warp of
// linear_rows asks for a chunk, 128 bytes of 32 outputs, before it waits for any of it: 32 KB a block. An SM holds 3 or 4
// blocks of the kernels for 8 rows (64 to 77 registers), 2 or 3 of those for 16 (76 to 128) and 1 or 2 of those for 32 (102
// to 176), so that `splits` should give every SM two blocks. A warp may then spend half of its time on products and the bus
// still be full. Measured on an H100 80GB HBM3, of the roofline: 83 to 93 % for one row, 82 to 93 % for 16.
//
// Why tensor cores for one row: at 15 bytes per clock and SM (3.35 TB/s at 1.7 GHz) the eight columns of mma cost no more
// than one, and FP32 multiply-adds would need 120 of the SM's 128 lanes for eight rows of 8-bit weights.
//
// Weights are the A operand (16 outputs), activations the B operand (8 rows), so that one to eight rows waste nothing of
// the larger side. The order of k inside mma is free as long as both operands agree: lane (g, t) takes 16 consecutive bytes
// of its row, instead of the four pieces that the fragment's definition spreads over 32 or 64 bytes. No shuffle, no shared
// memory, whole sectors: the four lanes of a row read 64 bytes, twice for a line of 128.

// Warps of a block of linear_rows; they share 32 outputs and take turns along k.
#define LINEAR_WARPS 8
#define LINEAR_THREADS (32 * LINEAR_WARPS)
// Outputs of a block: two A operands.
#define LINEAR_OUTPUTS 32
// Bytes of a row that a warp takes at once: a line, and one block of 128 codes of block-scaled FP8.
#define LINEAR_CHUNK 128

// Where a product's values go.
struct LinearOut {
    float* out;         // [m, n]
    float* partial;     // [splits, m, n] where k is split over blocks, linear_reduce adds them up; otherwise unused
    const float* bias;  // [n] or null
    u32 m;
    u32 n;
    u32 add;     // not 0: added to what `out` holds
    u32 split;   // which part of k this block has
    u32 splits;  // of how many

    __device__ __forceinline__ void store(u32 row, u32 column, float value) const {
        if (row >= m || column >= n) {
            return;
        }
        if (splits > 1) {
            partial[((u64)split * m + row) * n + column] = value;
            return;
        }
        const u64 at = (u64)row * n + column;
        if (bias != nullptr) {
            value += bias[column];
        }
        out[at] = add ? out[at] + value : value;
    }

    // This block's part of `count` steps of k, of which there are few enough: a division of 64 bits is a function of a
    // hundred instructions, which every block would wait for.
    __device__ __forceinline__ u32 begin(u32 count) const {
        return count * split / splits;
    }
    __device__ __forceinline__ u32 end(u32 count) const {
        return count * (split + 1) / splits;
    }
};

// Formats: the product of 64 bytes of 16 outputs with 64 bytes of 8 rows, as two mma.
struct LinearBf16 {
    typedef float Sum;
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        mma_bf16_16816(d, a, b);
    }
};
struct LinearE4m3 {
    typedef float Sum;
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        mma_e4m3_16832(d, a, b);
    }
};
struct LinearInt8 {
    typedef int Sum;
    static __device__ __forceinline__ void mma(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        mma_s8_16832(d, a, b);
    }
};

// One 128-byte chunk: sums[half][tile] += w[32 outputs] x[8 TILES rows]. What lies behind a row's end counts as zero. In a warp's
// first chunk the weight is asked for before the kernel ahead, which makes x, is waited for.
template <class Format, int TILES>
DEV void linear_chunk(typename Format::Sum (&sums)[2][TILES][4], const u8* w, const u8* x, u32 row_bytes, u32 m, u32 chunk,
                      bool first) {
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    uint4 a[2][4], b[2][TILES];
#pragma unroll
    for (int u = 0; u < 2; u++) {
        const u32 at = chunk * LINEAR_CHUNK + u * 64 + t * 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[u][i] = at < row_bytes ? ld_global_nc_v4(w + (u64)(g + 8 * i) * row_bytes + at) : zero;
        }
    }
    if (first) {
        grid_wait();
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
        const u32 at = chunk * LINEAR_CHUNK + u * 64 + t * 16;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const u32 row = tile * 8 + g;
            const bool exists = row < m && at < row_bytes;
            b[u][tile] = exists ? *reinterpret_cast<const uint4*>(x + (u64)row * row_bytes + at) : zero;
        }
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 low = a[u][2 * half], high = a[u][2 * half + 1];
            const u32 a0[4] = {low.x, high.x, low.y, high.y}, a1[4] = {low.z, high.z, low.w, high.w};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const u32 b0[2] = {b[u][tile].x, b[u][tile].y}, b1[2] = {b[u][tile].z, b[u][tile].w};
                Format::mma(sums[half][tile], a0, b0);
                Format::mma(sums[half][tile], a1, b1);
            }
        }
    }
}

// Where an element of sums[half][tile][i] belongs, for this lane.
DEV u32 linear_output(int half, int i) {
    return half * 16 + threadIdx.x % 32 / 4 + (i >= 2 ? 8 : 0);
}
DEV u32 linear_row(int tile, int i) {
    return tile * 8 + threadIdx.x % 4 * 2 + i % 2;
}

// Elements of shared memory that linear_add_warps wants. Rows of 36 and not 32: the lanes of a store (outputs g, rows 2 t)
// then meet 32 different banks.
#define LINEAR_SHARED_PITCH 36
#define LINEAR_SHARED(tiles) (LINEAR_WARPS * 8 * (tiles) * LINEAR_SHARED_PITCH)

// Adds up the warps' sums, always in the same order, and hands each value to `finish(row, output, sum)`.
template <class Sum, int TILES, class Finish>
DEV void linear_add_warps(Sum* shared, const Sum (&sums)[2][TILES][4], const Finish& finish) {
    const auto at = [](u32 warp, u32 row, u32 output) { return (warp * 8 * TILES + row) * LINEAR_SHARED_PITCH + output; };
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                shared[at(threadIdx.x / 32, linear_row(tile, i), linear_output(half, i))] = sums[half][tile][i];
            }
        }
    }
    __syncthreads();
    const u32 output = threadIdx.x % 32;
    for (u32 row = threadIdx.x / 32; row < 8 * TILES; row += LINEAR_WARPS) {
        Sum sum = shared[at(0, row, output)];
#pragma unroll
        for (u32 warp = 1; warp < LINEAR_WARPS; warp++) {
            sum += shared[at(warp, row, output)];
        }
        finish(row, output, sum);
    }
}

// Products of at most 8 TILES rows; weights and activations have rows of row_bytes, a multiple of 16. `scale(row, output)`
// is the factor on a whole sum.
//
// Grid: x = 32 outputs a block, y = splits of k. w has its outputs padded to a multiple of 32.
template <class Format, int TILES, class Scale>
DEV void linear_rows(const LinearOut& to, const u8* x, const u8* w, u32 row_bytes, const Scale& scale) {
    const u32 first = blockIdx.x * LINEAR_OUTPUTS;
    const u32 chunks = (row_bytes + LINEAR_CHUNK - 1) / LINEAR_CHUNK;
    typename Format::Sum sums[2][TILES][4] = {};
    const u32 begin = to.begin(chunks) + threadIdx.x / 32, end = to.end(chunks);
    for (u32 chunk = begin; chunk < end; chunk += LINEAR_WARPS) {
        linear_chunk<Format, TILES>(sums, w + (u64)first * row_bytes, x, row_bytes, to.m, chunk, chunk == begin);
    }
    if (begin >= end) {
        grid_wait();
    }
    __shared__ typename Format::Sum shared[LINEAR_SHARED(TILES)];
    linear_add_warps<typename Format::Sum, TILES>(shared, sums, [&](u32 row, u32 output, typename Format::Sum sum) {
        if (row < to.m && first + output < to.n) {
            to.store(row, first + output, (float)sum * scale(row, first + output));
        }
    });
}
