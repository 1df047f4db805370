// What is done with all logits of a row: a block for each part of it. Needs sample.cuh, whose head says how it works.
//
// work: see SampleWork, `words` of a row. logits [rows, stride], stride a multiple of 4, vocab at most 2^20.
// Grid: rows x parts.

// A thread's logits of the block's part: step s has those from token 4 quad(s) on; negative infinity behind the vocabulary.
// All loads of a part inside the vocabulary are in flight at once.
struct PartLogits {
    float v[PART_STEPS][4];
    static __device__ __forceinline__ u32 quad(u32 step) {
        return (blockIdx.y * PART_STEPS + step) * PART_THREADS + threadIdx.x;
    }
    __device__ __forceinline__ void load(const float* row, u32 vocab) {
        if ((blockIdx.y + 1) * PART_TOKENS <= vocab) {
#pragma unroll
            for (u32 step = 0; step < PART_STEPS; step++) {
                const float4 four = reinterpret_cast<const float4*>(row)[quad(step)];
                v[step][0] = four.x, v[step][1] = four.y, v[step][2] = four.z, v[step][3] = four.w;
            }
        } else {
#pragma unroll
            for (u32 step = 0; step < PART_STEPS; step++) {
                logits_at(row, quad(step), vocab, v[step]);
            }
        }
    }
};

// work.bests: of the part the largest logit and the lowest token that has it; NO_TOKEN where a logit is NaN. Sets the rest of
// the work of truncated rows to zero.
extern "C" __global__ void __launch_bounds__(256) sample_best(
    u64* work, const float* logits, const SampleRow* rows, u32 vocab, u32 stride, u32 words) {
    grid_start();
    __shared__ Best bests[PART_THREADS / 32];
    PartLogits part;
    part.load(logits + (u64)blockIdx.x * stride, vocab);
    const SampleWork to = work_of(work, words, vocab);
    if (blockIdx.y == 0 && is_truncated(rows[blockIdx.x], vocab)) {
        for (u32 bin = threadIdx.x; bin < BINS; bin += PART_THREADS) {
            to.histogram[bin] = 0;
        }
        if (threadIdx.x == 0) {
            *to.count = 0;
        }
    }
    // A thread's tokens ascend, so that the first of equal ones stays.
    const u32 first = 4 * PartLogits::quad(0);
    Best best = {MINUS_INFINITY, first < vocab ? first : NO_TOKEN};
    int nan = 0;
#pragma unroll
    for (u32 step = 0; step < PART_STEPS; step++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const float v = part.v[step][j];
            nan |= v != v;
            if (v > best.logit) {
                best = Best{v, 4 * PartLogits::quad(step) + j};
            }
        }
    }
    best = warp_best(best);
    if (threadIdx.x % 32 == 0) {
        bests[threadIdx.x / 32] = best;
    }
    nan = __syncthreads_or(nan);
    if (threadIdx.x == 0) {
#pragma unroll
        for (u32 warp = 1; warp < PART_THREADS / 32; warp++) {
            best = better(best, bests[warp]);
        }
        to.bests[blockIdx.y] = nan ? NO_TOKEN : (u64)__float_as_uint(best.logit) << 32 | best.token;
    }
}

