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
// The row is changed: sample_tokens leaves probabilities' bits in it where it draws. Log-probabilities are read before.

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

// ------------------------------------------------------------------------------------------------- bias, penalties

// logits [rows, stride]. bias_tokens, bias_values: tokens of a row's range are different from each other. seen_tokens,
// seen_counts: likewise; the count is that of the token in the output, 0 for one of the prompt alone. Tokens outside the
// vocabulary are passed over.
// Grid: one block per row.
extern "C" __global__ void __launch_bounds__(256) penalize(
    float* logits, const SampleRow* rows, const u32* bias_tokens, const float* bias_values, const u32* seen_tokens,
    const u32* seen_counts, u32 vocab, u32 stride) {
    const SampleRow& row = rows[blockIdx.x];
    float* values = logits + (u64)blockIdx.x * stride;
    for (u32 i = threadIdx.x; i < row.bias_count; i += 256) {
        const u32 token = bias_tokens[row.bias_start + i];
        if (token < vocab) {
            values[token] += bias_values[row.bias_start + i];
        }
    }
    __syncthreads();
    if (row.repetition == 1.0f && row.presence == 0.0f && row.frequency == 0.0f) {
        return;
    }
    for (u32 i = threadIdx.x; i < row.seen_count; i += 256) {
        const u32 token = seen_tokens[row.seen_start + i];
        const u32 count = seen_counts[row.seen_start + i];
        if (token < vocab) {
            float logit = values[token];
            logit = logit > 0.0f ? logit / row.repetition : logit * row.repetition;
            if (count > 0) {
                logit = __fsub_rn(logit, __fadd_rn(row.presence, __fmul_rn(row.frequency, (float)count)));
            }
            values[token] = logit;
        }
    }
}

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

// ------------------------------------------------------------------------------------------- places by token order
// Tiles of 1024 consecutive tokens: a warp sums a tile without a barrier, a scan over the tiles finds the one that holds
// the place, a warp finds the token in it.

constexpr u32 TILE_STEPS = 8;
constexpr u32 TILE_TOKENS = TILE_STEPS * 32 * 4;

// What counts toward a place: the mass of kept candidates, or the kept candidates of one key.
struct Drawn {
    Cut cut;
    __device__ __forceinline__ u64 weight(u32 key, u32 token) const {
        return cut.keeps(key, token) ? Mass::of(key) : 0;
    }
    // The place of a random number.
    double random;
    __device__ __forceinline__ u64 place(u64 total) const {
        const u64 place = (u64)(random * (double)total);
        return place < total ? place : total - 1;
    }
};
struct Tied {
    Cut cut;
    u32 key;
    u64 before;
    __device__ __forceinline__ u64 weight(u32 other, u32 token) const {
        return other == key && cut.keeps(other, token) ? 1 : 0;
    }
    __device__ __forceinline__ u64 place(u64) const {
        return before;
    }
};

// A lane's four weights at a step of a tile; the lane's sum is returned.
template <class Counted>
DEV u64 weights_at(const float* row, u32 tile, u32 step, u32 vocab, const Counted& counted, u64 (&weights)[4]) {
    const u32 i = (tile * TILE_STEPS + step) * 32 + threadIdx.x % 32;
    u32 keys[4];
    keys_at(row, i, vocab, keys);
    u64 sum = 0;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        weights[j] = counted.weight(keys[j], 4 * i + j);
        sum += weights[j];
    }
    return sum;
}

// Warp. The token of the tile at which the running sum of weights passes `rest`; it must.
template <class Counted>
DEV void find_in_tile(const float* row, u32 tile, u64 rest, u32 vocab, const Counted& counted, SampleShared& shared) {
    const u32 lane = threadIdx.x % 32;
    for (u32 step = 0; step < TILE_STEPS; step++) {
        u64 weights[4];
        const u64 mine = weights_at(row, tile, step, vocab, counted, weights);
        u64 through = mine;
#pragma unroll
        for (u32 distance = 1; distance < 32; distance *= 2) {
            const u64 other = __shfl_up_sync(0xffffffffu, through, distance);
            through += lane >= distance ? other : 0;
        }
        const u64 all = __shfl_sync(0xffffffffu, through, 31);
        if (rest >= all) {
            rest -= all;
            continue;
        }
        u64 passed = through - mine;
        if (passed <= rest && rest < through) {
            u32 token = 4 * ((tile * TILE_STEPS + step) * 32 + lane);
#pragma unroll
            for (u32 j = 0; j < 3; j++) {
                passed += weights[j];
                token += passed <= rest ? 1 : 0;
            }
            shared.token = token;
        }
        return;
    }
}

