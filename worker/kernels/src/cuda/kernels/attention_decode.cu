// Attention of decode steps: one row of a sequence, over all that it has cached.
//
// A block of four warps takes one sequence, one KV head and one part of the sequence; the query heads of that KV head are
// the lines of all warps (up to 16 of them; more take further blocks). Each warp walks blocks of the cache of its own,
// through a ring of three stages in shared memory that no other warp uses: no barrier but the last, where the warps' sums
// are joined. attention_reduce joins the parts.
//
// Parts: as many as `splits` allows, of a multiple of 4 blocks and at least 8 (128 tokens). They follow from the row's own
// position and `splits` only, never from the step, so that a row's result does not depend on its neighbours.
//
// Bytes in flight. Needed: 15.2 KB per SM (3.35 TB/s x 600 ns / 132). Two of a warp's three stages are in flight; K and V of
// a block and head of 128 dims are 4 KB in 8 bits, 8 KB in 16:
//
//   dim  cache    in flight per block   shared memory   registers   blocks per SM
//    64  8 bit          16 KB                36 KB          96           5
//   128  8 bit          32 KB                62 KB         128           3
//   128  16 bit         64 KB               116 KB         134           1
//   256  16 bit        128 KB               216 KB         204           1
//
// A step has batch x KV heads x parts blocks: one sequence of 4,096 tokens with 8 KV heads and 16 parts 128, one for each
// SM. Products: per token of 128 dims 2 x 16 x 128 multiply-adds, at 256 bytes 16 a byte; 15 bytes a clock ask for a fifth of
// what mma.sync does, half of which lines that do not exist waste for groups of 8 (modelled).

#define DECODE_WARPS 4
#define DECODE_STAGES 3
#define DECODE_LINES 16
// Shortest part, in blocks of the cache.
#define DECODE_SHORTEST 8

// How a row's tokens are distributed.
struct DecodeParts {
    AttentionRange seen;
    u32 first;  // block of the cache
    u32 end;
    u32 each;   // blocks of a part
    u32 count;
};
DEV DecodeParts decode_parts(const Attention& a, u32 sequence) {
    DecodeParts parts;
    parts.seen = attention_seen(a, a.first_position[sequence]);
    parts.first = parts.seen.from / ATTENTION_TOKENS;
    parts.end = (parts.seen.to + ATTENTION_TOKENS - 1) / ATTENTION_TOKENS;
    const u32 blocks = parts.end - parts.first;
    const u32 even = (blocks + a.splits - 1) / a.splits;
    const u32 each = even > DECODE_SHORTEST ? even : DECODE_SHORTEST;
    parts.each = (each + DECODE_WARPS - 1) / DECODE_WARPS * DECODE_WARPS;
    parts.count = (blocks + parts.each - 1) / parts.each;
    return parts;
}

// Maximum and sum of the lines that some parts saw: the weight of each part is 2^(its maximum - the joint one).
struct DecodeJoint {
    float max;
    float sum;
};
DEV float decode_weight(float max, const DecodeJoint& joint) {
    return max == ATTENTION_NONE ? 0.0f : exp2_fast(max - joint.max);
}

