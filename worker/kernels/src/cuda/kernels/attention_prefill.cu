// Attention of chunks of a prompt: many rows of a sequence, causal, K and V of the chunk itself read as stored, too.
//
// A block of four warps takes 128 lines (64 for heads of 256) of one sequence and one KV head: 128 / group rows with all query
// heads that share the KV head, so that a group of 4 reads the cache once for 32 rows. Each warp has 32 (16) lines; all walk
// the same steps of 32 (16) tokens, which begin at multiples of 32 (16) of the sequence, whatever the chunk. A warp leaves out
// steps that none of its lines sees (those behind the diagonal, those before the window).
//
// K and V of a step lie in shared memory in the format of the products, and ldmatrix gives the fragments. Where the cache has
// 8 bits each thread copies pieces of 16 bytes to a place of its own (two steps ahead), and converts them, once for the block,
// into the tile of the next step, between the products of this one. With 16 bits the copies go into the tiles.
//
// What bounds it, for a step of 32 tokens of 128 dims in 8 bits (modelled): 128 mma of a warp, some 830 clocks of a quarter SM
// at 60 % of its rate; 960 clocks of shared memory (128 bytes each): 512 for the keys and values of four warps, 192 for
// queries, 256 for the conversion; about 450 other instructions of a warp. Two blocks on an SM keep products and shared memory
// busy while one waits at its barrier. Warps of 16 lines would read the same keys and values for half the products, and warps
// that decode for themselves repeat the conversions. Measured on an H100 80GB HBM3 for 2,048 rows of 32 heads, 8 KV heads and
// 128 dims: 145 us, 237 of the 600 TFLOP/s that mma.sync has (297 us where each warp of 16 lines decodes). 512 rows are 128
// blocks, one for each SM, and take 36 us: a block by itself waits for itself most of the time.
//
// A line's reference, which is subtracted from its scores, follows their maximum only where this has grown by more than
// PREFILL_SLACK: else one of a warp's 32 lines would ask for new outputs in most steps. Probabilities are up to 2^8 then, which
// all formats hold as well as 1.
//
//   dim  cache    shared memory   registers   blocks per SM
//    64  8 bit         44 KB         166           3
//   128  8 bit         84 KB         255           2
//   128  16 bit        85 KB         255           2
//   256  8 bit         82 KB         241           2
//
// Tiles of the last rows have most to do and are numbered first, those of all KV heads and sequences, so that none of them
// starts last.

template <class Cache, int DIM>
DEV void attention_prefill(const Attention& a) {
    typedef Prefill<Cache, DIM> P;
    DYN_SMEM(smem);
    const u32 group = a.heads / a.kv_heads, tile_rows = P::LINES / group;
    const u32 number = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z), beside = gridDim.y * gridDim.z;
    const u32 kv_head = number % beside % gridDim.y, sequence = number % beside / gridDim.y;
    const u32 first = (gridDim.x - 1 - number / beside) * tile_rows, rows = a.row_count[sequence];
    if (rows < 2 || first >= rows) {
        return;
    }
    const u32 first_row = a.first_row[sequence] + first, first_position = a.first_position[sequence] + first;
    const u32 count = (rows - first < tile_rows ? rows - first : tile_rows) * group;
    const PrefillTokens tokens = {a.tables + a.table_start[sequence], attention_seen(a, first_position).from,
                                  attention_seen(a, first_position + (count - 1) / group).to};
    const u32 first_step = tokens.from / P::TOKENS, end_step = (tokens.end + P::TOKENS - 1) / P::TOKENS;

    u8* tiles = smem + P::LINES * P::PITCH;
    u8* stages = tiles + (P::STAGED ? 2 * P::TILE : 0);
    PrefillBlocks<P::PAIRS> blocks = tokens.blocks<P::PAIRS>(first_step);
    auto start = [&](u32 step) {
        // The second step's pieces are zeros where there is no such step: they are converted all the same.
        if (step < end_step || (P::STAGED && step == first_step + 1)) {
            u8* to = P::STAGED ? stages + step % PREFILL_AHEAD * P::STAGE : tiles + step % (PREFILL_AHEAD + 1) * P::TILE;
            prefill_fetch<Cache, DIM>(to, a, tokens, blocks, kv_head, step);
            // Known by the time that they are asked for.
            blocks = tokens.blocks<P::PAIRS>(step + 1);
        }
        cp_async_commit();
    };
#pragma unroll
    for (u32 ahead = 0; ahead < PREFILL_AHEAD; ahead++) {
        start(first_step + ahead);
    }

