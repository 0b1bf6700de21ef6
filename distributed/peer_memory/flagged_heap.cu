#include "distributed/peer_memory/flagged_heap.h"

#include <utility>

#include "gpu/launch.h"

namespace moe::distributed {

void FlaggedHeap::reserve(std::size_t bytes, std::size_t limit) {
    if (barrier_ == nullptr) {
        barrier_ = PeerBarrier::make(group_, PeerBarrier::way_for(*group_));
        dropped_ = gpu::device_zeros<std::int64_t>({1});
    }
    if (bytes <= heap_.bytes(MemorySpace::device)) return;
    heap_.reserve(bytes, limit, MemorySpace::device);
    gpu::synchronize();  // it has been zeroed, before anybody writes
    group_->barrier();
    last_turn_.reset();
}

void FlaggedHeap::begin(Turn turn, std::size_t layout, Step step) {
    const bool alternates = last_turn_ != turn && last_layout_ == layout;
    if (last_turn_ && !alternates) barrier_->meet(step, {});
    last_turn_ = turn;
    last_layout_ = layout;
}

std::int64_t FlaggedHeap::take_dropped_rows() {
    std::int64_t all = dropped_on_host_;
    if (dropped_.defined()) all += gpu::to_host<std::int64_t>(dropped_)[0];
    return all - std::exchange(taken_, all);
}

}  // namespace moe::distributed
