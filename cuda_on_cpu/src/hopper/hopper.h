/// @file
/// What a block knows of Hopper's instructions: its mbarriers, named barriers, copies and
/// products on their way, and what the asynchronous proxy sees of its shared memory.
#pragma once

#include <functional>
#include <vector>

#include "block.h"
#include "cluster.h"
#include "hopper/async_proxy.h"
#include "hopper/bulk.h"
#include "hopper/cp_async.h"
#include "hopper/mbarrier.h"
#include "hopper/named_barrier.h"
#include "hopper/wgmma.h"

namespace cuda_on_cpu {

struct Hopper {
    Mbarriers mbarriers;
    NamedBarriers named_barriers;
    AsyncProxy proxy;
    CpAsync cp_async;
    BulkGroups bulk_groups;
    Wgmma wgmma;
    std::vector<int> registers;  ///< of each warp, 0 before its first setmaxnreg
    /// Per thread: the phase of the cluster's barrier in which it arrived, plus 1; 0
    /// after its cluster_wait.
    std::vector<std::uint64_t> cluster_phase;

    /// A load that has been issued and has not arrived (deferred mode).
    struct Flight {
        Site site;
        std::function<void()> land;
    };
    std::vector<Flight> flights;
    std::int64_t polls = 0;  ///< in vain, since an mbarrier completed a phase

    void begin(Block& block);
    /// One of the flights, drawn by `random`, lands. False when there is none.
    bool land_one(SplitMix& random);
    /// The running thread has looked at an mbarrier in vain.
    void poll(Block& block, Site site);
    // May throw Fault: what the thread, or the block, has left unfinished
    void thread_exits(Block& block, int thread);
    void block_exits(Block& block);
    /// "mbarrier +0x40 …": what a waiting thread waits for.
    std::string describe_wait(const Block& block, int thread) const;
};

/// Runs what an instruction does, for the block that executes it; a Fault ends the
/// launch.
template <typename Call>
auto kernel_call(Site site, Call call) {
    Block& block = *Block::running();
    const observe::Unseen unseen;
    try {
        return call(block);
    } catch (const Fault& fault) {
        const observe::Unseen again;  // it may have been thrown after a wait
        block.note_fault(fault, site);
    }
    block.abandon();
}

/// "+0x40", an address of shared memory.
std::string shared_offset(const Block& block, const void* address);

/// The position of `bytes` at `address` in the block's shared memory; a Fault that names
/// `what` unless they lie in it, aligned.
std::size_t shared_position(const Block& block, const char* what, const void* address,
                            std::size_t bytes, std::size_t alignment);

/// A Fault that names `what` unless the bytes lie in one device allocation.
void check_global(const char* what, const void* address, std::size_t bytes);

std::string place(Site site);

}  // namespace cuda_on_cpu
