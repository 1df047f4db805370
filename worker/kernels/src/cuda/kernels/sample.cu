// Places in the order of tokens, cuts by likelihood, and the draw. Needs sample.cuh, whose head says how it works.

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
    grid_start();
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
