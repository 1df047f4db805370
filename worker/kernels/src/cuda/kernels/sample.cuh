// From logits to a token, row by row, as the CPU's sampler defines it: logit bias, penalties, temperature, top-k, top-p,
// min-p, one random number.
//
//   penalize        bias and penalties, in place; rows without any are left at once
//   sample_best     of each part of a row the largest logit
//   sample_mass     of each part the sum of probabilities, and a histogram for rows with top-k or top-p; greedy rows (with a
//                   temperature below 1e-5) are left at once, and where all are it is not launched
//   sample_list     the candidates that top-k and top-p may keep, in a list; rows with neither are left at once, and where
//                   no row has one it is not launched
//   sample_tokens   the rest, of what the others left: one block per row
//
// Candidates have a total order: the more likely first, of equal ones the lower token. Every truncation keeps a prefix of
// it, so what is left is one cut (a probability and a last token among its equals). Probabilities relative to the best
// are positive floats, whose bits are ordered like integers: a cut is found by histograms of 10, 10 and 9 bits of them, and
// two of the token where equals are divided.
//
// Where bits may differ from the CPU's: relative probabilities are the CPU's bit by bit (the same polynomial, each
// operation rounded on its own), so bias, penalties, top-k, min-p and greedy agree exactly. Sums of probabilities, for
// top-p and the draw, are integers in units of 2^-42 here (the CPU's are FP64 sums of FP32 values): the order of addition
// cannot matter, the same logits give the same token always; a nucleus or a draw that falls within 1e-7 of a boundary may
// fall on its other side. The random number is the host's: it depends on the seed and the number of the token alone.
//
// Bound by latency with few rows, by memory and L2 with many. One block that walks a whole row (512 KiB for 128 K tokens)
// three times takes 50 us, for one row as for 64 (measured on an H100 80GB HBM3). So whatever looks at all logits is done by
// a block for every 4096 tokens, whose loads are in flight at once, and what one block does at the end is short: it takes
// sums of parts and, of a cut, the list of candidates that lie in or above the first histogram's bin of the cut. Kernels
// follow each other because each needs the whole row's result of the one before. Keys are computed again from logits
// wherever they are needed: some 30 instructions are less than to write and to read them again, and rows stay as they are.
//
// A list is short: top-k of some tens, a nucleus of a few thousand. Where it does not fit (flat rows, many equals)
// sample_tokens walks the row instead, with the same result.

constexpr u32 SAMPLE_THREADS = 1024;
constexpr u32 PART_THREADS = 256;
constexpr u32 PART_STEPS = 4;
// Tokens of a part: four at each step of a thread. A vocabulary of 2^20 has 256 parts.
constexpr u32 PART_TOKENS = PART_STEPS * PART_THREADS * 4;
constexpr u32 BINS = 1024;
// Candidates that a list has room for.
constexpr u32 LISTED = 4096;
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

DEV bool is_greedy(const SampleRow& how) {
    return how.temperature < GREEDY_BELOW;
}

DEV bool has_top_k(const SampleRow& how, u32 vocab) {
    return how.top_k > 0 && how.top_k < vocab;
}

// Whether top-k or top-p may leave candidates out.
DEV bool is_truncated(const SampleRow& how, u32 vocab) {
    return !is_greedy(how) && (has_top_k(how, vocab) || how.top_p < 1.0f);
}

// What kernels leave to those behind them: of each row so many 64-bit words as the caller says, those behind `masses` only
// where some row is truncated.
struct SampleWork {
    // Of each part, see Best.
    u64* bests;
    // Of each part, the weight of what may be drawn; of a truncated row of all candidates.
    u64* masses;
    // How many candidates should be listed: more than LISTED where they have no room.
    u64* count;
    // Candidates with top-k, else weights, by the first ten bits of the key's distance from the floor.
    u64* histogram;
    // The key, in the upper half, and the token; in any order.
    u64* listed;
};

DEV u32 parts_of(u32 vocab) {
    return (vocab + PART_TOKENS - 1) / PART_TOKENS;
}

DEV SampleWork work_of(u64* work, u32 words, u32 vocab) {
    const u32 parts = parts_of(vocab);
    u64* of_row = work + (u64)blockIdx.x * words;
    u64* count = of_row + 2 * parts;
    return SampleWork{of_row, of_row + parts, count, count + 1, count + 1 + BINS};
}

// ------------------------------------------------------------------------------------------------ logits and the best

// A logit and its token; as a word the logit's bits are the upper half.
struct Best {
    float logit;
    u32 token;
};

DEV Best better(Best a, Best b) {
    const bool second = b.logit > a.logit || (b.logit == a.logit && b.token < a.token);
    return second ? b : a;
}

