// Cuts by likelihood, and the draw. Needs sample.cuh, whose head says how it works.

static_assert(BINS == SAMPLE_THREADS, "a thread has a bin");

// What a block shares. Every field is written between two barriers and read behind the second.
struct SampleShared {
    Histogram bins;
    u64 parts[SAMPLE_THREADS / 32];
    double random;
    u64 above;
    u64 inside;
    u32 found;
    u32 token;
};

// The candidates that cuts are looked for among: those of the list, or where it has no room for them all of the row.
struct Candidates {
    const u64* listed;
    // More than LISTED: the row's.
    u64 count;
    const float* row;
    u32 vocab;
    Keys keys;
    // Calls `f(key, token)`, each in one thread.
    template <class F>
    __device__ __forceinline__ void each(const F& f) const {
        if (count <= LISTED) {
            for (u32 i = threadIdx.x; i < (u32)count; i += SAMPLE_THREADS) {
                const u64 word = listed[i];
                f((u32)(word >> 32), (u32)word);
            }
            return;
        }
#pragma unroll 1
        for (u32 i = threadIdx.x; 4 * i < vocab; i += SAMPLE_THREADS) {
            float v[4];
            logits_at(row, i, vocab, v);
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32 key = keys.of(v[j]);
                if (key != 0) {
                    f(key, 4 * i + j);
                }
            }
        }
    }
};

// How much a cut shall keep: so many candidates, or without such a count a share of the weight.
struct Wanted {
    u64 count;
    float top_p;
    // Of weights, where it is that of more than the candidates; else 0.
    u64 total;
};

// A candidate's place in the order: the later, the smaller. 29 bits of its key, 20 of its token.
DEV u64 order_of(u32 key, u32 token) {
    return (u64)(key - KEY_FLOOR) << 20 | (0xfffffu - token);
}

// The cut after the first candidates of `within` that are what is wanted; `within` where all are fewer.
DEV Cut select(const Candidates& from, Cut within, Wanted wanted, SampleShared& shared) {
    const bool counted = wanted.count > 0;
    u64 prefix = 0;
    u64 goal = 0;
    u64 above = 0;
    u32 shift = 49;
    for (u32 level = 0; level < 5; level++) {
        const u32 width = level == 2 ? 9 : 10;
        const u32 below = shift;
        shift -= width;
        set_bin(shared.bins, threadIdx.x, 0);
        __syncthreads();
        from.each([&](u32 key, u32 token) {
            const u64 order = order_of(key, token);
            if (within.keeps(key, token) && order >> below == prefix) {
                add_to_bin(shared.bins, (u32)(order >> shift) & ((1u << width) - 1), counted ? 1 : mass(key));
            }
        });
        __syncthreads();
        // From the most likely bin down.
        const u32 bin = SAMPLE_THREADS - 1 - threadIdx.x;
        const u64 inside = bin_at(shared.bins, bin);
        const Scan scan = block_scan(inside, shared.parts);
        if (level == 0) {
            const u64 total = wanted.total > 0 ? wanted.total : scan.total;
            goal = counted ? wanted.count : wanted_mass(wanted.top_p, total);
            if (goal > total) {
                return within;
            }
        }
        if (above + scan.before < goal && goal <= above + scan.through) {
            shared.found = bin;
            shared.above = above + scan.before;
            shared.inside = inside;
        }
        __syncthreads();
        prefix = prefix << width | shared.found;
        above = shared.above;
        if (level == 2) {
            // All candidates of this bin have one key. Where all of them are kept, tokens need no look.
            const u32 key = KEY_FLOOR + (u32)prefix;
            const u64 weight = counted ? 1 : mass(key);
            if (goal - above > shared.inside - weight) {
                return Cut{key, key == within.key ? within.last : NO_TOKEN};
            }
        }
    }
    return Cut{KEY_FLOOR + (u32)(prefix >> 20), 0xfffffu - ((u32)prefix & 0xfffffu)};
}

