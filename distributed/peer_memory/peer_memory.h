/// @file
/// Memory that ranks write into each other's: a symmetric heap, laid out identically on
/// every rank, of which every rank knows every address. The flex dispatcher moves tokens
/// through it without a collective.
#pragma once

#include <cstddef>

#include "core/tensor.h"

namespace moe::distributed {

/// Most ranks of a group that can have peer memory; kernels take the table by value.
inline constexpr int kMaxPeers = 64;

/// The heaps of all ranks, as addresses that are valid here.
struct PeerTable {
    int rank = 0, size = 0;
    std::byte* base[kMaxPeers] = {};
};

/// Owns this rank's heap, and keeps the others' addresses valid while it lives.
class PeerMemory {
  public:
    PeerMemory(const PeerTable& table, std::size_t bytes, MemorySpace space)
        : table_(table), bytes_(bytes), space_(space) {}
    virtual ~PeerMemory() = default;
    PeerMemory(const PeerMemory&) = delete;
    PeerMemory& operator=(const PeerMemory&) = delete;

    const PeerTable& table() const { return table_; }
    std::size_t bytes() const { return bytes_; }
    MemorySpace space() const { return space_; }

  private:
    PeerTable table_;
    std::size_t bytes_;
    MemorySpace space_;
};

}  // namespace moe::distributed
