// Copies blocks of the KV pool, in the order of a list.
//
// A later move may read what an earlier one wrote. So a thread owns one 16-byte column of all blocks and makes every move
// of it: columns never meet, and within a thread accesses to one address keep their order. No barrier, no launch per
// move.
//
// Bound by bytes. Columns are many (65536 for a block of 1 MiB), yet one load each in flight would be too few for the
// memory's latency when blocks are small; so up to four moves are loaded together where none of them reads what another
// of the four writes, as is usual when live blocks move below free ones.
//
// Grid: block_bytes / 16 / 256 blocks, rounded up, of 256 threads. moves [2 count]: from, to; block_bytes is a multiple
// of 16, pool 16-byte aligned.

constexpr u32 MOVES_TOGETHER = 4;

// Whether move `later` reads what a move in [first, later) writes.
DEV bool reads_what_was_written(const u32* moves, u32 first, u32 later) {
    bool reads = false;
    for (u32 earlier = first; earlier < later; earlier++) {
        reads |= moves[2 * earlier + 1] == moves[2 * later];
    }
    return reads;
}

extern "C" __global__ void __launch_bounds__(256) kv_move(u8* pool, const u32* moves, u64 block_bytes, u32 count) {
    grid_start();
    const u64 column = ((u64)blockIdx.x * 256 + threadIdx.x) * 16;
    if (column >= block_bytes) {
        return;
    }
    u8* base = pool + column;
    for (u32 first = 0; first < count;) {
        // The same for all threads: it depends on the list alone.
        u32 end = first + 1;
        while (end < count && end < first + MOVES_TOGETHER && !reads_what_was_written(moves, first, end)) {
            end++;
        }
        uint4 values[MOVES_TOGETHER];
#pragma unroll
        for (u32 i = 0; i < MOVES_TOGETHER; i++) {
            if (first + i < end) {
                values[i] = *reinterpret_cast<const uint4*>(base + moves[2 * (first + i)] * block_bytes);
            }
        }
#pragma unroll
        for (u32 i = 0; i < MOVES_TOGETHER; i++) {
            if (first + i < end) {
                *reinterpret_cast<uint4*>(base + moves[2 * (first + i) + 1] * block_bytes) = values[i];
            }
        }
        first = end;
    }
}
