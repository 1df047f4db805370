// From logits to a token, row by row, as the CPU's sampler defines it: logit bias, penalties, temperature, top-k, top-p,
// min-p, one random number.
//
//   penalize        bias and penalties, in place; rows without any are left at once
//   sample_tokens   the rest; greedy below a temperature of 1e-5
//
// Candidates have a total order: the more likely first, of equal ones the lower token. Every truncation keeps a prefix of
// it, so what is left is one cut (a probability and a last token among its equals). Probabilities relative to the best
// are positive floats, whose bits are ordered like integers: a cut is found by three histograms of 10, 10 and 9 bits.
//
// Where bits may differ from the CPU's: relative probabilities are the CPU's bit by bit (the same polynomial, each
// operation rounded on its own), so bias, penalties, top-k, min-p and greedy agree exactly. Sums of probabilities, for
// top-p and the draw, are integers in units of 2^-42 here (the CPU's are FP64 sums of FP32 values): the order of addition
// cannot matter, the same logits give the same token always; a nucleus or a draw that falls within 1e-7 of a boundary may
// fall on its other side. The random number is the host's: it depends on the seed and the number of the token alone.
//
// Bound by latency and, with many rows, by L2: the row (512 KiB for 128 K tokens) is walked two to eight times. One block
// of 1024 threads per row: passes depend on each other, and a barrier within a block is cheap where one between blocks
// would be a launch; 64 KiB of loads in flight per block cover L2's latency. A batch fills as many multiprocessors as it
// has rows.
//
// The row is changed: sample_tokens leaves probabilities' bits in it where it draws. A row whose logits the host reads is not
// given to it.

constexpr u32 SAMPLE_THREADS = 1024;
constexpr u32 SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr u32 NO_TOKEN = 0xffffffffu;
#define MINUS_INFINITY __uint_as_float(0xff800000u)
constexpr float GREEDY_BELOW = 1e-5f;
// A probability below 1e-12 of the best cannot be drawn; these are its bits.
constexpr u32 KEY_FLOOR = 0x2b8cbcccu;

// The parameters of a row; 56 bytes, 8-byte aligned.
struct SampleRow {
    // In [0, 1).
    double random;
    float temperature;
    float top_p;
    float min_p;
    float repetition;
    float presence;
    float frequency;
    // 0 keeps all.
    u32 top_k;
    // The row's ranges of the lists of biases and of seen tokens.
    u32 bias_start;
    u32 bias_count;
    u32 seen_start;
    u32 seen_count;
    u32 unused;
};

// ----------------------------------------------------------------------------------------------------- block tools

struct Best {
    float logit;
    u32 token;
};

// What a block shares. Every field is written between two barriers and read behind the second.
struct SampleShared {
    // Weights by histogram bin, or by tile of the vocabulary: the lower and the upper halves of 64 bits.
    u32 low[SAMPLE_THREADS];
    u32 high[SAMPLE_THREADS];
    u64 parts[SAMPLE_WARPS];
    Best bests[SAMPLE_WARPS];
    u64 total;
    u64 above;
    u64 inside;
    u32 found;
    u32 token;
};

DEV void set_bin(SampleShared& shared, u32 bin, u64 weight) {
    shared.low[bin] = (u32)weight;
    shared.high[bin] = (u32)(weight >> 32);
}

DEV u64 bin_at(const SampleShared& shared, u32 bin) {
    return (u64)shared.high[bin] << 32 | shared.low[bin];
}

// Adds to a bin that other threads add to. Shared memory adds 32 bits in place, 64 only in a loop of compare and swap: so
// the halves are added on their own, and whoever makes the lower one wrap carries. Most weights have no upper half.
DEV void add_to_bin(SampleShared& shared, u32 bin, u64 weight) {
    const u32 low = (u32)weight;
    const u32 before = atomicAdd(&shared.low[bin], low);
    const u32 high = (u32)(weight >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) {
        atomicAdd(&shared.high[bin], high);
    }
}

struct Scan {
    // The sum of the threads before, and through this one.
    u64 before;
    u64 through;
};

// Sums over the block's threads in their order; one barrier inside, one must follow before the next call.
DEV Scan block_scan(u64 v, SampleShared& shared) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    u64 sum = v;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        const u64 other = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? other : 0;
    }
    if (lane == 31) {
        shared.parts[warp] = sum;
    }
    __syncthreads();
    u64 before = 0;
    for (u32 i = 0; i < warp; i++) {
        before += shared.parts[i];
    }
    return Scan{before + sum - v, before + sum};
}

DEV Best better(Best a, Best b) {
    const bool second = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    return second ? b : a;
}