#pragma unroll 4
    for (u32 i = threadIdx.x; i < P::LINES * DIM / 8; i += PREFILL_THREADS) {
        const u32 line = i / (DIM / 8), chunk = i % (DIM / 8);
        float4 low = make_float4(0.0f, 0.0f, 0.0f, 0.0f), high = low;
        if (line < count) {
            const u64 head = (u64)(first_row + line / group) * (a.heads + 2 * a.kv_heads) + kv_head * group + line % group;
            const float4* query = reinterpret_cast<const float4*>(a.qkv + head * DIM + chunk * 8);
            low = query[0], high = query[1];
        }
        *reinterpret_cast<uint4*>(smem + line * P::PITCH + P::place(chunk) * 16) =
            make_uint4(Cache::pack(low.x * a.scale, low.y * a.scale), Cache::pack(low.z * a.scale, low.w * a.scale),
                       Cache::pack(high.x * a.scale, high.y * a.scale), Cache::pack(high.z * a.scale, high.w * a.scale));
    }

    // What the warp's lines see: all tokens of the first range, none outside the second.
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const u32 warp_line = warp * P::TILES * 16;
    const u32 warp_last = warp_line + P::TILES * 16 < count ? warp_line + P::TILES * 16 - 1 : count - 1;
    const AttentionRange of_first = attention_seen(a, first_position + warp_line / group);
    const AttentionRange of_last = attention_seen(a, first_position + warp_last / group);
    const AttentionRange warp_all = {of_last.from, of_first.to};
    const AttentionRange warp_any = {of_first.from, warp_line < count ? of_last.to : 0};
    u32 position[P::TILES][2];
#pragma unroll
    for (int m = 0; m < P::TILES; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            position[m][r] = first_position + (warp_line + m * 16 + r * 8 + g) / group;
        }
    }

    // Rows of this lane for ldmatrix: of 16 lines or values, and of 16 keys.
    const u32 lane_row = lane % 16 * P::PITCH + lane / 16 * 16;
    const u32 lane_key = (lane / 16 * 8 + lane % 8) * P::PITCH + lane / 8 % 2 * 16;
    const u8* queries = smem + warp_line * P::PITCH + lane_row;
    PrefillLines<Cache, DIM> lines;
    lines.clear();
    // Not zero: a token that is not seen has a score of -inf, which must not become NaN.
    const float factor = fmaxf(a.k_scales[kv_head] * ATTENTION_LOG2E, 1e-30f);
    if constexpr (P::STAGED) {
        cp_async_wait<PREFILL_AHEAD - 1>();
        prefill_convert_all<Cache, DIM>(tiles + first_step % 2 * P::TILE, stages + first_step % PREFILL_AHEAD * P::STAGE);
        start(first_step + PREFILL_AHEAD);
    }
    for (u32 step = first_step; step < end_step; step++) {
        // This thread's pieces of the step, or of the next one if those are to be converted, are there.
        cp_async_wait<PREFILL_AHEAD - 1>();
        // All threads' tiles of the step are there (in the first step the queries, too), and all warps are done with the tile
        // that is filled next.
        __syncthreads();
        const u32 first_token = step * P::TOKENS;
        const bool seen = first_token < warp_any.to && first_token + P::TOKENS > warp_any.from;
        const u8* tile = tiles + step % (P::STAGED ? 2 : PREFILL_AHEAD + 1) * P::TILE;
        u8* next_tile = tiles + (step + 1) % 2 * P::TILE;
        const u8* next_stage = stages + (step + 1) % PREFILL_AHEAD * P::STAGE;
        if constexpr (P::STAGED) {
            // Behind the last step this is what the stage held before, for a tile that nobody reads.
            if (!seen || !P::SPREAD) {
                prefill_convert_all<Cache, DIM>(next_tile, next_stage);
                start(step + 1 + PREFILL_AHEAD);
            }
        } else {
            start(step + PREFILL_AHEAD);
        }
        if (!seen) {
            continue;
        }

        float s[P::TILES][2 * P::PAIRS][4] = {};
        uint4 piece = make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int unit = 0; unit < DIM / 16; unit++) {
            u32 q[P::TILES][4], k[P::PAIRS][4];
#pragma unroll
            for (int m = 0; m < P::TILES; m++) {
                ldmatrix_x4(q[m], queries + m * 16 * P::PITCH + unit * 32);
            }
#pragma unroll
            for (int pair = 0; pair < P::PAIRS; pair++) {
                ldmatrix_x4(k[pair], tile + pair * 16 * P::PITCH + lane_key + unit * 32);
            }
            if constexpr (P::SPREAD) {
                if (unit / 2 < (int)P::EACH) {
                    if (unit % 2 == 0) {
                        piece = *reinterpret_cast<const uint4*>(next_stage + P::piece(unit / 2) * 16);
                    }
                    prefill_convert<Cache, DIM>(next_tile, unit / 2, unit % 2, unit % 2 == 0 ? piece.x : piece.z,
                                                unit % 2 == 0 ? piece.y : piece.w);
                }
            }
#pragma unroll
            for (int pair = 0; pair < P::PAIRS; pair++) {
                const u32 lower[2] = {k[pair][0], k[pair][1]}, upper[2] = {k[pair][2], k[pair][3]};
#pragma unroll
                for (int m = 0; m < P::TILES; m++) {
                    Cache::mma(s[m][2 * pair], q[m], lower);
                    Cache::mma(s[m][2 * pair + 1], q[m], upper);
                }
            }
        }
        if constexpr (P::SPREAD) {
            start(step + 1 + PREFILL_AHEAD);
        }
        if (first_token < warp_all.from || first_token + P::TOKENS > warp_all.to) {
#pragma unroll
            for (int m = 0; m < P::TILES; m++) {
#pragma unroll
                for (int n = 0; n < 2 * P::PAIRS; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const AttentionRange visible = attention_seen(a, position[m][i / 2]);
                        const u32 token = first_token + n * 8 + t * 2 + i % 2;
                        s[m][n][i] = token >= visible.from && token < visible.to ? s[m][n][i] : ATTENTION_NONE;
                    }
                }
            }
        }
        lines.probabilities(s, factor);
        const u8* values = tile + P::TOKENS * P::PITCH + lane_row;
