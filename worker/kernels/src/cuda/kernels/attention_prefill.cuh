// Attention of chunks of a prompt: the sides of a block's tiles, and how a step's keys and values get into shared memory. What
// the parts are for is told at the top of attention_prefill.cu.

#define PREFILL_WARPS 4
#define PREFILL_THREADS (32 * PREFILL_WARPS)
// Steps that are on their way to a block; tiles of 16-bit caches are one more.
#define PREFILL_AHEAD 2

template <class Cache, int DIM>
struct Prefill {
    // Tiles of 16 lines of a warp, and tokens of a step: what registers hold.
    static constexpr int TILES = DIM <= 128 ? 2 : 1;
    static constexpr u32 TOKENS = DIM <= 128 ? 32 : 16;
    static constexpr int PAIRS = TOKENS / 16;
    static constexpr u32 LINES = PREFILL_WARPS * TILES * 16;
    // Bytes of a row of queries, keys or values: eight rows of 16 bytes meet different banks.
    static constexpr u32 PITCH = 2 * DIM + 16;
    // Keys and then values of a step.
    static constexpr u32 TILE = 2 * TOKENS * PITCH;
    static constexpr bool STAGED = Cache::BYTES == 1;
    // Pieces of 16 bytes of a row as it is stored, and those of a step that a thread has.
    static constexpr u32 PIECES = DIM * Cache::BYTES / 16;
    static constexpr u32 EACH = 2 * TOKENS * PIECES / PREFILL_THREADS;
    static constexpr u32 STAGE = EACH * PREFILL_THREADS * 16;
    static_assert(2 * TOKENS * PIECES % PREFILL_THREADS == 0, "pieces are left over");
    // Whether the next step is converted between the products with keys, else before them: heads of 64 have registers for three
    // blocks on an SM without.
    static constexpr bool SPREAD = STAGED && DIM != 64;

    // The number of this thread's piece n (of a thread that is less than 128, from which the compiler knows rows).
    static __device__ __forceinline__ u32 piece(u32 n) { return n * PREFILL_THREADS + threadIdx.x % PREFILL_THREADS; }

    // Where the eight dims of a chunk lie in a row of shared memory, and the inverse. A piece of sixteen 8-bit elements becomes
    // two chunks, which lie half a row apart, so that neighbouring threads write neighbouring chunks.
    static __device__ __forceinline__ constexpr u32 place(u32 chunk) {
        return STAGED ? chunk % 2 * (DIM / 16) + chunk / 2 : chunk;
    }
    static __device__ __forceinline__ constexpr u32 chunk(u32 place) {
        return STAGED ? place % (DIM / 16) * 2 + place / (DIM / 16) : place;
    }
};

// Cache blocks of a step.
template <int PAIRS>
struct PrefillBlocks {
    u32 number[PAIRS];
};

// The tokens that a block's lines see, and the sequence's block numbers.
struct PrefillTokens {
    const u32* table;
    u32 from;
    u32 end;

    // The numbers of a step's blocks. Those that no line sees are not looked at; a neighbour stands for them.
    template <int PAIRS>
    __device__ __forceinline__ PrefillBlocks<PAIRS> blocks(u32 step) const {
        const u32 first = from / ATTENTION_TOKENS, last = (end - 1) / ATTENTION_TOKENS;
        PrefillBlocks<PAIRS> found;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            const u32 block = step * PAIRS + i;
            found.number[i] = table[block < first ? first : block > last ? last : block];
        }
        return found;
    }
};

// Starts copying this thread's pieces of a step: each to a place of its own, or into the tile. Tokens that no line sees are
// zeros: what lies there could be NaN, and no probability makes that a zero.
template <class Cache, int DIM>
DEV void prefill_fetch(u8* to, const Attention& a, const PrefillTokens& tokens,
                       const PrefillBlocks<Prefill<Cache, DIM>::PAIRS>& blocks, u32 kv_head, u32 step) {
    typedef Prefill<Cache, DIM> P;
    constexpr u32 ROW = DIM * Cache::BYTES;
#pragma unroll
    for (u32 n = 0; n < P::EACH; n++) {
        const u32 i = P::piece(n), row = i / P::PIECES, piece = i % P::PIECES;
        const u32 value = row / P::TOKENS, token = row % P::TOKENS, position = step * P::TOKENS + token;
        const u32 block = token < ATTENTION_TOKENS ? blocks.number[0] : blocks.number[P::PAIRS - 1];
        const u32 place = (value * a.kv_heads + kv_head) * ATTENTION_TOKENS + token % ATTENTION_TOKENS;
        const u8* from = a.kv + block * a.block_bytes + (u64)place * ROW + piece * 16;
        cp_async16(to + (P::STAGED ? i * 16 : row * P::PITCH + piece * 16), from,
                   position >= tokens.from && position < tokens.end);
    }
}

// Writes eight elements of one of this thread's pieces to the tile: its first half, then its second.
template <class Cache, int DIM>
DEV void prefill_convert(u8* tile, u32 n, u32 half, u32 low, u32 high) {
    typedef Prefill<Cache, DIM> P;
    const u32 i = P::piece(n), row = i / P::PIECES, piece = i % P::PIECES;
    u32 pairs[4];
    Cache::decode(low, high, pairs);
    *reinterpret_cast<uint4*>(tile + row * P::PITCH + (half * P::PIECES + piece) * 16) =
        make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// All of this thread's pieces of a step.
template <class Cache, int DIM>
DEV void prefill_convert_all(u8* tile, const u8* stage) {
#pragma unroll
    for (u32 n = 0; n < Prefill<Cache, DIM>::EACH; n++) {
        const uint4 v = *reinterpret_cast<const uint4*>(stage + Prefill<Cache, DIM>::piece(n) * 16);
        prefill_convert<Cache, DIM>(tile, n, 0, v.x, v.y);
        prefill_convert<Cache, DIM>(tile, n, 1, v.z, v.w);
    }
}