// The first token at which the running sum of weights, in the order of tokens, passes counted.place(total); NO_TOKEN when
// there is no weight.
template <class Counted>
DEV u32 find_token(const float* row, u32 vocab, const Counted& counted, SampleShared& shared) {
    const u32 tiles = (vocab + TILE_TOKENS - 1) / TILE_TOKENS;
    for (u32 tile = threadIdx.x / 32; tile < tiles; tile += SAMPLE_WARPS) {
        u64 sum = 0;
#pragma unroll 4
        for (u32 step = 0; step < TILE_STEPS; step++) {
            u64 weights[4];
            sum += weights_at(row, tile, step, vocab, counted, weights);
        }
#pragma unroll
        for (u32 step = 16; step > 0; step /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, step);
        }
        if (threadIdx.x % 32 == 0) {
            set_bin(shared, tile, sum);
        }
    }
    __syncthreads();
    const Scan scan = block_scan(threadIdx.x < tiles ? bin_at(shared, threadIdx.x) : 0, shared);
    if (threadIdx.x == SAMPLE_THREADS - 1) {
        shared.total = scan.through;
    }
    __syncthreads();
    const u64 total = shared.total;
    if (total == 0) {
        return NO_TOKEN;
    }
    const u64 place = counted.place(total);
    if (scan.before <= place && place < scan.through) {
        shared.found = threadIdx.x;
        shared.above = place - scan.before;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        find_in_tile(row, shared.found, shared.above, vocab, counted, shared);
    }
    __syncthreads();
    return shared.token;
}

// -------------------------------------------------------------------------------------- places by likelihood: cuts

// How much a cut shall keep.
struct Share {
    // Of top-p: the share of the total; unused with a count.
    double share;
    u64 count;
    __device__ __forceinline__ u64 wanted(u64 total) const {
        if (count > 0) {
            return count;
        }
        const u64 part = (u64)ceil(share * (double)total);
        return part > 0 ? part : 1;
    }
};

// The cut after the first candidates of `within` whose weights add up to what is wanted; `within` where all are fewer.
template <class Weight>
DEV Cut select(const float* row, u32 vocab, Cut within, Share share, SampleShared& shared) {
    u32 prefix = 0;
    u64 wanted = 0;
    u64 above = 0;
    for (u32 level = 0; level < 3; level++) {
        const u32 shift = level == 0 ? 19 : level == 1 ? 9 : 0;
        const u32 width = level == 2 ? 9 : 10;
        set_bin(shared, threadIdx.x, 0);
        __syncthreads();
#pragma unroll 2
        for (u32 i = threadIdx.x; 4 * i < vocab; i += SAMPLE_THREADS) {
            u32 keys[4];
            keys_at(row, i, vocab, keys);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 distance = keys[j] - KEY_FLOOR;
                if (within.keeps(keys[j], 4 * i + j) && distance >> (shift + width) == prefix) {
                    add_to_bin(shared, distance >> shift & ((1u << width) - 1), Weight::of(keys[j]));
                }
            }
        }
        __syncthreads();
        // From the most likely bin down.
        const u32 bin = SAMPLE_THREADS - 1 - threadIdx.x;
        const u64 inside = bin_at(shared, bin);
        const Scan scan = block_scan(inside, shared);
        if (threadIdx.x == SAMPLE_THREADS - 1) {
            shared.total = scan.through;
        }
        __syncthreads();
        if (level == 0) {
            wanted = share.wanted(shared.total);
            if (wanted > shared.total) {
                return within;
            }
        }
        if (above + scan.before < wanted && wanted <= above + scan.through) {
            shared.found = bin;
            shared.above = above + scan.before;
            shared.inside = inside;
        }
        __syncthreads();
        prefix = prefix << width | shared.found;
        above = shared.above;
    }
    // All candidates of the last bin have one key: some of its equals may be beyond the cut.
    const u32 key = KEY_FLOOR + prefix;
    const u64 each = Weight::of(key);
    const u64 kept = (wanted - above + each - 1) / each;
    if (kept < shared.inside / each) {
        return Cut{key, find_token(row, vocab, Tied{within, key, kept - 1}, shared)};
    }
    return Cut{key, key == within.key ? within.last : NO_TOKEN};
}

// out[r]: the row's token, NO_TOKEN where a logit is NaN or none can be drawn. logits [rows, stride], stride a multiple of 4,
// vocab at most 2^20.
// Grid: one block per row.
extern "C" __global__ void __launch_bounds__(1024) sample_tokens(
    u32* out, float* logits, const SampleRow* rows, u32 vocab, u32 stride) {
    __shared__ SampleShared shared;
    const SampleRow how = rows[blockIdx.x];
    float* row = logits + (u64)blockIdx.x * stride;
    const Best best = block_best(row, vocab, shared);
    u32 token = best.token;
    if (token != NO_TOKEN && !(how.temperature < GREEDY_BELOW)) {
        // Behind the barrier in block_best nobody reads logits of others any more.
        make_keys(row, vocab, best.logit, 1.0f / how.temperature);
        __syncthreads();
        Cut cut = {KEY_FLOOR + 1, NO_TOKEN};
        if (how.top_k > 0) {
            cut = select<One>(row, vocab, cut, Share{0.0, how.top_k}, shared);
        }
        if (how.top_p < 1.0f) {
            cut = select<Mass>(row, vocab, cut, Share{(double)how.top_p, 0}, shared);
        }
        if (cut.key < __float_as_uint(how.min_p)) {
            cut = Cut{__float_as_uint(how.min_p), NO_TOKEN};
        }
        token = find_token(row, vocab, Drawn{cut, how.random}, shared);
    }
    if (threadIdx.x == 0) {
        out[blockIdx.x] = token;
    }
}