#pragma unroll
        for (int pair = 0; pair < P::PAIRS; pair++) {
            // D of the scores has the places of A's 16 tokens.
            u32 p[P::TILES][4];
#pragma unroll
            for (int m = 0; m < P::TILES; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float(&of)[4] = s[m][2 * pair + i / 2];
                    p[m][i] = Cache::pack_small(of[i % 2 * 2], of[i % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (int unit = 0; unit < DIM / 16; unit++) {
                u32 v[4];
                ldmatrix_x4_trans(v, values + pair * 16 * P::PITCH + unit * 32);
                const u32 lower[2] = {v[0], v[1]}, upper[2] = {v[2], v[3]};
#pragma unroll
                for (int m = 0; m < P::TILES; m++) {
                    Cache::mma(lines.out[m][2 * unit], p[m], lower);
                    Cache::mma(lines.out[m][2 * unit + 1], p[m], upper);
                }
            }
        }
    }

#pragma unroll
    for (int m = 0; m < P::TILES; m++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            // All lanes take part in the sum, those of lines that do not exist, too.
            float sum = lines.sum[m][r];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const u32 line = warp_line + m * 16 + r * 8 + g;
            if (line >= count) {
                continue;
            }
            const float scale = a.v_scales[kv_head] / sum;
            const u64 head = (u64)(first_row + line / group) * a.heads + kv_head * group + line % group;
            float* to = a.out + head * DIM + t * 2;
#pragma unroll
            for (int n = 0; n < DIM / 8; n++) {
                *reinterpret_cast<float2*>(to + P::chunk(n) * 8) =
                    make_float2(lines.out[m][n][2 * r] * scale, lines.out[m][n][2 * r + 1] * scale);
            }
        }
    }
}

// Grid: x = tiles of 128 / group rows (64 / group for heads of 256) of the longest chunk, y = KV heads, z = sequences. 128
// threads.
// ATTENTION_DIM: see attention_decode.cu.
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 64
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_64(Attention a) { grid_wait(); attention_prefill<CacheBf16, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_64(Attention a) { grid_wait(); attention_prefill<CacheFp16, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_64(Attention a) { grid_wait(); attention_prefill<CacheE4m3, 64>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_64(Attention a) { grid_wait(); attention_prefill<CacheE5m2, 64>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 96
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_96(Attention a) { grid_wait(); attention_prefill<CacheBf16, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_96(Attention a) { grid_wait(); attention_prefill<CacheFp16, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_96(Attention a) { grid_wait(); attention_prefill<CacheE4m3, 96>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_96(Attention a) { grid_wait(); attention_prefill<CacheE5m2, 96>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 128
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_128(Attention a) { grid_wait(); attention_prefill<CacheBf16, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_128(Attention a) { grid_wait(); attention_prefill<CacheFp16, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_128(Attention a) { grid_wait(); attention_prefill<CacheE4m3, 128>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_128(Attention a) { grid_wait(); attention_prefill<CacheE5m2, 128>(a); }
#endif
#if !defined(ATTENTION_DIM) || ATTENTION_DIM == 256
extern "C" __global__ void __launch_bounds__(128) attention_prefill_bf16_256(Attention a) { grid_wait(); attention_prefill<CacheBf16, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_fp16_256(Attention a) { grid_wait(); attention_prefill<CacheFp16, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e4m3_256(Attention a) { grid_wait(); attention_prefill<CacheE4m3, 256>(a); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_e5m2_256(Attention a) { grid_wait(); attention_prefill<CacheE5m2, 256>(a); }
#endif
