/// @file
/// A symmetric heap whose exchanges the devices order among themselves.
#pragma once

#include <memory>
#include <optional>

#include "distributed/peer_memory/peer_barrier.h"
#include "distributed/peer_memory/symmetric_heap.h"
#include "gpu/tensor.h"

namespace moe::distributed {

/// One for all layers of a rank that exchange by it. A turn is either a push, in which
/// ranks write into the others' heaps and then read their own, or an offer, in which they
/// write into their own and then read the others'. Between its writing and its reading
/// lies a barrier, and a place in a heap is one other rank's alone.
///
/// TUTORIAL: that is all that is needed while pushes and offers alternate, as dispatch
/// and combine do. Whoever pushes again has met the others at the offer between, to which
/// each came after it had read what was pushed before, and has itself read what they
/// offered in its places; likewise for offers. Where one follows on its like, or the
/// places lie elsewhere than before, a barrier more sees to it that all have read.
class FlaggedHeap {
  public:
    explicit FlaggedHeap(std::shared_ptr<Communicator> group)
        : group_(group), heap_(std::move(group)) {}

    enum class Turn { push, offer };

    /// Room in every rank's heap; every rank asks for the same. Where it has to grow, the
    /// hosts wait for each other. @param limit  as SymmetricHeap::reserve()
    void reserve(std::size_t bytes, std::size_t limit);
    /// Everybody's addresses, since the first reserve().
    const PeerTable& table() const { return heap_.table(MemorySpace::device); }

    /// 0 before the first reserve().
    std::size_t bytes() const { return heap_.bytes(MemorySpace::device); }

    /// Before writing. @param layout  a number for where the places lie
    void begin(Turn turn, std::size_t layout, Step step);
    /// After writing: what follows in the stream reads. @param moved  what was written
    void meet(Step step, const RowsMoved& moved) { barrier_->meet(step, moved); }

    /// Rows for which this rank's experts had no room, since the last call, of all layers
    /// and, counted by their hosts, of other tiers. Waits for the device.
    std::int64_t take_dropped_rows();
    void note_dropped_rows(std::int64_t rows) { dropped_on_host_ += rows; }
    /// Where kernels add to it; since the first reserve().
    unsigned long long* dropped_rows() { return gpu::device_counts(dropped_); }

  private:
    std::shared_ptr<Communicator> group_;
    SymmetricHeap heap_;
    std::unique_ptr<PeerBarrier> barrier_;
    std::optional<Turn> last_turn_;
    std::size_t last_layout_ = 0;
    Tensor dropped_;  // (1) i64 on the device
    std::int64_t dropped_on_host_ = 0, taken_ = 0;
};

}  // namespace moe::distributed
