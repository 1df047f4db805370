// What the attention kernels share: out = softmax(scale q K^T) V over a sequence's cached tokens, online over blocks of 16
// (32 in prefill; online softmax: Milakov and Gimelshein 2018), K and V read as stored.
//
// A *line* is one query head of one row. All query heads that share a KV head are lines of one block, so that K and V are
// read once for them; sixteen lines are the rows of an mma tile. attention_block() takes one block of the cache for sixteen
// lines and is all the arithmetic of decode; prefill, which has more lines, has its own (attention_prefill_lines.cuh).
//
// Numbers: queries times `scale`, and probabilities, are rounded to the format of the products; scores, maxima, sums and
// outputs are FP32. A BF16 cache is multiplied in BF16. FP16, E4M3 and E5M2 caches are multiplied in FP16, which holds every
// one of their values exactly (BF16 would round an FP16 cache) and takes one conversion for two E4M3 values, a byte move for
// E5M2. The scale of K goes onto the scores, the scale of V onto the output.
//
// A line's result depends on its own tokens only: blocks come in order, what a line does not see has probability zero, and
// adding zero or multiplying by one changes no bit. So a prompt gives the same however it is cut into chunks. Blocks and steps
// begin at multiples of their length in the sequence for that, never at a chunk's or a window's first token.
//
// Decode has its fragments without shuffles. The order of the summed index inside mma is free as long as both operands agree:
//   scores: lane (g, t) takes dims 8 t .. 8 t + 7 of a unit of 32 of token g (and of line g): 16 (or 8) bytes at once;
//   output: lane (g, t) takes dims 4 g .. 4 g + 3 of tokens 2 t, 2 t + 1, 2 t + 8, 2 t + 9 and exchanges halves (or bytes) of
//           two tokens into pairs. Column g of output tile j of a unit then is dim 4 g + j, and a lane ends up with eight
//           neighbouring dims 8 t .. 8 t + 7 of its two lines.

#define ATTENTION_TOKENS 16
#define ATTENTION_LOG2E 1.4426950408889634f
// The score of a token that is not seen, and the maximum of no tokens.
#define ATTENTION_NONE __uint_as_float(0xff800000u)

// The arguments of all attention kernels, by value. The pool's layout: block b is at kv + b * block_bytes, in it K of all
// heads [kv_heads][16][dim], then V. Sequences with row_count 0 do not exist (a padded step).
struct Attention {
    float* out;                  // [rows, heads * dim]
    float* partial;              // decode: [sequences, heads, splits, dim], not yet divided by the sum
    float2* partial_state;       // decode: [sequences, heads, splits]: maximum of the scores times log2 e; sum
    const float* qkv;            // [rows, (heads + 2 kv_heads) * dim], rotated
    const u8* kv;                // this layer's part of block 0
    const float* k_scales;       // [kv_heads] of this layer
    const float* v_scales;       // the same
    const u32* tables;           // block numbers of all sequences
    const u32* table_start;      // [sequences], into `tables`
    const u32* first_row;        // [sequences]
    const u32* row_count;        // [sequences]
    const u32* first_position;   // [sequences]
    u64 block_bytes;
    u32 heads;
    u32 kv_heads;
    u32 dim;
    u32 window;  // positions older than this many are not seen; 0: all are
    u32 splits;  // decode: most parts of a sequence
    float scale;
};

// The tokens that a position sees: [from, to).
struct AttentionRange {
    u32 from;
    u32 to;
};
DEV AttentionRange attention_seen(const Attention& a, u32 position) {
    const u32 to = position + 1;
    return AttentionRange{a.window != 0 && to > a.window ? to - a.window : 0, to};
}

