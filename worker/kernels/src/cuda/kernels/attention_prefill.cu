// Attention of chunks of a prompt: many rows of a sequence, causal, K and V of the chunk itself read as stored, too.
//
// A block of four warps takes 64 lines of one sequence and one KV head: 64 / group rows with all query heads that share the
// KV head, so that a group of 4 reads the cache once for 16 rows. Each warp has 16 lines; all warps walk the same blocks of the
// cache, two at a time, through a ring of three stages in shared memory. A warp leaves out blocks that none of its lines
// sees (those behind the diagonal, those before the window).
//
// What bounds it. Per 16 tokens of 128 dims a warp does 32 mma, some 210 clocks of a quarter SM at 60 % of its rate, and
// about 150 other instructions for softmax, loading and decoding: products decide (modelled). Bytes: 64 lines use a token's
// 256 (8 bit) or 512 bytes for 16 k multiply-adds, 32 or more a byte; the bus is far from full, and two stages in flight (16 or
// 32 KB of a block, of the 15.2 KB that an SM needs at full rate) hide its latency.
//
//   dim  cache    shared memory   registers   blocks per SM
//    64  8 bit         29 KB          78           6
//   128  8 bit         49 KB         124           4
//   128  16 bit        76 KB         126           2
//   256  16 bit       140 KB         194           1
//
// Blocks of the last rows of a sequence have most to do and are numbered first, so that they do not start last.

#define PREFILL_WARPS 4
#define PREFILL_STAGES 3
#define PREFILL_LINES 64
// Blocks of the cache in a stage.
#define PREFILL_BLOCKS 2

template <class Cache, int DIM>
DEV void attention_prefill(const Attention& a) {
    DYN_SMEM(smem);
    const u32 sequence = blockIdx.z, rows = a.row_count[sequence];
    const u32 group = a.heads / a.kv_heads, tile_rows = PREFILL_LINES / group;
    const u32 first = (gridDim.x - 1 - blockIdx.x) * tile_rows;
    if (rows < 2 || first >= rows) {
        return;
    }
    const u32 kv_head = blockIdx.y, first_row = a.first_row[sequence] + first;
    const u32 first_position = a.first_position[sequence] + first;
    const u32 count = (rows - first < tile_rows ? rows - first : tile_rows) * group;

    constexpr u32 QUERY = attention_query_pitch(DIM);
    for (u32 i = threadIdx.x; i < PREFILL_LINES * DIM / 2; i += 32 * PREFILL_WARPS) {
        const u32 line = i / (DIM / 2);
        const u64 head = (u64)(first_row + line / group) * (a.heads + 2 * a.kv_heads) + kv_head * group + line % group;
        const float* query = line < count ? a.qkv + head * DIM : nullptr;
        attention_query<Cache, DIM>(smem + line * QUERY, query, a.scale, i % (DIM / 2));
    }

    // What this lane's two lines see, and what the warp's and the block's do.
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_line = warp * 16;
    AttentionRange seen[2];
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const u32 line = warp_line + lane / 4 + 8 * r;
        const AttentionRange nothing = {0, 0};
        seen[r] = line < count ? attention_seen(a, first_position + line / group) : nothing;
    }
    const u32 warp_last = warp_line + 16 < count ? warp_line + 15 : count - 1;
    const AttentionRange nothing = {0, 0};
    const AttentionRange of_warp = {attention_seen(a, first_position + warp_line / group).from,
                                    attention_seen(a, first_position + warp_last / group).to};
    const AttentionRange warp_seen = warp_line < count ? of_warp : nothing;
    const u32 from = attention_seen(a, first_position).from / ATTENTION_TOKENS;
    const u32 tokens = attention_seen(a, first_position + (count - 1) / group).to;
    const u32 blocks = (tokens + ATTENTION_TOKENS - 1) / ATTENTION_TOKENS - from;
    const u32 steps = (blocks + PREFILL_BLOCKS - 1) / PREFILL_BLOCKS;

    constexpr u32 BLOCK = attention_block_bytes(DIM, Cache::BYTES), STAGE = PREFILL_BLOCKS * BLOCK;
    u8* stages = smem + PREFILL_LINES * QUERY;
    const u32* table = a.tables + a.table_start[sequence] + from;
    auto start = [&](u32 step) {
        for (u32 i = step * PREFILL_BLOCKS; i < (step + 1) * PREFILL_BLOCKS && i < blocks; i++) {
            attention_fetch<Cache, DIM>(stages + step % PREFILL_STAGES * STAGE + i % PREFILL_BLOCKS * BLOCK, a, table[i],
                                        kv_head, (from + i) * ATTENTION_TOKENS, tokens, threadIdx.x, 32 * PREFILL_WARPS);
        }
        cp_async_commit();
    };
    AttentionLines<DIM> lines;
    lines.clear();
    const float factor = a.k_scales[kv_head] * ATTENTION_LOG2E;
