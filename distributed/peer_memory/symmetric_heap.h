/// @file
/// One peer memory for all layers of a rank, kept between calls: making it is collective
/// and dear. Source: Megatron's fused_a2a.py, get_buffer.
#pragma once

#include <memory>

#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// Grows, never shrinks. What it holds is nobody's between two exchanges: whoever writes
/// into a peer's heap, or into his own for peers to read, says by barriers when he may.
class SymmetricHeap {
  public:
    explicit SymmetricHeap(std::shared_ptr<Communicator> group)
        : group_(std::move(group)) {}

    /// At least `bytes` on every rank. Every rank of the group asks for the same at the
    /// same time, after all have left the exchange before; what lay there may be lost.
    /// @param limit  most it may grow to, at least `bytes`
    void reserve(std::size_t bytes, std::size_t limit, MemorySpace space);

    /// Everybody's addresses, since the first reserve(); the next may change them.
    const PeerTable& table(MemorySpace space) const { return memory(space)->table(); }
    /// 0 before the first reserve().
    std::size_t bytes(MemorySpace space) const;

  private:
    const std::shared_ptr<PeerMemory>& memory(MemorySpace space) const {
        return memory_[space == MemorySpace::device];
    }
    std::shared_ptr<Communicator> group_;
    std::shared_ptr<PeerMemory> memory_[2];  // on the host, on the device
};

}  // namespace moe::distributed