// Rows of shared memory. Pitches are such that the lanes that are served together meet different banks:
// K 16 bit (and queries): two rows of 64 bytes; K 8 bit: four rows of 32 bytes; V: every second row, 32 bytes of four.
DEV constexpr u32 attention_query_pitch(u32 dim) {
    return 2 * dim % 128 == 64 ? 2 * dim : 2 * dim + 64;
}
DEV constexpr u32 attention_key_pitch(u32 dim, u32 bytes) {
    return bytes == 2 ? attention_query_pitch(dim) : dim % 64 == 32 ? dim : dim + 32;
}
DEV constexpr u32 attention_value_pitch(u32 dim, u32 bytes) {
    return dim * bytes + 16;
}
DEV constexpr u32 attention_block_bytes(u32 dim, u32 bytes) {
    return ATTENTION_TOKENS * (attention_key_pitch(dim, bytes) + attention_value_pitch(dim, bytes));
}

// ------------------------------------------------------------------------------------------------ formats of the cache

// Eight neighbouring elements of a key as four pairs, and four neighbouring elements of two tokens' values as four pairs
// (one element of each token in a pair).
DEV void attention_keys_16bit(const u8* at, u32 (&pairs)[4]) {
    const uint4 v = *reinterpret_cast<const uint4*>(at);
    pairs[0] = v.x, pairs[1] = v.y, pairs[2] = v.z, pairs[3] = v.w;
}
DEV void attention_values_16bit(const u8* first, const u8* second, u32 (&pairs)[4]) {
    const uint2 a = *reinterpret_cast<const uint2*>(first), b = *reinterpret_cast<const uint2*>(second);
    pairs[0] = __byte_perm(a.x, b.x, 0x5410), pairs[1] = __byte_perm(a.x, b.x, 0x7632);
    pairs[2] = __byte_perm(a.y, b.y, 0x5410), pairs[3] = __byte_perm(a.y, b.y, 0x7632);
}

// Two FP32 as FP16, saturating: a query may be larger than FP16 holds. NaN stays NaN.
DEV u32 attention_f16x2(float lo, float hi) {
    lo = lo > 65504.0f ? 65504.0f : lo < -65504.0f ? -65504.0f : lo;
    hi = hi > 65504.0f ? 65504.0f : hi < -65504.0f ? -65504.0f : hi;
    return pack_f16x2(lo, hi);
}

// Of a format: `pack` rounds two queries, `pack_small` two probabilities, which are far from the largest FP16.
struct CacheBf16 {
    static constexpr u32 BYTES = 2;
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        mma_bf16_16816(d, a, b);
    }
    static __device__ __forceinline__ u32 pack(float lo, float hi) { return pack_bf16x2(lo, hi); }
    static __device__ __forceinline__ u32 pack_small(float lo, float hi) { return pack_bf16x2(lo, hi); }
    static __device__ __forceinline__ void keys(const u8* at, u32 (&pairs)[4]) { attention_keys_16bit(at, pairs); }
    static __device__ __forceinline__ void values(const u8* first, const u8* second, u32 (&pairs)[4]) {
        attention_values_16bit(first, second, pairs);
    }
};

struct CacheFp16 {
    static constexpr u32 BYTES = 2;
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        mma_f16_16816(d, a, b);
    }
    static __device__ __forceinline__ u32 pack(float lo, float hi) { return attention_f16x2(lo, hi); }
    static __device__ __forceinline__ u32 pack_small(float lo, float hi) { return pack_f16x2(lo, hi); }
    static __device__ __forceinline__ void keys(const u8* at, u32 (&pairs)[4]) { attention_keys_16bit(at, pairs); }
    static __device__ __forceinline__ void values(const u8* first, const u8* second, u32 (&pairs)[4]) {
        attention_values_16bit(first, second, pairs);
    }
};