// Warp.
DEV Best warp_best(Best best) {
#pragma unroll
    for (u32 step = 16; step > 0; step /= 2) {
        Best other;
        other.logit = __shfl_xor_sync(0xffffffffu, best.logit, step);
        other.token = __shfl_xor_sync(0xffffffffu, best.token, step);
        best = better(best, other);
    }
    return best;
}

// Warp. The row's largest logit and the lowest token that has it; NO_TOKEN where a logit is NaN.
DEV Best row_best(const u64* bests, u32 parts) {
    Best best = {MINUS_INFINITY, NO_TOKEN};
    int nan = 0;
    for (u32 part = threadIdx.x % 32; part < parts; part += 32) {
        const u64 word = bests[part];
        const Best of_part = {__uint_as_float((u32)(word >> 32)), (u32)word};
        nan |= of_part.token == NO_TOKEN;
        best = better(best, of_part);
    }
    best = warp_best(best);
    return __any_sync(0xffffffffu, nan) ? Best{0.0f, NO_TOKEN} : best;
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

// What makes keys of a row's logits.
struct Keys {
    float best;
    float inverse;
    // The bits of the probability relative to the best, 0 for what cannot be drawn.
    __device__ __forceinline__ u32 of(float logit) const {
        const u32 key = __float_as_uint(relative_probability(__fmul_rn(__fsub_rn(logit, best), inverse)));
        return key > KEY_FLOOR ? key : 0;
    }
};

// A key's place among the bins of the first histogram.
DEV u32 first_bin(u32 key) {
    return (key - KEY_FLOOR) >> 19;
}

// A place in the order of candidates: keys above `key`, and of its equals the tokens up to `last`.
struct Cut {
    u32 key;
    u32 last;
    __device__ __forceinline__ bool keeps(u32 other, u32 token) const {
        return other > key || (other == key && token <= last);
    }
};

DEV Cut all_candidates() {
    return Cut{KEY_FLOOR + 1, NO_TOKEN};
}

// The cut that min-p makes of another.
DEV Cut with_min_p(Cut cut, float min_p) {
    return cut.key < __float_as_uint(min_p) ? Cut{__float_as_uint(min_p), NO_TOKEN} : cut;
}

// The probability in units of 2^-42: those of a vocabulary of 2^20 stay inside 64 bits.
DEV u64 mass(u32 key) {
    return (u64)rintf(__uint_as_float(key) * 4398046511104.0f);
}

// The weight that top-p wants of a total.
DEV u64 wanted_mass(float top_p, u64 total) {
    const u64 part = (u64)ceil((double)top_p * (double)total);
    return part > 0 ? part : 1;
}

// ----------------------------------------------------------------------------------------------------- block tools

// Weights by bin: the lower and the upper halves of 64 bits.
struct Histogram {
    u32 low[BINS];
    u32 high[BINS];
};

DEV void set_bin(Histogram& bins, u32 bin, u64 weight) {
    bins.low[bin] = (u32)weight;
    bins.high[bin] = (u32)(weight >> 32);
}

DEV u64 bin_at(const Histogram& bins, u32 bin) {
    return (u64)bins.high[bin] << 32 | bins.low[bin];
}

// Adds to a bin that other threads add to. Shared memory adds 32 bits in place, 64 only in a loop of compare and swap: so
// the halves are added on their own, and whoever makes the lower one wrap carries. Most weights have no upper half.
DEV void add_to_bin(Histogram& bins, u32 bin, u64 weight) {
    const u32 low = (u32)weight;
    const u32 before = atomicAdd(&bins.low[bin], low);
    const u32 high = (u32)(weight >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) {
        atomicAdd(&bins.high[bin], high);
    }
}

struct Scan {
    // The sum of the threads before, through this one, and of all.
    u64 before;
    u64 through;
    u64 total;
};

// Warp. Sums through each lane.
DEV u64 warp_scan(u64 sum) {
    const u32 lane = threadIdx.x % 32;
#pragma unroll
    for (u32 step = 1; step < 32; step *= 2) {
        const u64 other = __shfl_up_sync(0xffffffffu, sum, step);
        sum += lane >= step ? other : 0;
    }
    return sum;
}

// Sums over the threads of a block of so many warps, in their order; one barrier inside, one must follow before `parts` is
// written again.
template <u32 WARPS>
DEV Scan block_scan(u64 v, u64 (&parts)[WARPS]) {
    const u32 lane = threadIdx.x % 32;
    const u32 warp = threadIdx.x / 32;
    const u64 sum = warp_scan(v);
    if (lane == 31) {
        parts[warp] = sum;
    }
    __syncthreads();
    const u64 warps = warp_scan(lane < WARPS ? parts[lane] : 0);
    const u64 through = __shfl_sync(0xffffffffu, warps, warp);
    const u64 before = through - parts[warp];
    return Scan{before + sum - v, before + sum, __shfl_sync(0xffffffffu, warps, 31)};
}
