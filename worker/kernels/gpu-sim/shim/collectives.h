// Barriers, shuffles and votes. __shfl_*_sync moves values only; memory is ordered by __syncwarp and __syncthreads.
#pragma once
#include <cstring>

#include "keywords.h"

inline void __syncthreads(EMU_SITE) { emu::block_barrier(emu::Barrier::Plain, 0, site); }
inline int __syncthreads_or(int predicate, EMU_SITE) { return emu::block_barrier(emu::Barrier::Or, predicate, site); }
inline int __syncthreads_and(int predicate, EMU_SITE) { return emu::block_barrier(emu::Barrier::And, predicate, site); }
inline int __syncthreads_count(int predicate, EMU_SITE) { return emu::block_barrier(emu::Barrier::Count, predicate, site); }
inline void __syncwarp(unsigned mask = 0xffffffffu, EMU_SITE) { emu::meet(emu::SYNC_WARP, mask, nullptr, 0, nullptr, 0, site); }

template <class T>
inline T emu_shuffle(emu::ShuffleMode mode, unsigned mask, T value, int argument, int width, emu::Site site) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    emu::ShuffleOperand operand{0, mode, argument, width};
    std::memcpy(&operand.value, &value, sizeof(T));
    emu::meet(emu::SHUFFLE, mask, &operand, sizeof operand, &value, sizeof(T), site);
    return value;
}
template <class T>
inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32, EMU_SITE) {
    return emu_shuffle(emu::ShuffleMode::Index, mask, value, lane, width, site);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, EMU_SITE) {
    return emu_shuffle(emu::ShuffleMode::Xor, mask, value, lanes, width, site);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_SITE) {
    return emu_shuffle(emu::ShuffleMode::Down, mask, value, (int)by, width, site);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, EMU_SITE) {
    return emu_shuffle(emu::ShuffleMode::Up, mask, value, (int)by, width, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_SITE) {
    unsigned votes;
    emu::meet(emu::VOTE, mask, &predicate, sizeof predicate, &votes, sizeof votes, site);
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, EMU_SITE) { return __ballot_sync(mask, predicate, site) != 0; }
inline int __all_sync(unsigned mask, int predicate, EMU_SITE) { return __ballot_sync(mask, !predicate, site) == 0; }

template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, EMU_SITE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "match compares 4 or 8 bytes");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    unsigned lanes;
    emu::meet(emu::MATCH, mask, &bits, sizeof bits, &lanes, sizeof lanes, site);
    return lanes;
}

// redux.sync: 32-bit integers only.
template <class T>
inline T emu_reduce(const emu::Collective& what, unsigned mask, T value, emu::Site site) {
    static_assert(sizeof(T) == 4);
    const int64_t wide = value;
    int64_t result;
    emu::meet(what, mask, &wide, sizeof wide, &result, sizeof result, site);
    return (T)result;
}
inline int __reduce_add_sync(unsigned mask, int v, EMU_SITE) { return emu_reduce(emu::REDUCE_ADD, mask, v, site); }
inline unsigned __reduce_add_sync(unsigned mask, unsigned v, EMU_SITE) { return emu_reduce(emu::REDUCE_ADD, mask, v, site); }
inline int __reduce_max_sync(unsigned mask, int v, EMU_SITE) { return emu_reduce(emu::REDUCE_MAX, mask, v, site); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned v, EMU_SITE) { return emu_reduce(emu::REDUCE_MAX, mask, v, site); }
inline int __reduce_min_sync(unsigned mask, int v, EMU_SITE) { return emu_reduce(emu::REDUCE_MIN, mask, v, site); }
inline unsigned __reduce_min_sync(unsigned mask, unsigned v, EMU_SITE) { return emu_reduce(emu::REDUCE_MIN, mask, v, site); }

// Which lanes run together is the scheduler's secret; a kernel that asks is wrong more often than not.
inline unsigned __activemask(EMU_SITE) { emu::kernel_fault("__activemask is not emulated: it depends on the schedule", site); }

inline void __threadfence() { emu::note_fence(); }
inline void __threadfence_block() {}
[[noreturn]] inline void __trap(EMU_SITE) { emu::kernel_fault("__trap", site); }
