// Warp collectives: how lanes meet, and those that only move or count values. Matrix instructions are in tensor.cpp.
#include <algorithm>
#include <cstring>

#include "../race/race.h"
#include "runtime.h"

namespace emu {

static Meeting& meeting_of(Warp& warp, const Fiber& me, const Collective& what, unsigned mask, Site site) {
    Meeting* empty = nullptr;
    for (Meeting& m : warp.meetings) {
        if (m.arrived == 0) {
            empty = empty != nullptr ? empty : &m;
        } else if (m.mask == mask) {
            const bool same = m.what == &what && (!what.whole_warp || m.site.line == site.line);
            if (!same) {
                const std::string text = "lanes of a warp wait in different places: one in " + std::string(m.what->name) + " at line " +
                                         std::to_string(m.site.line) + ", another in " + what.name;
                kernel_fault(text.c_str(), site);
            }
            return m;
        } else if ((m.arrived & mask) != 0 || (m.mask >> me.lane & 1) != 0) {
            kernel_fault("lanes of a warp wait with masks that differ and overlap", site);
        }
    }
    if (empty == nullptr) {
        kernel_fault("more groups of a warp's lanes wait at once than are emulated", site);
    }
    empty->mask = mask;
    empty->what = &what;
    empty->site = site;
    return *empty;
}

void meet(const Collective& what, unsigned mask, const void* in, size_t in_bytes, void* out, size_t out_bytes, Site site) {
    Fiber& me = current_fiber();
    Block& block = *me.block;
    Warp& warp = block.warps[me.warp];
    if ((mask >> me.lane & 1) == 0) {
        kernel_fault("the calling lane is not in the mask", site);
    }
    if (what.whole_warp && warp.exist != ~0u) {
        kernel_fault((std::string(what.name) + " in a warp of fewer than 32 threads").c_str(), site);
    }
    mask &= warp.exist;
    if ((mask & warp.exited) != 0) {
        kernel_fault((std::string(what.name) + " waits for a lane that has returned").c_str(), site);
    }
    Meeting& meeting = meeting_of(warp, me, what, mask, site);
    if (in_bytes > 0) {
        memcpy(warp.in[me.lane], in, in_bytes);
    }
    meeting.arrived |= 1u << me.lane;
    if (meeting.arrived != mask) {
        wait_for(what.name, site);
    } else {
        if (what.compute != nullptr) {
            what.compute(mask, warp.in, warp.out);
        } else {
            race::warp_barrier(block, me.warp, mask);
        }
        meeting.arrived = 0;
        const uint32_t others = mask & ~(1u << me.lane);
        warp.ready |= others;
        if (others != 0) {
            block.ready_warps |= 1u << me.warp;
        }
    }
    if (out_bytes > 0) {
        memcpy(out, warp.out[me.lane], out_bytes);
    }
}

static bool has(unsigned mask, int lane) { return lane >= 0 && lane < 32 && (mask >> lane & 1) != 0; }

// PTX ISA, shfl.sync: a source outside the lane's segment of `width` lanes gives the lane its own value.
static int shuffle_source(const ShuffleOperand& s, int lane) {
    const int first = lane & ~(s.width - 1), end = first + s.width;
    int source = lane;
    switch (s.mode) {
    case ShuffleMode::Xor: source = lane ^ s.argument; return source < end ? source : lane;
    case ShuffleMode::Down: source = lane + s.argument; return source < end ? source : lane;
    case ShuffleMode::Up: source = lane - s.argument; return source >= first ? source : lane;
    case ShuffleMode::Index: return first + (s.argument & (s.width - 1));
    }
    return lane;
}

static void compute_shuffle(unsigned mask, const Operands& in, Operands& out) {
    for (int lane = 0; lane < 32; lane++) {
        if (!has(mask, lane)) {
            continue;
        }
        const int source = shuffle_source(*(const ShuffleOperand*)in[lane], lane);
        // What a lane outside the mask gives is undefined: all ones, a NaN.
        const uint64_t value = has(mask, source) ? ((const ShuffleOperand*)in[source])->value : ~0ull;
        memcpy(out[lane], &value, sizeof value);
    }
}

static void compute_vote(unsigned mask, const Operands& in, Operands& out) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; lane++) {
        if (has(mask, lane) && *(const int*)in[lane] != 0) {
            votes |= 1u << lane;
        }
    }
    for (auto& lane : out) {
        memcpy(lane, &votes, sizeof votes);
    }
}

static void compute_match(unsigned mask, const Operands& in, Operands& out) {
    for (int lane = 0; lane < 32; lane++) {
        unsigned equal = 0;
        for (int other = 0; other < 32; other++) {
            if (has(mask, other) && memcmp(in[lane], in[other], sizeof(uint64_t)) == 0) {
                equal |= 1u << other;
            }
        }
        memcpy(out[lane], &equal, sizeof equal);
    }
}

template <class Combine>
static void reduce(unsigned mask, const Operands& in, Operands& out, Combine combine) {
    int64_t result = 0;
    bool first = true;
    for (int lane = 0; lane < 32; lane++) {
        if (has(mask, lane)) {
            const int64_t value = *(const int64_t*)in[lane];
            result = first ? value : combine(result, value);
            first = false;
        }
    }
    for (auto& lane : out) {
        memcpy(lane, &result, sizeof result);
    }
}
static void compute_add(unsigned mask, const Operands& in, Operands& out) {
    reduce(mask, in, out, [](int64_t a, int64_t b) { return a + b; });
}
static void compute_max(unsigned mask, const Operands& in, Operands& out) {
    reduce(mask, in, out, [](int64_t a, int64_t b) { return std::max(a, b); });
}
static void compute_min(unsigned mask, const Operands& in, Operands& out) {
    reduce(mask, in, out, [](int64_t a, int64_t b) { return std::min(a, b); });
}

const Collective SHUFFLE{"a shuffle", false, compute_shuffle}, VOTE{"a vote", false, compute_vote},
    SYNC_WARP{"__syncwarp", false, nullptr}, MATCH{"__match_any_sync", false, compute_match},
    REDUCE_ADD{"__reduce_add_sync", false, compute_add}, REDUCE_MAX{"__reduce_max_sync", false, compute_max},
    REDUCE_MIN{"__reduce_min_sync", false, compute_min};

}  // namespace emu