// Four logits from token 4 i on, negative infinity behind the vocabulary.
DEV void logits_at(const float* row, u32 i, u32 vocab, float (&v)[4]) {
    if (4 * i + 3 < vocab) {
        const float4 four = reinterpret_cast<const float4*>(row)[i];
        v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        return;
    }
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        v[j] = 4 * i + j < vocab ? row[4 * i + j] : MINUS_INFINITY;
    }
}

// Four keys, 0 behind the vocabulary.
DEV void keys_at(const float* row, u32 i, u32 vocab, u32 (&keys)[4]) {
    float v[4];
    logits_at(row, i, vocab, v);
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        keys[j] = 4 * i + j < vocab ? __float_as_uint(v[j]) : 0;
    }
}

// The largest logit and the lowest token that has it; NO_TOKEN where a logit is NaN.
DEV Best block_best(const float* row, u32 vocab, SampleShared& shared) {
    Best best = {MINUS_INFINITY, NO_TOKEN};
    int nan = 0;
#pragma unroll 4
    for (u32 i = threadIdx.x; 4 * i < vocab; i += SAMPLE_THREADS) {
        float v[4];
        logits_at(row, i, vocab, v);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            nan |= v[j] != v[j];
            best = better(best, Best{v[j], 4 * i + j});
        }
    }
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        Best other;
        other.logit = __shfl_xor_sync(0xffffffffu, best.logit, step);
        other.token = __shfl_xor_sync(0xffffffffu, best.token, step);
        best = better(best, other);
    }
    if (threadIdx.x % 32 == 0) {
        shared.bests[threadIdx.x / 32] = best;
    }
    if (__syncthreads_or(nan)) {
        return Best{0.0f, NO_TOKEN};
    }
    for (u32 warp = 0; warp < SAMPLE_WARPS; warp++) {
        best = better(best, shared.bests[warp]);
    }
    return best;
}

// --------------------------------------------------------------------------------------------- keys, weights, cuts

// e^x for x <= 0 as the CPU's softmax computes it: 2^(x log2 e), the fraction by Taylor's polynomial of degree 6. Every
// operation is rounded on its own; NaN gives 2^-126.
DEV float relative_probability(float x) {
    const float t = fmaxf(__fmul_rn(x, 1.44269504088896341f), -126.0f);
    // Adding 1.5 x 2^23 rounds to the nearest integer, which then stands in the low bits.
    const float shifted = __fadd_rn(t, 12582912.0f);
    const float f = __fmul_rn(__fsub_rn(t, __fsub_rn(shifted, 12582912.0f)), 0.693147180559945309f);
    float p = __fadd_rn(1.0f / 120.0f, __fmul_rn(f, 1.0f / 720.0f));
    p = __fadd_rn(1.0f / 24.0f, __fmul_rn(f, p));
    p = __fadd_rn(1.0f / 6.0f, __fmul_rn(f, p));
    p = __fadd_rn(0.5f, __fmul_rn(f, p));
    p = __fadd_rn(1.0f, __fmul_rn(f, p));
    p = __fadd_rn(1.0f, __fmul_rn(f, p));
    const u32 power = (__float_as_uint(shifted) - 0x4b400000u + 127u) << 23;
    return __fmul_rn(p, __uint_as_float(power));
}

// Overwrites the logits with keys: the bits of the probability relative to the best, 0 for what cannot be drawn.
DEV void make_keys(float* row, u32 vocab, float best, float inverse) {
#pragma unroll 2
    for (u32 i = threadIdx.x; 4 * i < vocab; i += SAMPLE_THREADS) {
        float v[4];
        logits_at(row, i, vocab, v);
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const float p = relative_probability(__fmul_rn(__fsub_rn(v[j], best), inverse));
            v[j] = __float_as_uint(p) > KEY_FLOOR ? p : 0.0f;
        }
        if (4 * i + 3 < vocab) {
            reinterpret_cast<float4*>(row)[i] = make_float4(v[0], v[1], v[2], v[3]);
        } else {
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                if (4 * i + j < vocab) {
                    row[4 * i + j] = v[j];
                }
            }
        }
    }
}

// A place in the order of candidates: keys above `key`, and of its equals the tokens up to `last`.
struct Cut {
    u32 key;
    u32 last;
    __device__ __forceinline__ bool keeps(u32 other, u32 token) const {
        return other > key || (other == key && token <= last);
    }
};

// Weights of a candidate by its key: its probability in units of 2^-42 (a vocabulary of 2^20 stays inside 64 bits), or one.
struct Mass {
    static __device__ __forceinline__ u64 of(u32 key) {
        return (u64)rintf(__uint_as_float(key) * 4398046511104.0f);
    }
};
struct One {
    static __device__ __forceinline__ u64 of(u32) {
        return 1;
    }
};
