// Captures and graphs. A node keeps its parameters and the nodes that it comes after; a replay runs the nodes in any
// order that these allow, so a dependency that the capture lacks shows under the orders other than fifo.
#include <algorithm>
#include <functional>
#include <thread>

#include "state.h"

namespace driver {

static uint64_t this_thread() { return std::hash<std::thread::id>{}(std::this_thread::get_id()); }

int capture_operation(Stream& stream, Operation operation) {
    Capture& capture = *stream.capture;
    if (capture.invalid) {
        return STREAM_CAPTURE_INVALIDATED;
    }
    capture.nodes.push_back({std::move(operation), stream.frontier});
    stream.frontier = {(int)capture.nodes.size() - 1};
    return SUCCESS;
}

int forbid_in_capture(Stream& stream) {
    if (stream.capture == nullptr) {
        return SUCCESS;
    }
    stream.capture->invalid = true;
    return STREAM_CAPTURE_UNSUPPORTED;
}

int forbid_in_any_capture() {
    for (Stream* stream : streams) {
        Capture* capture = stream->capture;
        const bool concerns = capture != nullptr && (capture->mode == CaptureMode::Global ||
                                                     (capture->mode == CaptureMode::ThreadLocal && capture->thread == this_thread()));
        if (concerns) {
            capture->invalid = true;
            return STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return SUCCESS;
}

// Whether all that the members did comes before what the origin will do next.
static bool joined(const Capture& capture) {
    std::vector<bool> reached(capture.nodes.size(), false);
    std::vector<int> todo = capture.origin->frontier;
    while (!todo.empty()) {
        const int node = todo.back();
        todo.pop_back();
        if (!reached[(size_t)node]) {
            reached[(size_t)node] = true;
            const std::vector<int>& after = capture.nodes[(size_t)node].after;
            todo.insert(todo.end(), after.begin(), after.end());
        }
    }
    return std::find(reached.begin(), reached.end(), false) == reached.end();
}

struct Graph {
    std::vector<Node> nodes;
};

// The nodes in an order that their dependencies allow: as captured, or another one by the seed.
static std::vector<size_t> replay_order(const Graph& graph) {
    const size_t n = graph.nodes.size();
    std::vector<size_t> order, ready;
    std::vector<size_t> missing(n);
    for (size_t i = 0; i < n; i++) {
        missing[i] = graph.nodes[i].after.size();
        if (missing[i] == 0) {
            ready.push_back(i);
        }
    }
    const emu::Schedule s = next_schedule();
    uint64_t random = s.seed * 0x9E3779B97F4A7C15ull;
    while (!ready.empty()) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        size_t pick = 0;
        if (s.order == emu::Order::Lifo) {
            pick = ready.size() - 1;
        } else if (s.order != emu::Order::Fifo) {
            pick = (random >> 33) % ready.size();
        } else {
            pick = (size_t)(std::min_element(ready.begin(), ready.end()) - ready.begin());
        }
        const size_t node = ready[pick];
        ready.erase(ready.begin() + (long)pick);
        order.push_back(node);
        for (size_t i = node + 1; i < n; i++) {
            const auto& after = graph.nodes[i].after;
            const auto edges = (size_t)std::count(after.begin(), after.end(), (int)node);
            missing[i] -= edges;
            if (edges > 0 && missing[i] == 0) {
                ready.push_back(i);
            }
        }
    }
    return order;
}

static std::set<Graph*> graphs, executables;

static int instantiate(void** executable, void* handle) {
    if (graphs.count((Graph*)handle) == 0) {
        return INVALID_VALUE;
    }
    auto* copy = new Graph(*(Graph*)handle);
    executables.insert(copy);
    *executable = copy;
    return SUCCESS;
}

}  // namespace driver

using namespace driver;

CUDA_API cuStreamBeginCapture_v2(void* handle, int mode) {
    CALL(cuStreamBeginCapture_v2, Context);
    Stream* stream = stream_of(call.device(), handle);
    if (stream == nullptr || mode < 0 || mode > 2) {
        return stream == nullptr ? INVALID_HANDLE : INVALID_VALUE;
    }
    if (stream == &call.device().default_stream) {
        return STREAM_CAPTURE_UNSUPPORTED;
    }
    if (stream->capture != nullptr) {
        return ILLEGAL_STATE;
    }
    auto* capture = new Capture;
    capture->origin = stream;
    capture->mode = (CaptureMode)mode;
    capture->thread = this_thread();
    capture->members.insert(stream);
    stream->capture = capture;
    stream->frontier.clear();
    return SUCCESS;
}
CUDA_API cuStreamEndCapture(void* handle, void** graph) {
    CALL(cuStreamEndCapture, Context);
    *graph = nullptr;
    Stream* stream = stream_of(call.device(), handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    if (stream->capture == nullptr || stream->capture->origin != stream) {
        return STREAM_CAPTURE_UNMATCHED;
    }
    Capture* capture = stream->capture;
    if (capture->mode != CaptureMode::Relaxed && capture->thread != this_thread()) {
        return STREAM_CAPTURE_WRONG_THREAD;
    }
    const bool whole = joined(*capture), valid = !capture->invalid;
    for (Stream* member : capture->members) {
        if (streams.count(member) != 0) {
            member->capture = nullptr;
            member->frontier.clear();
        }
    }
    for (Event* event : events) {
        if (event->capture == capture) {
            event->capture = nullptr;
        }
    }
    if (valid && whole) {
        auto* made = new Graph{std::move(capture->nodes)};
        graphs.insert(made);
        *graph = made;
    }
    delete capture;
    return !valid ? STREAM_CAPTURE_INVALIDATED : !whole ? STREAM_CAPTURE_UNJOINED : SUCCESS;
}
CUDA_API cuStreamIsCapturing(void* handle, int* status) {
    CALL(cuStreamIsCapturing, Context);
    Stream* stream = stream_of(call.device(), handle);
    if (stream == nullptr) {
        return INVALID_HANDLE;
    }
    enum { NONE = 0, ACTIVE = 1, INVALIDATED = 2 };
    *status = stream->capture == nullptr ? NONE : stream->capture->invalid ? INVALIDATED : ACTIVE;
    return SUCCESS;
}
CUDA_API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    CALL(cuGraphInstantiateWithFlags, Context);
    return instantiate(executable, graph);
}
CUDA_API cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
    CALL(cuGraphGetNodes, Context);
    if (graphs.count((Graph*)handle) == 0 || nodes != nullptr) {
        return nodes != nullptr ? NOT_SUPPORTED : INVALID_VALUE;
    }
    *count = ((Graph*)handle)->nodes.size();
    return SUCCESS;
}
CUDA_API cuGraphLaunch(void* executable, void* handle) {
    CALL(cuGraphLaunch, Context);
    Stream* stream = stream_of(call.device(), handle);
    if (stream == nullptr || executables.count((Graph*)executable) == 0) {
        return INVALID_HANDLE;
    }
    const Graph& graph = *(Graph*)executable;
    call.detail("%zu nodes", graph.nodes.size());
    for (const size_t node : replay_order(graph)) {
        if (const int code = submit(*stream, graph.nodes[node].operation)) {
            return code;
        }
    }
    return SUCCESS;
}
CUDA_API cuGraphUpload(void* executable, void*) {
    CALL(cuGraphUpload, Context);
    return executables.count((Graph*)executable) != 0 ? SUCCESS : INVALID_VALUE;
}
CUDA_API cuGraphDestroy(void* graph) {
    CALL(cuGraphDestroy, Context);
    if (graphs.erase((Graph*)graph) == 0) {
        return INVALID_VALUE;
    }
    delete (Graph*)graph;
    return SUCCESS;
}
// Launches that are queued have their own copies of the nodes.
CUDA_API cuGraphExecDestroy(void* executable) {
    CALL(cuGraphExecDestroy, Context);
    if (executables.erase((Graph*)executable) == 0) {
        return INVALID_VALUE;
    }
    delete (Graph*)executable;
    return SUCCESS;
}
