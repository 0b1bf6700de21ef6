// cluster.cpp: the blocks of a cluster take turns, and wait for each other.

#include "cluster.h"

#include <cstring>

#include "cuda_on_cpu/observe_instructions.h"
#include "hopper/hopper.h"
#include "trace.h"

namespace cuda_on_cpu {

Cluster& Cluster::mine() {
    // Never destroyed before its CPU thread ends; fibers on it keep its address.
    static thread_local Cluster cluster;
    return cluster;
}

void Cluster::run(Launch& launch, std::int64_t index) {
    const dim3 &grid = launch.grid, &shape = launch.cluster;
    size_ = int(shape.x * shape.y * shape.z);
    while (int(blocks_.size()) < size_) blocks_.push_back(std::make_unique<Block>(*this));
    gridDim = grid;
    blockDim = launch.block;
    const std::int64_t wide = grid.x / shape.x, high = grid.y / shape.y;
    const unsigned corner[] = {unsigned(index % wide) * shape.x,
                               unsigned(index / wide % high) * shape.y,
                               unsigned(index / wide / high) * shape.z};
    for (int rank = 0; rank < size_; ++rank) {
        const unsigned r = unsigned(rank);
        blocks_[rank]->begin(launch,
                             {corner[0] + r % shape.x, corner[1] + r / shape.x % shape.y,
                              corner[2] + r / shape.x / shape.y},
                             std::uint64_t(index) * std::uint64_t(size_) + r);
    }
    random_ = SplitMix(launch.schedule.seed ^ launch.asynchrony.seed ^
                       std::uint64_t(index) << 20);
    phase_ = 0;
    arrived_ = 0;

    // The one after whom the first block's turn comes
    const bool last_first = launch.schedule.policy == Schedule::Policy::reverse;
    switch_to(next_turn(*blocks_[last_first ? 0 : size_ - 1]), main_);
    Block::running_ = nullptr;
    if (trace::is_on()) trace::cluster_ends(steps());
    bool faulted = false;
    for (int rank = 0; rank < size_; ++rank) {
        faulted = faulted || blocks_[rank]->faulted_;
        blocks_[rank]->end();
    }
    if (faulted)
        for (int rank = 0; rank < size_; ++rank) blocks_[rank]->fibers_.restart_all();
}

std::uint64_t Cluster::steps() const {
    std::uint64_t steps = 0;
    for (int rank = 0; rank < size_; ++rank) steps += blocks_[rank]->switches_;
    return steps;
}

int Cluster::rank_of(const Block& block) const {
    int rank = 0;
    while (blocks_[rank].get() != &block) ++rank;
    return rank;
}

Block* Cluster::owner_of(const void* address) {
    const auto* byte = static_cast<const std::byte*>(address);
    for (int rank = 0; rank < size_; ++rank) {
        const Block& block = *blocks_[rank];
        if (byte >= block.arena() && byte < block.arena() + block.launch().smem)
            return blocks_[rank].get();
    }
    return nullptr;
}

// -------------------------------------------------------------------------------- turns
Cluster::Turn Cluster::next_turn(Block& block) {
    const observe::Unseen unseen;
    const auto policy = block.launch().schedule.policy;
    const int own = size_ == 1 ? 0 : rank_of(block);
    for (;;) {
        // Another block first: whoever comes here has let its own threads run, or asks
        // for the others.
        const int step = policy == Schedule::Policy::reverse ? size_ - 1 : 1;
        int rank = policy == Schedule::Policy::forward || size_ == 1 ||
                           policy == Schedule::Policy::reverse
                       ? own
                       : int(random_.below(std::uint64_t(size_)));
        bool all_exited = true;
        for (int searched = 0; searched < size_; ++searched) {
            rank = (rank + step) % size_;
            Block& candidate = *blocks_[rank];
            all_exited = all_exited && candidate.live_ == 0;
            const int thread = candidate.turns_.next(candidate.may_run_.data());
            if (thread >= 0) return {&candidate, thread};
        }
        if (all_exited) return {nullptr, 0};
        try {
            if (land_one()) continue;
        } catch (const Fault& fault) {
            block.note_fault(fault, fault.site);
        }
        if (!block.faulted_) report_deadlock(block);
        block.abandon();
    }
}

void Cluster::switch_to(const Turn& turn, Fiber& from) {
    if (turn.block == nullptr) return switch_fiber(from, main_);
    Block& block = *turn.block;
    Block::running_ = &block;
    blockIdx = block.index_;
    block.become(turn.thread);
    Fiber*& fiber = block.threads_[turn.thread].fiber;
    if (fiber == nullptr) fiber = &block.fibers_.take();
    ++block.switches_;
    switch_fiber(from, *fiber);
}

bool Cluster::land_one() {
    const int start = size_ == 1 ? 0 : int(random_.below(std::uint64_t(size_)));
    for (int searched = 0; searched < size_; ++searched) {
        Hopper* hopper = blocks_[(start + searched) % size_]->hopper_if_used();
        if (hopper != nullptr && hopper->land_one(random_)) return true;
    }
    return false;
}

void Cluster::report_deadlock(Block& block) {
    std::string list;
    for (int rank = 0; rank < size_; ++rank) {
        if (size_ > 1)
            list += (rank > 0 ? "; " : "") + std::string("block ") +
                    std::to_string(rank) + " of the cluster: ";
        list += blocks_[rank]->waiting_list();
    }
    block.faulted_ = true;
    block.watch_.pauses();
    if (block.launch().failed.exchange(true)) return;
    block.launch().error = cudaErrorLaunchFailure;
    block.launch().report = "deadlock in " + block.where(block.current()) + ": " + list;
}

// ----------------------------------------------------------------------- barrier.cluster
void Cluster::arrive(Block& block, Site site) {
    std::uint64_t& arrived_in = block.hopper().cluster_phase[block.current()];
    if (arrived_in == phase_ + 1)
        throw Fault{
            "cluster_arrive: this thread has arrived before, without a "
            "cluster_wait in between",
            site};
    observe::release(observed_object(phase_));
    arrived_in = phase_ + 1;
    ++arrived_;
    open_if_complete();
}

void Cluster::wait(Block& block, Site site) {
    std::uint64_t& arrived_in = block.hopper().cluster_phase[block.current()];
    if (arrived_in == 0)
        throw Fault{"cluster_wait: this thread has not arrived at the barrier", site};
    const std::uint64_t phase = arrived_in - 1;
    if (phase == phase_) block.wait_for(Block::State::cluster, site, 0);
    arrived_in = 0;
    observe::acquire(observed_object(phase));
}

const std::byte* Cluster::observed_object(std::uint64_t phase) const {
    // As named barriers have theirs (hopper.cpp): next to them, where no mbarrier lies.
    return blocks_[0]->arena() + kMaxSharedMemory - 32 + phase % 2;
}

void Cluster::open_if_complete() {
    int live = 0;
    for (int rank = 0; rank < size_; ++rank) live += blocks_[rank]->live_;
    if (arrived_ < live) return;
    ++phase_;
    arrived_ = 0;
    if (trace::is_on()) {
        const observe::Unseen unseen;
        trace::happened(*blocks_[0], trace::Row::phases, 0, "cluster barrier opens");
    }
    for (int rank = 0; rank < size_; ++rank) {
        Block& block = *blocks_[rank];
        for (int t = 0; t < block.count_; ++t)
            if (block.states_[t] == Block::State::cluster) block.release(t);
    }
}

void Cluster::check_exit(Block& block) {
    const observe::Unseen unseen;
    const int thread = block.current();
    try {
        if (Hopper* hopper = block.hopper_if_used()) {
            if (hopper->cluster_phase[thread] == phase_ + 1) --arrived_;
            hopper->thread_exits(block, thread);
            if (block.live() == 0) hopper->block_exits(block);
        }
    } catch (const Fault& fault) {
        block.note_fault(fault, fault.site);
    }
    if (arrived_ > 0) open_if_complete();
}

}  // namespace cuda_on_cpu
