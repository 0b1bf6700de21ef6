/// @file
/// The blocks of a cluster, which one CPU thread runs by turns; a launch without clusters
/// has clusters of one block. Rules: PTX ISA, "Cluster of Cooperative Thread Arrays" and
/// "barrier.cluster".
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "block.h"

namespace cuda_on_cpu {

inline constexpr int kMaxCluster = 16;

class Cluster {
  public:
    /// The calling CPU thread's.
    static Cluster& mine();

    /// Runs cluster `index` of the grid to its end, or to its first fault (then
    /// launch.failed).
    void run(Launch& launch, std::int64_t index);

    int size() const { return size_; }
    Block& block(int rank) { return *blocks_[rank]; }
    int rank_of(const Block& block) const;
    /// Switches from thread to thread so far.
    std::uint64_t steps() const;
    /// The block in whose shared memory the address lies; null when in none.
    Block* owner_of(const void* address);

    /// Who goes on: a thread of a block. No block: all threads have exited.
    struct Turn {
        Block* block;
        int thread;
    };
    /// Of `block` if one of its threads can go on, else of another block; when none can,
    /// an asynchronous load arrives first. A deadlock is reported and ends the launch.
    Turn next_turn(Block& block);
    /// Leaves the fiber `from` for a thread of another block, or for the CPU thread.
    void switch_to(const Turn& turn, Fiber& from);
    /// Leaves all blocks as they stand.
    void abandon(Fiber& from) { switch_fiber(from, main_); }

    /// One asynchronous load arrives, of whichever block. False when none is on its way.
    bool land_one();

    // barrier.cluster
    void arrive(Block& block, Site site);
    void wait(Block& block, Site site);
    /// The running thread of `block` exits: it counts as one that has arrived.
    void thread_exits(Block& block) {
        if (arrived_ > 0 || block.hopper_if_used() != nullptr) check_exit(block);
    }

  private:
    void check_exit(Block& block);
    void report_deadlock(Block& block);
    void open_if_complete();
    /// What stands for the barrier to the observer. Two by turns: who arrives early at
    /// the next phase gives nothing away to those that still leave this one.
    const std::byte* observed_object(std::uint64_t phase) const;

    std::vector<std::unique_ptr<Block>> blocks_;
    int size_ = 1;
    Fiber main_;
    SplitMix random_{0};
    std::uint64_t phase_ = 0;  ///< of barrier.cluster
    int arrived_ = 0;
};

}  // namespace cuda_on_cpu
