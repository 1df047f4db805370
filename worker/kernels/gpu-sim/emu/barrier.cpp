// __syncthreads and its variants. Threads that have returned are not waited for, as on the hardware.
#include "../race/race.h"
#include "runtime.h"

namespace emu {

static bool same_place(Site a, Site b) {
    return a.line == b.line && (a.file == b.file || std::string(a.file) == b.file);
}

static void release(Block& block) {
    block.barrier_result = block.barrier_sum;
    block.at_barrier = 0;
    race::block_barrier(block);
    for (unsigned i = 0; i < block.threads; i++) {
        Fiber& fiber = *block.fibers[i];
        if (!fiber.done && &fiber != current) {
            make_ready(block, i);
        }
    }
}

int block_barrier(Barrier kind, int predicate, Site site) {
    Block& block = *current->block;
    const int vote = predicate != 0;
    if (block.at_barrier == 0) {
        block.barrier_kind = kind;
        block.barrier_site = site;
        block.barrier_sum = kind == Barrier::And;
    } else if (block.barrier_kind != kind || !same_place(block.barrier_site, site)) {
        const std::string what = "threads of a block wait at different barriers; the other one is at line " + std::to_string(block.barrier_site.line);
        kernel_fault(what.c_str(), site);
    }
    switch (kind) {
    case Barrier::Plain: break;
    case Barrier::Or: block.barrier_sum |= vote; break;
    case Barrier::And: block.barrier_sum &= vote; break;
    case Barrier::Count: block.barrier_sum += vote; break;
    }
    if (++block.at_barrier == block.alive) {
        release(block);
    } else {
        wait_for("__syncthreads", site);
    }
    return block.barrier_result;
}

void barrier_thread_exited(Block& block) {
    if (block.alive > 0 && block.at_barrier == block.alive) {
        release(block);
    }
}

}  // namespace emu
