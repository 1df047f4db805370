// The reference NCCL: communicators within one process, one rank a device.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nccl {

enum Status : int { SUCCESS = 0, SYSTEM_ERROR = 2, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, IN_PROGRESS = 7 };
enum DataType : int { INT8 = 0, UINT8 = 1, INT32 = 2, UINT32 = 3, INT64 = 4, UINT64 = 5, FP16 = 6, FP32 = 7, FP64 = 8, BF16 = 9 };
enum Reduction : int { SUM = 0, PRODUCT = 1, MAX = 2, MIN = 3, AVERAGE = 4 };

enum class Kind { AllReduce, AllGather, Broadcast, ReduceScatter };

// What every rank of a collective must agree on.
struct Shape {
    Kind kind;
    size_t count;  // elements that a rank sends (ReduceScatter: receives)
    int type, reduction, root;
    bool operator==(const Shape& o) const {
        return kind == o.kind && count == o.count && type == o.type && reduction == o.reduction && root == o.root;
    }
};

struct Buffers {
    const void* send = nullptr;
    void* receive = nullptr;
};

// One collective that some ranks have come to.
struct Round {
    Shape shape;
    std::vector<Buffers> ranks;
    int arrived = 0, left = 0;
    bool captured = false;  // recorded in a graph: by all ranks or by none
    bool done = false, broken = false;
};

// What the ranks of a communicator share. Rounds are touched only by operations of streams, of which one runs at a time;
// the atomics also by other threads.
struct Group {
    int size = 0;
    std::vector<int> devices;  // of each rank; -1 before it has joined
    int joined = 0;
    std::atomic<bool> failed{false};          // its ranks did not do the same
    std::vector<std::atomic<bool>> aborted;   // of each rank
    std::vector<uint64_t> next;               // the next round of each rank
    std::map<uint64_t, Round> rounds;
};

struct Comm {
    std::shared_ptr<Group> group;
    int rank = 0, device = 0;
};

size_t bytes_of(int type);  // 0: not supported here
// Computes what all ranks receive; false if an address is not device memory.
bool perform(Round& round);

}  // namespace nccl
