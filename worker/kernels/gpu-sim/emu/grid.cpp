// A grid: its blocks spread over OS threads, which are kept between launches.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>

#include "../race/race.h"
#include "runtime.h"

namespace emu {

std::string (*describe_address)(uintptr_t address) = nullptr;

// Helpers wait for the next piece of work for as long as the process lives; they are never joined, because a process
// may end while its libraries' destructors run.
class Helpers {
public:
    // Runs `work` on this thread and on n others; returns when all are done. One call at a time.
    void run_with(unsigned n, const std::function<void()>& work) {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            for (; threads_ < n; threads_++) {
                std::thread([this] { serve(); }).detach();
            }
            work_ = &work;
            wanted_ = n;
            unfinished_ = n;
        }
        start_.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex_);
        finished_.wait(lock, [&] { return unfinished_ == 0; });
        work_ = nullptr;
    }

private:
    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            start_.wait(lock, [&] { return wanted_ > 0; });
            wanted_--;
            const std::function<void()>* work = work_;
            lock.unlock();
            (*work)();
            lock.lock();
            if (--unfinished_ == 0) {
                finished_.notify_all();
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable start_, finished_;
    const std::function<void()>* work_ = nullptr;
    unsigned threads_ = 0, wanted_ = 0, unfinished_ = 0;
};

static unsigned os_threads() {
    static const unsigned n = [] {
        const char* given = getenv("CUDASIM_THREADS");
        return std::max(1u, given != nullptr ? (unsigned)atoi(given) : std::thread::hardware_concurrency());
    }();
    return n;
}

bool run_grid(const Launch& launch, Fault& fault) {
    const uint64_t blocks = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    const unsigned threads = race::single_thread() ? 1 : (unsigned)std::min<uint64_t>(os_threads(), blocks);
    std::atomic<uint64_t> next{0};
    std::atomic<bool> ok{true};
    std::mutex mutex;
    race::launch_start(launch);
    const std::function<void()> work = [&] {
        for (uint64_t i = next++; ok && i < blocks; i = next++) {
            const uint64_t number = launch.schedule.order == Order::Lifo ? blocks - 1 - i : i;
            Fault mine;
            if (!run_block(launch, number, launch.schedule.seed + number, mine)) {
                const std::lock_guard<std::mutex> lock(mutex);
                if (ok.exchange(false)) {
                    fault = mine;
                }
            }
        }
    };
    if (threads == 1) {
        work();
    } else {
        static Helpers* const helpers = new Helpers;
        helpers->run_with(threads - 1, work);
    }
    return ok;
}

}  // namespace emu