// Eight-bit formats: `Code::decode` gives four bytes as two pairs of FP16.
template <class Code>
struct CacheFp8 {
    static constexpr u32 BYTES = 1;
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        mma_f16_16816(d, a, b);
    }
    static __device__ __forceinline__ u32 pack(float lo, float hi) { return attention_f16x2(lo, hi); }
    static __device__ __forceinline__ u32 pack_small(float lo, float hi) { return pack_f16x2(lo, hi); }
    static __device__ __forceinline__ void decode(u32 low, u32 high, u32 (&pairs)[4]) {
        u32 h[2];
        Code::decode(low, h);
        pairs[0] = h[0], pairs[1] = h[1];
        Code::decode(high, h);
        pairs[2] = h[0], pairs[3] = h[1];
    }
    static __device__ __forceinline__ void keys(const u8* at, u32 (&pairs)[4]) {
        const uint2 v = *reinterpret_cast<const uint2*>(at);
        decode(v.x, v.y, pairs);
    }
    static __device__ __forceinline__ void values(const u8* first, const u8* second, u32 (&pairs)[4]) {
        const u32 a = *reinterpret_cast<const u32*>(first), b = *reinterpret_cast<const u32*>(second);
        // Bytes a0 b0 a1 b1, then a2 b2 a3 b3: tokens side by side before they are decoded.
        decode(__byte_perm(a, b, 0x5140), __byte_perm(a, b, 0x7362), pairs);
    }
};
struct CodeE4m3 {
    static __device__ __forceinline__ void decode(u32 v, u32 (&h)[2]) { e4m3x4_to_f16x4(v, h); }
};
struct CodeE5m2 {
    // An E5M2 value is the upper byte of the FP16 of the same value.
    static __device__ __forceinline__ void decode(u32 v, u32 (&h)[2]) {
        h[0] = __byte_perm(v, 0, 0x1404);
        h[1] = __byte_perm(v, 0, 0x3424);
    }
};
typedef CacheFp8<CodeE4m3> CacheE4m3;
typedef CacheFp8<CodeE5m2> CacheE5m2;

// --------------------------------------------------------------------------------------------------------- arithmetic

// The state of sixteen lines in a warp; lane (g, t) has lines g and g + 8. `out` [tile of 4 u + j][i]: dim
// 32 u + 8 t + 4 (i % 2) + j of line g + 8 (i / 2). `sum` is this lane's part of it.
template <int DIM>
struct AttentionLines {
    float out[DIM / 8][4];
    float max[2];
    float sum[2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int tile = 0; tile < DIM / 8; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out[tile][i] = 0.0f;
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            max[r] = ATTENTION_NONE;
            sum[r] = 0.0f;
        }
    }

    // The whole sums, in all four lanes of a line.
    __device__ __forceinline__ void add_sums() {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
            sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
        }
    }
};

// Scores of 16 tokens times `factor`, -inf where a line does not see the token: s[tile of 8 tokens][i] in D's places.
template <class Cache, int DIM>
DEV void attention_scores(float (&s)[2][4], const u8* queries, const u8* keys, u32 first_token,
                          const AttentionRange (&seen)[2], float factor) {
    constexpr u32 QUERY = attention_query_pitch(DIM), KEY = attention_key_pitch(DIM, Cache::BYTES);
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int unit = 0; unit < DIM / 32; unit++) {
        u32 low[4], high[4];
        attention_keys_16bit(queries + g * QUERY + unit * 64 + t * 16, low);
        attention_keys_16bit(queries + (g + 8) * QUERY + unit * 64 + t * 16, high);
        const u32 a0[4] = {low[0], high[0], low[1], high[1]}, a1[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
            u32 k[4];
            Cache::keys(keys + (tile * 8 + g) * KEY + (unit * 32 + t * 8) * Cache::BYTES, k);
            const u32 b0[2] = {k[0], k[1]}, b1[2] = {k[2], k[3]};
            Cache::mma(s[tile], a0, b0);
            Cache::mma(s[tile], a1, b1);
        }
    }
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 token = first_token + tile * 8 + t * 2 + i % 2;
            const bool visible = token >= seen[i / 2].from && token < seen[i / 2].to;
            s[tile][i] = visible ? s[tile][i] * factor : ATTENTION_NONE;
        }
    }
}