template <class Cache, int DIM>
DEV void attention_decode(const Attention& a) {
    DYN_SMEM(smem);
    const u32 sequence = blockIdx.z;
    if (a.row_count[sequence] != 1) {
        return;
    }
    const DecodeParts parts = decode_parts(a, sequence);
    const u32 part = blockIdx.x;
    if (part >= parts.count) {
        return;
    }
    const u32 group = a.heads / a.kv_heads, tiles = (group + DECODE_LINES - 1) / DECODE_LINES;
    const u32 kv_head = blockIdx.y / tiles, first_line = blockIdx.y % tiles * DECODE_LINES;
    const u32 count = group - first_line < DECODE_LINES ? group - first_line : DECODE_LINES;
    const u32 first_head = kv_head * group + first_line, row = a.first_row[sequence];

    constexpr u32 QUERY = attention_query_pitch(DIM);
    const float* queries = a.qkv + ((u64)row * (a.heads + 2 * a.kv_heads) + first_head) * DIM;
    for (u32 i = threadIdx.x; i < DECODE_LINES * DIM / 2; i += 32 * DECODE_WARPS) {
        const u32 line = i / (DIM / 2);
        const float* query = line < count ? queries + line * DIM : nullptr;
        attention_query<Cache, DIM>(smem + line * QUERY, query, a.scale, i % (DIM / 2));
    }
    __syncthreads();

    constexpr u32 STAGE = attention_block_bytes(DIM, Cache::BYTES);
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u8* stages = smem + DECODE_LINES * QUERY;
    u8* ring = stages + warp * DECODE_STAGES * STAGE;
    const u32 begin = parts.first + part * parts.each + warp;
    const u32 stop = parts.first + (part + 1) * parts.each;
    const u32 end = stop < parts.end ? stop : parts.end;
    const u32* table = a.tables + a.table_start[sequence];
    auto start = [&](u32 step) {
        const u32 block = begin + step * DECODE_WARPS;
        if (block < end) {
            attention_fetch<Cache, DIM>(ring + step % DECODE_STAGES * STAGE, a, table[block], kv_head,
                                        block * ATTENTION_TOKENS, parts.seen.to, lane, 32);
        }
        cp_async_commit();
    };
    AttentionLines<DIM> lines;
    lines.clear();
    const AttentionRange nothing = {0, 0};
    const AttentionRange seen[2] = {lane / 4 < count ? parts.seen : nothing, lane / 4 + 8 < count ? parts.seen : nothing};
    const float factor = a.k_scales[kv_head] * ATTENTION_LOG2E;
#pragma unroll
    for (u32 step = 0; step < DECODE_STAGES - 1; step++) {
        start(step);
    }
    for (u32 step = 0; begin + step * DECODE_WARPS < end; step++) {
        cp_async_wait<DECODE_STAGES - 2>();
        // The step's bytes of all lanes are there, and all lanes are done with the stage that is filled next.
        __syncwarp();
        start(step + DECODE_STAGES - 1);
        const u8* keys = ring + step % DECODE_STAGES * STAGE;
        attention_block<Cache, DIM>(lines, smem, keys, keys + ATTENTION_TOKENS * attention_key_pitch(DIM, Cache::BYTES),
                                    (begin + step * DECODE_WARPS) * ATTENTION_TOKENS, seen, factor);
    }
    lines.add_sums();

    // The warps' lines meet where the stages were.
    __syncthreads();
    float* outs = reinterpret_cast<float*>(stages);
    float2* states = reinterpret_cast<float2*>(outs + DECODE_WARPS * DECODE_LINES * DIM);
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const u32 line = warp * DECODE_LINES + g + 8 * r;
        if (t == 0) {
            states[line] = make_float2(lines.max[r], lines.sum[r]);
        }
#pragma unroll
        for (int unit = 0; unit < DIM / 32; unit++) {
            float4* to = reinterpret_cast<float4*>(outs + line * DIM + unit * 32 + t * 8);
            const float(&tile)[DIM / 8][4] = lines.out;
            const int u = unit * 4;
            to[0] = make_float4(tile[u][2 * r], tile[u + 1][2 * r], tile[u + 2][2 * r], tile[u + 3][2 * r]);
            to[1] = make_float4(tile[u][2 * r + 1], tile[u + 1][2 * r + 1], tile[u + 2][2 * r + 1], tile[u + 3][2 * r + 1]);
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < count * DIM; i += 32 * DECODE_WARPS) {
        const u32 line = i / DIM, d = i % DIM, head = first_head + line;
        DecodeJoint joint = {ATTENTION_NONE, 0.0f};
#pragma unroll
        for (u32 w = 0; w < DECODE_WARPS; w++) {
            joint.max = fmaxf(joint.max, states[w * DECODE_LINES + line].x);
        }
        float value = 0.0f;
#pragma unroll
        for (u32 w = 0; w < DECODE_WARPS; w++) {
            const float2 state = states[w * DECODE_LINES + line];
            const float weight = decode_weight(state.x, joint);
            joint.sum += weight * state.y;
            value += weight * outs[(w * DECODE_LINES + line) * DIM + d];
        }
        if (parts.count == 1) {
            a.out[((u64)row * a.heads + head) * DIM + d] = value * (a.v_scales[kv_head] / joint.sum);
            continue;
        }
        const u64 at = ((u64)sequence * a.heads + head) * a.splits + part;
        a.partial[at * DIM + d] = value;
        if (d == 0) {
            a.partial_state[at] = make_float2(joint.max, joint.sum);
        }
    }
}