#pragma unroll
    for (u32 step = 0; step < PREFILL_STAGES - 1; step++) {
        start(step);
    }
    for (u32 step = 0; step < steps; step++) {
        cp_async_wait<PREFILL_STAGES - 2>();
        // The step's bytes of all threads are there (in the first step the queries, too), and all warps are done with the
        // stage that is filled next.
        __syncthreads();
        start(step + PREFILL_STAGES - 1);
        for (u32 i = step * PREFILL_BLOCKS; i < (step + 1) * PREFILL_BLOCKS && i < blocks; i++) {
            const u32 token = (from + i) * ATTENTION_TOKENS;
            if (token >= warp_seen.to || token + ATTENTION_TOKENS <= warp_seen.from) {
                continue;
            }
            const u8* keys = stages + step % PREFILL_STAGES * STAGE + i % PREFILL_BLOCKS * BLOCK;
            attention_block<Cache, DIM>(lines, smem + warp_line * QUERY, keys,
                                        keys + ATTENTION_TOKENS * attention_key_pitch(DIM, Cache::BYTES), token, seen,
                                        factor);
        }
    }
    lines.add_sums();
#pragma unroll
    for (u32 r = 0; r < 2; r++) {
        const u32 line = warp_line + lane / 4 + 8 * r;
        if (line >= count) {
            continue;
        }
        const float scale = a.v_scales[kv_head] / lines.sum[r];
        const u64 head = (u64)(first_row + line / group) * a.heads + kv_head * group + line % group;
#pragma unroll
        for (int unit = 0; unit < DIM / 32; unit++) {
            float4* to = reinterpret_cast<float4*>(a.out + head * DIM + unit * 32 + lane % 4 * 8);
            const float(&tile)[DIM / 8][4] = lines.out;
            const int u = unit * 4;
            to[0] = make_float4(tile[u][2 * r] * scale, tile[u + 1][2 * r] * scale, tile[u + 2][2 * r] * scale,
                                tile[u + 3][2 * r] * scale);
            to[1] = make_float4(tile[u][2 * r + 1] * scale, tile[u + 1][2 * r + 1] * scale,
                                tile[u + 2][2 * r + 1] * scale, tile[u + 3][2 * r + 1] * scale);
        }
    }
}

// Grid: x = tiles of 64 / group rows of the longest chunk, y = KV heads, z = sequences. 128 threads.
// ATTENTION_DIM: see attention_decode.cu.
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 64
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_64(Attention a) { grid_start(); attention_prefill<CacheBf16, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_64(Attention a) { grid_start(); attention_prefill<CacheFp16, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_64(Attention a) { grid_start(); attention_prefill<CacheE4m3, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_64(Attention a) { grid_start(); attention_prefill<CacheE5m2, 64>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 96
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_96(Attention a) { grid_start(); attention_prefill<CacheBf16, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_96(Attention a) { grid_start(); attention_prefill<CacheFp16, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_96(Attention a) { grid_start(); attention_prefill<CacheE4m3, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_96(Attention a) { grid_start(); attention_prefill<CacheE5m2, 96>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 128
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_128(Attention a) { grid_start(); attention_prefill<CacheBf16, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_128(Attention a) { grid_start(); attention_prefill<CacheFp16, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_128(Attention a) { grid_start(); attention_prefill<CacheE4m3, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_128(Attention a) { grid_start(); attention_prefill<CacheE5m2, 128>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 256
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_256(Attention a) { grid_start(); attention_prefill<CacheBf16, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_256(Attention a) { grid_start(); attention_prefill<CacheFp16, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_256(Attention a) { grid_start(); attention_prefill<CacheE4m3, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_256(Attention a) { grid_start(); attention_prefill<CacheE5m2, 256>(a); }
#endif