// One block of the cache for sixteen lines. `queries`: their rows in shared memory; `keys` and `values`: the block's rows
// there, zeros for tokens that no line sees (what another sequence left could be NaN); `seen`: what lines g and g + 8 see;
// `factor`: of a score, log2 e included.
template <class Cache, int DIM>
DEV void attention_block(AttentionLines<DIM>& lines, const u8* queries, const u8* keys, const u8* values, u32 first_token,
                         const AttentionRange (&seen)[2], float factor) {
    constexpr u32 VALUE = attention_value_pitch(DIM, Cache::BYTES);
    const u32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float s[2][4] = {};
    attention_scores<Cache, DIM>(s, queries, keys, first_token, seen, factor);
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float highest = fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1]));
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
        highest = fmaxf(highest, lines.max[r]);
        // Before its first token a line has no maximum; any reference does, since all its probabilities are zero.
        const float reference = highest == ATTENTION_NONE ? 0.0f : highest;
        correction[r] = highest == lines.max[r] ? 1.0f : exp2_fast(lines.max[r] - reference);
        lines.max[r] = highest;
        float total = 0.0f;
#pragma unroll
        for (int tile = 0; tile < 2; tile++) {
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; i++) {
                s[tile][i] = exp2_fast(s[tile][i] - reference);
                total += s[tile][i];
            }
        }
        lines.sum[r] = lines.sum[r] * correction[r] + total;
    }
    // Maxima settle after a few blocks: then nothing is rescaled.
    if (__any_sync(0xffffffffu, correction[0] != 1.0f || correction[1] != 1.0f)) {
#pragma unroll
        for (int tile = 0; tile < DIM / 8; tile++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                lines.out[tile][i] *= correction[i / 2];
            }
        }
    }
    // D of the scores has the places of A's 16 tokens: tile 0 is the lower half of k.
    const u32 p[4] = {Cache::pack(s[0][0], s[0][1]), Cache::pack(s[0][2], s[0][3]), Cache::pack(s[1][0], s[1][1]),
                      Cache::pack(s[1][2], s[1][3])};
#pragma unroll
    for (int unit = 0; unit < DIM / 32; unit++) {
        const u8* at = values + 2 * t * VALUE + (unit * 32 + g * 4) * Cache::BYTES;
        u32 low[4], high[4];
        Cache::values(at, at + VALUE, low);
        Cache::values(at + 8 * VALUE, at + 9 * VALUE, high);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const u32 b[2] = {low[j], high[j]};
            Cache::mma(lines.out[unit * 4 + j], p, b);
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- loading

// Starts copying K and V of one head's block to shared memory, 16 bytes a piece, by `threads` threads of which this is
// number `thread`. Tokens from `end` on are zeros.
template <class Cache, int DIM>
DEV void attention_fetch(u8* to, const Attention& a, u32 block, u32 kv_head, u32 first_token, u32 end, u32 thread,
                         u32 threads) {
    constexpr u32 ROW = DIM * Cache::BYTES, PIECES = ROW / 16;
    constexpr u32 KEY = attention_key_pitch(DIM, Cache::BYTES), VALUE = attention_value_pitch(DIM, Cache::BYTES);
    const u8* keys = a.kv + block * a.block_bytes + (u64)kv_head * ATTENTION_TOKENS * ROW;
    const u8* values = keys + (u64)a.kv_heads * ATTENTION_TOKENS * ROW;
    for (u32 i = thread; i < ATTENTION_TOKENS * PIECES; i += threads) {
        const u32 token = i / PIECES, piece = i % PIECES * 16;
        const bool exists = first_token + token < end;
        cp_async16(to + token * KEY + piece, keys + token * ROW + piece, exists);
        cp_async16(to + ATTENTION_TOKENS * KEY + token * VALUE + piece, values + token * ROW + piece, exists);
    }
}

// Writes one line's query, times the scale, to its row of shared memory; a line that does not exist (null) is zeros.
template <class Cache, int DIM>
DEV void attention_query(u8* row, const float* query, float scale, u32 pair) {
    float2 q = make_float2(0.0f, 0.0f);
    if (query != nullptr) {
        q = reinterpret_cast<const float2*>(query)[pair];
    }
    reinterpret_cast<u32*>(row)[pair] = Cache::pack(q.x * scale, q.y * scale);
}
