// What rounding to groups changes. Needs rows.cuh.
//
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
    grid_start();
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
