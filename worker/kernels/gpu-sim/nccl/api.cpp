// The exported functions. A communicator is made by as many threads as it has ranks, each with its device current (or by
// one thread, inside a group); a collective is an operation of a stream that stays pending until all ranks have come.
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "../driver/control.h"
#include "comm.h"

using namespace nccl;

#define NCCL_API extern "C" __attribute__((visibility("default"))) int

namespace {

struct UniqueId {
    char bytes[128];
};

std::mutex mutex;
std::condition_variable changed;
std::map<std::string, std::shared_ptr<Group>> forming;  // by unique id
uint64_t last_id = 0;
thread_local int group_depth = 0;

int refuse(int status, const std::string& why) {
    fprintf(stderr, "cudasim nccl: %s\n", why.c_str());
    return status;
}

#define NCCL_CALL(name)                                      \
    if (const int asked = cudasim_count(#name)) {            \
        return refuse(asked, #name " was made to fail");     \
    }

std::chrono::seconds patience() {
    const char* given = getenv("CUDASIM_TIMEOUT");
    return std::chrono::seconds(given != nullptr ? atoi(given) : 60);
}

int join(Comm** comm, int size, const UniqueId& id, int rank, int device) {
    if (size < 1 || rank < 0 || rank >= size || device < 0) {
        return INVALID_ARGUMENT;
    }
    std::unique_lock<std::mutex> lock(mutex);
    std::shared_ptr<Group>& slot = forming[std::string(id.bytes, sizeof id.bytes)];
    if (slot == nullptr) {
        slot = std::make_shared<Group>();
        slot->size = size;
        slot->devices.assign((size_t)size, -1);
        slot->next.assign((size_t)size, 0);
        slot->aborted = std::vector<std::atomic<bool>>((size_t)size);
    }
    const std::shared_ptr<Group> group = slot;
    if (group->size != size || group->devices[(size_t)rank] != -1) {
        return refuse(INVALID_USAGE, "ranks do not agree on the communicator's size, or one joins twice");
    }
    for (const int other : group->devices) {
        if (other == device) {
            return refuse(INVALID_USAGE, "two ranks on one device");
        }
    }
    group->devices[(size_t)rank] = device;
    group->joined++;
    changed.notify_all();
    *comm = new Comm{group, rank, device};
    if (group->joined == size) {
        forming.erase(std::string(id.bytes, sizeof id.bytes));
    } else if (group_depth == 0 && !changed.wait_for(lock, patience(), [&] { return group->joined == size; })) {
        return refuse(SYSTEM_ERROR, "not all ranks joined the communicator");
    }
    return SUCCESS;
}

// One rank's part in a collective. A captured one runs at each replay; between two arrivals it is itself again.
struct Part {
    std::shared_ptr<Group> group;
    int rank;
    Shape shape;
    const void* send;
    void* receive;
    bool captured;
    bool waiting = false;
    uint64_t round = 0;
};

enum { CUDA_PENDING = -1, CUDA_ILLEGAL_ADDRESS = 700, CUDA_LAUNCH_FAILED = 719 };

int misuse(Group& group, const char* why) {
    group.failed = true;
    refuse(INVALID_USAGE, why);
    return CUDA_LAUNCH_FAILED;
}

// An aborted rank's operation ends without a result, and without an error that the stream would tell. The other ranks wait for
// it until they are aborted too, or until CUDASIM_TIMEOUT.
int give_up(Part& part) {
    if (part.waiting) {
        part.group->rounds[part.round].broken = true;
        part.waiting = false;
    }
    return SUCCESS;
}

int run(void* user) {
    auto& part = *(Part*)user;
    Group& group = *part.group;
    if (group.failed) {
        return CUDA_LAUNCH_FAILED;
    }
    const bool aborted = group.aborted[(size_t)part.rank];
    if (!part.waiting) {
        if (aborted) {
            return give_up(part);
        }
        part.round = group.next[(size_t)part.rank]++;
        Round& round = group.rounds[part.round];
        if (round.arrived == 0) {
            round.shape = part.shape;
            round.captured = part.captured;
            round.ranks.resize((size_t)group.size);
        } else if (!(round.shape == part.shape)) {
            return misuse(group, "ranks came to different collectives, or with different counts or types");
        } else if (round.captured != part.captured) {
            return misuse(group, "one rank's collective is recorded in a graph, and another's is not");
        }
        round.ranks[(size_t)part.rank] = {part.send, part.receive};
        round.arrived++;
        part.waiting = true;
    }
    Round& round = group.rounds[part.round];
    if (round.arrived < group.size || round.broken) {
        return aborted ? give_up(part) : CUDA_PENDING;
    }
    if (!round.done) {
        round.done = true;
        if (!perform(round)) {
            group.failed = true;
            return CUDA_ILLEGAL_ADDRESS;
        }
    }
    part.waiting = false;
    if (++round.left == group.size) {
        group.rounds.erase(part.round);
    }
    return SUCCESS;
}

int start(const Shape& shape, const void* send, void* receive, void* handle, void* stream) {
    const auto* comm = (const Comm*)handle;
    if (comm == nullptr || send == nullptr || receive == nullptr || bytes_of(shape.type) == 0 || shape.root < 0 || shape.root >= comm->group->size) {
        return INVALID_ARGUMENT;
    }
    const bool reduces = shape.kind == Kind::AllReduce || shape.kind == Kind::ReduceScatter;
    if (reduces && shape.type != FP32 && shape.type != BF16 && shape.type != FP16) {
        return refuse(INVALID_ARGUMENT, "reductions of this type are not emulated");
    }
    if (shape.count == 0) {
        return SUCCESS;
    }
    auto* part = new Part{comm->group, comm->rank, shape, send, receive, cudasim_is_capturing(comm->device, stream) != 0};
    const auto release = [](void* p) { delete (Part*)p; };
    return cudasim_submit(comm->device, stream, "a collective of NCCL", run, part, release) == 0 ? SUCCESS : INTERNAL_ERROR;
}

}  // namespace

NCCL_API ncclGetVersion(int* version) {
    NCCL_CALL(ncclGetVersion);
    *version = 22700;
    return SUCCESS;
}
NCCL_API ncclGetUniqueId(UniqueId* id) {
    NCCL_CALL(ncclGetUniqueId);
    const std::lock_guard<std::mutex> lock(mutex);
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "cudasim communicator %llu", (unsigned long long)++last_id);
    return SUCCESS;
}
NCCL_API ncclCommInitRank(Comm** comm, int size, UniqueId id, int rank) {
    NCCL_CALL(ncclCommInitRank);
    return join(comm, size, id, rank, cudasim_current_device());
}
NCCL_API ncclCommInitRankConfig(Comm** comm, int size, UniqueId id, int rank, void*) {
    NCCL_CALL(ncclCommInitRankConfig);
    return join(comm, size, id, rank, cudasim_current_device());
}
NCCL_API ncclCommInitAll(Comm** comms, int size, const int* devices) {
    NCCL_CALL(ncclCommInitAll);
    UniqueId id;
    ncclGetUniqueId(&id);
    group_depth++;  // one thread joins for all
    int status = SUCCESS;
    for (int rank = 0; rank < size && status == SUCCESS; rank++) {
        status = join(&comms[rank], size, id, rank, devices != nullptr ? devices[rank] : rank);
    }
    group_depth--;
    return status;
}
NCCL_API ncclCommFinalize(Comm*) {
    NCCL_CALL(ncclCommFinalize);
    return SUCCESS;
}
NCCL_API ncclCommDestroy(Comm* comm) {
    NCCL_CALL(ncclCommDestroy);
    delete comm;
    return SUCCESS;
}
// The rank's operations end; other ranks go on waiting for it.
NCCL_API ncclCommAbort(Comm* comm) {
    NCCL_CALL(ncclCommAbort);
    if (comm != nullptr) {
        comm->group->aborted[(size_t)comm->rank] = true;
        cudasim_wake();
    }
    delete comm;
    return SUCCESS;
}
NCCL_API ncclCommCount(const Comm* comm, int* count) {
    NCCL_CALL(ncclCommCount);
    *count = comm->group->size;
    return SUCCESS;
}
NCCL_API ncclCommCuDevice(const Comm* comm, int* device) {
    NCCL_CALL(ncclCommCuDevice);
    *device = comm->device;
    return SUCCESS;
}
NCCL_API ncclCommUserRank(const Comm* comm, int* rank) {
    NCCL_CALL(ncclCommUserRank);
    *rank = comm->rank;
    return SUCCESS;
}
NCCL_API ncclCommGetAsyncError(const Comm* comm, int* error) {
    NCCL_CALL(ncclCommGetAsyncError);
    *error = comm->group->failed ? SYSTEM_ERROR : SUCCESS;
    return SUCCESS;
}
NCCL_API ncclGroupStart() {
    NCCL_CALL(ncclGroupStart);
    group_depth++;
    return SUCCESS;
}
// Nothing was held back: operations wait in their streams.
NCCL_API ncclGroupEnd() {
    NCCL_CALL(ncclGroupEnd);
    if (group_depth == 0) {
        return INVALID_USAGE;
    }
    group_depth--;
    return SUCCESS;
}
extern "C" __attribute__((visibility("default"))) const char* ncclGetErrorString(int status) {
    return status == SUCCESS ? "no error" : "an error of the emulated NCCL";
}
extern "C" __attribute__((visibility("default"))) const char* ncclGetLastError(const Comm*) { return "see stderr"; }

NCCL_API ncclAllReduce(const void* send, void* receive, size_t count, int type, int reduction, void* comm, void* stream) {
    NCCL_CALL(ncclAllReduce);
    return start({Kind::AllReduce, count, type, reduction, 0}, send, receive, comm, stream);
}
NCCL_API ncclAllGather(const void* send, void* receive, size_t count, int type, void* comm, void* stream) {
    NCCL_CALL(ncclAllGather);
    return start({Kind::AllGather, count, type, SUM, 0}, send, receive, comm, stream);
}
NCCL_API ncclReduceScatter(const void* send, void* receive, size_t count, int type, int reduction, void* comm, void* stream) {
    NCCL_CALL(ncclReduceScatter);
    return start({Kind::ReduceScatter, count, type, reduction, 0}, send, receive, comm, stream);
}
NCCL_API ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, void* comm, void* stream) {
    NCCL_CALL(ncclBroadcast);
    return start({Kind::Broadcast, count, type, SUM, root}, send != nullptr ? send : receive, receive, comm, stream);
}
