// What the collectives compute. Sums are made rank by rank and rounded to the type each time, as a ring does.
#include <algorithm>
#include <cstring>

#include "../driver/control.h"
#include "../shim/device.h"
#include "comm.h"

namespace nccl {

size_t bytes_of(int type) {
    switch (type) {
    case INT8:
    case UINT8: return 1;
    case FP16:
    case BF16: return 2;
    case INT32:
    case UINT32:
    case FP32: return 4;
    case INT64:
    case UINT64:
    case FP64: return 8;
    default: return 0;
    }
}

static float load(const void* p, int type, size_t i) {
    return type == BF16 ? emu::from_bf16(((const uint16_t*)p)[i]) : type == FP16 ? emu::from_f16(((const uint16_t*)p)[i]) : ((const float*)p)[i];
}
static void store(void* p, int type, size_t i, float v) {
    if (type == BF16) {
        ((uint16_t*)p)[i] = emu::to_bf16(v);
    } else if (type == FP16) {
        ((uint16_t*)p)[i] = emu::to_f16(v);
    } else {
        ((float*)p)[i] = v;
    }
}

static float combine(float a, float b, int reduction) {
    switch (reduction) {
    case PRODUCT: return a * b;
    case MAX: return std::max(a, b);
    case MIN: return std::min(a, b);
    default: return a + b;
    }
}

// The combination of `count` elements from `first` on of what all ranks send.
static std::vector<unsigned char> reduced(const Round& round, size_t first, size_t count) {
    const Shape& shape = round.shape;
    const size_t bytes = bytes_of(shape.type);
    std::vector<unsigned char> sum(count * bytes);
    memcpy(sum.data(), (const char*)round.ranks[0].send + first * bytes, sum.size());
    for (size_t rank = 1; rank < round.ranks.size(); rank++) {
        for (size_t i = 0; i < count; i++) {
            const float term = load(round.ranks[rank].send, shape.type, first + i);
            store(sum.data(), shape.type, i, combine(load(sum.data(), shape.type, i), term, shape.reduction));
        }
    }
    if (shape.reduction == AVERAGE) {
        for (size_t i = 0; i < count; i++) {
            store(sum.data(), shape.type, i, load(sum.data(), shape.type, i) / (float)round.ranks.size());
        }
    }
    return sum;
}

static void deliver(void* to, const std::vector<unsigned char>& content) {
    memcpy(to, content.data(), content.size());
    cudasim_written((uint64_t)to, content.size());
}

static bool addresses_are_valid(const Round& round) {
    const size_t n = round.ranks.size(), bytes = round.shape.count * bytes_of(round.shape.type);
    const size_t sent = round.shape.kind == Kind::ReduceScatter ? n * bytes : bytes;
    const size_t received = round.shape.kind == Kind::AllGather ? n * bytes : bytes;
    for (size_t rank = 0; rank < n; rank++) {
        const Buffers& b = round.ranks[rank];
        const bool sends = round.shape.kind != Kind::Broadcast || (int)rank == round.shape.root;
        if ((sends && cudasim_is_device_memory((uint64_t)b.send, sent) == 0) || cudasim_is_device_memory((uint64_t)b.receive, received) == 0) {
            return false;
        }
    }
    return true;
}

// Everything is read before anything is written: buffers may be the same.
bool perform(Round& round) {
    if (!addresses_are_valid(round)) {
        return false;
    }
    const Shape& shape = round.shape;
    const size_t n = round.ranks.size(), bytes = shape.count * bytes_of(shape.type);
    std::vector<std::vector<unsigned char>> results(n);
    for (size_t rank = 0; rank < n; rank++) {
        std::vector<unsigned char>& result = results[rank];
        switch (shape.kind) {
        case Kind::AllReduce: result = rank == 0 ? reduced(round, 0, shape.count) : results[0]; break;
        case Kind::ReduceScatter: result = reduced(round, rank * shape.count, shape.count); break;
        case Kind::Broadcast: {
            const auto* from = (const unsigned char*)round.ranks[(size_t)shape.root].send;
            result.assign(from, from + bytes);
            break;
        }
        case Kind::AllGather:
            for (const Buffers& b : round.ranks) {
                result.insert(result.end(), (const unsigned char*)b.send, (const unsigned char*)b.send + bytes);
            }
        }
    }
    for (size_t rank = 0; rank < n; rank++) {
        deliver(round.ranks[rank].receive, results[rank]);
    }
    return true;
}

}  // namespace nccl