// work.masses, and of truncated rows work.histogram, which must be zero.
extern "C" __global__ void __launch_bounds__(256) sample_mass(
    u64* work, const float* logits, const SampleRow* rows, u32 vocab, u32 stride, u32 words) {
    grid_start();
    __shared__ Histogram bins;
    __shared__ u64 sums[PART_THREADS / 32];
    const SampleRow& how = rows[blockIdx.x];
    if (is_greedy(how)) {
        return;
    }
    PartLogits part;
    part.load(logits + (u64)blockIdx.x * stride, vocab);
    const SampleWork to = work_of(work, words, vocab);
    const Best best = row_best(to.bests, parts_of(vocab));
    if (best.token == NO_TOKEN) {
        if (threadIdx.x == 0) {
            to.masses[blockIdx.y] = 0;
        }
        return;
    }
    const bool truncated = is_truncated(how, vocab);
    const Cut cut = truncated ? all_candidates() : with_min_p(all_candidates(), how.min_p);
    const Keys keys = {best.logit, 1.0f / how.temperature};
    u32 key[PART_STEPS][4];
    u64 sum = 0;
#pragma unroll
    for (u32 step = 0; step < PART_STEPS; step++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            key[step][j] = keys.of(part.v[step][j]);
            // Every token is before NO_TOKEN: the key alone decides.
            sum += key[step][j] >= cut.key ? mass(key[step][j]) : 0;
        }
    }
    const u64 warp_sum = __shfl_sync(0xffffffffu, warp_scan(sum), 31);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = warp_sum;
    }
    if (truncated) {
        for (u32 bin = threadIdx.x; bin < BINS; bin += PART_THREADS) {
            set_bin(bins, bin, 0);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        u64 all = 0;
#pragma unroll
        for (u32 warp = 0; warp < PART_THREADS / 32; warp++) {
            all += sums[warp];
        }
        to.masses[blockIdx.y] = all;
    }
    if (!truncated) {
        return;
    }
    const bool counted = has_top_k(how, vocab);
#pragma unroll
    for (u32 step = 0; step < PART_STEPS; step++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (key[step][j] != 0) {
                add_to_bin(bins, first_bin(key[step][j]), counted ? 1 : mass(key[step][j]));
            }
        }
    }
    __syncthreads();
    for (u32 bin = threadIdx.x; bin < BINS; bin += PART_THREADS) {
        const u64 weight = bin_at(bins, bin);
        if (weight != 0) {
            atomicAdd(&to.histogram[bin], weight);
        }
    }
}

// The bin of the first histogram that the cut of top-k, or without it of top-p, lies in; 0 where there is less than it wants.
// A barrier must follow.
DEV void find_first_bin(
    const u64* histogram, const SampleRow& how, u32 vocab, u64 (&sums)[PART_THREADS / 32], u32& found) {
    // From the most likely bin down, four to a thread.
    constexpr u32 EACH = BINS / PART_THREADS;
    const u32 last = BINS - 1 - EACH * threadIdx.x;
    u64 weights[EACH];
    u64 sum = 0;
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        weights[i] = histogram[last - i];
        sum += weights[i];
    }
    if (threadIdx.x == 0) {
        found = 0;
    }
    const Scan scan = block_scan(sum, sums);
    const u64 wanted = has_top_k(how, vocab) ? how.top_k : wanted_mass(how.top_p, scan.total);
    if (scan.before < wanted && wanted <= scan.through) {
        u64 through = scan.before;
        u32 bin = last;
#pragma unroll
        for (u32 i = 0; i + 1 < EACH; i++) {
            through += weights[i];
            bin -= through < wanted ? 1 : 0;
        }
        found = bin;
    }
}

// work.listed and work.count of truncated rows. The count must be zero.
extern "C" __global__ void __launch_bounds__(256) sample_list(
    u64* work, const float* logits, const SampleRow* rows, u32 vocab, u32 stride, u32 words) {
    grid_start();
    __shared__ u64 sums[PART_THREADS / 32];
    __shared__ u32 found;
    __shared__ u64 place;
    const SampleRow& how = rows[blockIdx.x];
    if (!is_truncated(how, vocab)) {
        return;
    }
    PartLogits part;
    part.load(logits + (u64)blockIdx.x * stride, vocab);
    const SampleWork to = work_of(work, words, vocab);
    const Best best = row_best(to.bests, parts_of(vocab));
    if (best.token == NO_TOKEN) {
        return;
    }
    find_first_bin(to.histogram, how, vocab, sums, found);
    __syncthreads();
    const Keys keys = {best.logit, 1.0f / how.temperature};
    u32 key[PART_STEPS][4];
    u32 count = 0;
#pragma unroll
    for (u32 step = 0; step < PART_STEPS; step++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 other = keys.of(part.v[step][j]);
            key[step][j] = other != 0 && first_bin(other) >= found ? other : 0;
            count += key[step][j] != 0 ? 1 : 0;
        }
    }
    const Scan scan = block_scan((u64)count, sums);
    if (scan.total == 0) {
        return;
    }
    if (threadIdx.x == 0) {
        place = atomicAdd(to.count, scan.total);
    }
    __syncthreads();
    u64 at = place + scan.before;
#pragma unroll
    for (u32 step = 0; step < PART_STEPS; step++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (key[step][j] != 0) {
                if (at < LISTED) {
                    to.listed[at] = (u64)key[step][j] << 32 | (4 * PartLogits::quad(step) + j);
                }
                at++;
            }
        }
    }
}
