// named_barrier.cpp: some warps wait, others only arrive.

#include "hopper/named_barrier.h"

#include <bit>

#include "hopper/hopper.h"

namespace cuda_on_cpu {

void NamedBarriers::arrive(Block& block, unsigned id, unsigned count, bool sync,
                           Site site) {
    const char* name = sync ? "named_barrier_sync" : "named_barrier_arrive";
    if (id < 1 || id > 15)
        throw Fault{std::string(name) + ": id = " + std::to_string(id) +
                        ": must be from 1 to 15 (0 is __syncthreads)",
                    site};
    if (count < 32 || count > kMaxThreads || count % 32 != 0)
        throw Fault{std::string(name) + ": count = " + std::to_string(count) +
                        ": must be a multiple of 32 up to 1024",
                    site};
    Barrier& barrier = barriers_[id];
    if (barrier.arrived == 0) {
        barrier.expected = count;
        barrier.site = site;
    } else if (barrier.expected != count) {
        throw Fault{std::string(name) + ": id = " + std::to_string(id) + " with count " +
                        std::to_string(count) + ", but with " +
                        std::to_string(barrier.expected) + " at " + place(barrier.site),
                    site};
    }
    if (barrier.who[std::size_t(block.current())])
        throw Fault{std::string(name) + ": id = " + std::to_string(id) +
                        ": this thread has arrived before in the same phase",
                    site};
    barrier.who.set(std::size_t(block.current()));
    if (++barrier.arrived < barrier.expected) {
        if (sync) block.wait_for(Block::State::named_barrier, site, id);
        return;
    }
    open(block, id);
}

void NamedBarriers::open(Block& block, unsigned id) {
    Barrier& barrier = barriers_[id];
    // The instruction is a warp's: half a warp at the barrier is undefined on hardware.
    for (int first = 0; first < block.count(); first += kWarpSize) {
        const unsigned live = block.live_lanes(first / kWarpSize);
        unsigned there = 0;
        for (int lane = 0; lane < kWarpSize && first + lane < block.count(); ++lane)
            there |= unsigned(barrier.who[std::size_t(first + lane)]) << lane;
        if ((there & live) != 0 && (there & live) != live)
            throw Fault{"named barrier " + std::to_string(id) + ": of warp " +
                            std::to_string(first / kWarpSize) + " only " +
                            std::to_string(std::popcount(there)) + " of " +
                            std::to_string(std::popcount(live)) +
                            " threads arrived: whole warps must",
                        barrier.site};
    }
    barrier = {};
    for (int t = 0; t < block.count(); ++t)
        if (block.state(t) == Block::State::named_barrier && block.waits_for(t) == id)
            block.release(t);
}

std::string NamedBarriers::describe(std::uint64_t id) const {
    const Barrier& barrier = barriers_[id];
    return "named_barrier_sync(" + std::to_string(id) + ", " +
           std::to_string(barrier.expected) + "), where " +
           std::to_string(barrier.arrived) + " threads have arrived,";
}

}  // namespace cuda_on_cpu