// Grid: x = splits, y = KV heads times tiles of 16 lines, z = sequences. 128 threads.
// A program that needs one head size compiles that alone, by ATTENTION_DIM: a size takes the compiler seconds.
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 64
extern "C" __global__ void __launch_bounds__(128) attention_decode_bf16_64(Attention a) { grid_wait(); attention_decode<CacheBf16, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_fp16_64(Attention a) { grid_wait(); attention_decode<CacheFp16, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e4m3_64(Attention a) { grid_wait(); attention_decode<CacheE4m3, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e5m2_64(Attention a) { grid_wait(); attention_decode<CacheE5m2, 64>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 96
extern "C" __global__ void __launch_bounds__(128) attention_decode_bf16_96(Attention a) { grid_wait(); attention_decode<CacheBf16, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_fp16_96(Attention a) { grid_wait(); attention_decode<CacheFp16, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e4m3_96(Attention a) { grid_wait(); attention_decode<CacheE4m3, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e5m2_96(Attention a) { grid_wait(); attention_decode<CacheE5m2, 96>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 128
extern "C" __global__ void __launch_bounds__(128) attention_decode_bf16_128(Attention a) { grid_wait(); attention_decode<CacheBf16, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_fp16_128(Attention a) { grid_wait(); attention_decode<CacheFp16, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e4m3_128(Attention a) { grid_wait(); attention_decode<CacheE4m3, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e5m2_128(Attention a) { grid_wait(); attention_decode<CacheE5m2, 128>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 256
extern "C" __global__ void __launch_bounds__(128) attention_decode_bf16_256(Attention a) { grid_wait(); attention_decode<CacheBf16, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_fp16_256(Attention a) { grid_wait(); attention_decode<CacheFp16, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e4m3_256(Attention a) { grid_wait(); attention_decode<CacheE4m3, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_e5m2_256(Attention a) { grid_wait(); attention_decode<CacheE5m2, 256>(a); }
#endif

// Joins the parts of each head. A row of one part is there already. Grid: x = heads, y = sequences. 128 threads.
extern "C" __global__ void __launch_bounds__(128) attention_reduce(Attention a) {
    grid_start();
    const u32 head = blockIdx.x, sequence = blockIdx.y;
    if (a.row_count[sequence] != 1) {
        return;
    }
    const u32 count = decode_parts(a, sequence).count;
    if (count == 1) {
        return;
    }
    const u64 first = ((u64)sequence * a.heads + head) * a.splits;
    DecodeJoint joint = {ATTENTION_NONE, 0.0f};
    for (u32 part = 0; part < count; part++) {
        joint.max = fmaxf(joint.max, a.partial_state[first + part].x);
    }
    for (u32 part = 0; part < count; part++) {
        const float2 state = a.partial_state[first + part];
        joint.sum += decode_weight(state.x, joint) * state.y;
    }
    const float factor = a.v_scales[head / (a.heads / a.kv_heads)] / joint.sum;
    float* out = a.out + ((u64)a.first_row[sequence] * a.heads + head) * a.dim;
    for (u32 d = threadIdx.x; d < a.dim; d += 128) {
        float value = 0.0f;
        for (u32 part = 0; part < count; part++) {
            const float weight = decode_weight(a.partial_state[first + part].x, joint);
            value += weight * a.partial[(first + part) * a.dim + d];
        }
        out[d] = value * factor;
    }
}