// What top-k, top-p and min-p leave, and of each part of the vocabulary the weight of that: in the thread of its number.
DEV Cut truncate(
    const Candidates& from, const SampleRow& how, u64 all_mass, u64& mass_of_part, SampleShared& shared) {
    Cut cut = all_candidates();
    const bool counted = has_top_k(how, from.vocab);
    if (counted) {
        cut = select(from, cut, Wanted{how.top_k, 1.0f, 0}, shared);
    }
    if (how.top_p < 1.0f) {
        // With top-k the list has all that count, without it the nucleus alone.
        cut = select(from, cut, Wanted{0, how.top_p, counted ? 0 : all_mass}, shared);
    }
    cut = with_min_p(cut, how.min_p);
    set_bin(shared.bins, threadIdx.x, 0);
    __syncthreads();
    from.each([&](u32 key, u32 token) {
        if (cut.keeps(key, token)) {
            add_to_bin(shared.bins, token / PART_TOKENS, mass(key));
        }
    });
    __syncthreads();
    mass_of_part = bin_at(shared.bins, threadIdx.x);
    return cut;
}

// The token at which the running sum of weights, in the order of tokens, passes the random number's share of all;
// NO_TOKEN when there is no weight.
DEV u32 draw(const float* row, u32 vocab, Keys keys, Cut cut, u64 mass_of_part, SampleShared& shared) {
    const Scan parts = block_scan(mass_of_part, shared.parts);
    if (parts.total == 0) {
        return NO_TOKEN;
    }
    u64 place = (u64)(shared.random * (double)parts.total);
    place = place < parts.total ? place : parts.total - 1;
    if (parts.before <= place && place < parts.through) {
        shared.found = threadIdx.x;
        shared.above = parts.before;
    }
    __syncthreads();
    // Four tokens to a thread.
    static_assert(PART_TOKENS == 4 * SAMPLE_THREADS, "a part is a step of the block");
    const u32 quad = shared.found * SAMPLE_THREADS + threadIdx.x;
    float v[4];
    logits_at(row, quad, vocab, v);
    u64 weights[4];
    u64 sum = 0;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const u32 key = keys.of(v[j]);
        weights[j] = cut.keeps(key, 4 * quad + j) ? mass(key) : 0;
        sum += weights[j];
    }
    const Scan tokens = block_scan(sum, shared.parts);
    u64 passed = shared.above + tokens.before;
    if (passed <= place && place < shared.above + tokens.through) {
        u32 token = 4 * quad;
#pragma unroll
        for (u32 j = 0; j < 3; j++) {
            passed += weights[j];
            token += passed <= place ? 1 : 0;
        }
        shared.token = token;
    }
    __syncthreads();
    return shared.token;
}

// out[r]: the row's token, NO_TOKEN where a logit is NaN or none can be drawn. work: as the other kernels left it. logits
// [rows, stride], stride a multiple of 4, vocab at most 2^20.
// Grid: one block per row.
extern "C" __global__ void __launch_bounds__(1024) sample_tokens(
    u32* out, u64* work, const float* logits, const SampleRow* rows, u32 vocab, u32 stride, u32 words) {
    grid_start();
    __shared__ SampleShared shared;
    const SampleRow& how = rows[blockIdx.x];
    const bool greedy = is_greedy(how);
    const float* row = logits + (u64)blockIdx.x * stride;
    const SampleWork from = work_of(work, words, vocab);
    const u32 parts = parts_of(vocab);
    if (threadIdx.x == 0) {
        shared.random = how.random;
    }
    // In flight with what row_best loads.
    u64 mass_of_part = !greedy && threadIdx.x < parts ? from.masses[threadIdx.x] : 0;
    const Best best = row_best(from.bests, parts);
    u32 token = best.token;
    if (token != NO_TOKEN && !greedy) {
        const Keys keys = {best.logit, 1.0f / how.temperature};
        Cut cut = with_min_p(all_candidates(), how.min_p);
        if (is_truncated(how, vocab)) {
            const u64 all_mass = block_scan(mass_of_part, shared.parts).total;
            const Candidates candidates = {from.listed, *from.count, row, vocab, keys};
            cut = truncate(candidates, how, all_mass, mass_of_part, shared);
        }
        token = draw(row, vocab, keys, cut, mass_of_part, shared);
    }
    if (threadIdx.x == 0) {
        out[blockIdx.x] = token;
    }
}
