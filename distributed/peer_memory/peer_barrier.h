/// @file
/// A barrier of ranks at which their devices wait, and no host.
#pragma once

#include <cstdint>
#include <memory>

#include "core/steps.h"
#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// What a meeting books: `rows[r]` rows of `row_bytes` went to rank r of the group, or
/// were laid out for it. How many, only the device knows.
struct RowsMoved {
    const int* rows = nullptr;  ///< (W') on the device; null: nothing
    std::int64_t row_bytes = 0;
};

/// Every rank of a group makes one at the same time, and calls meet() equally often.
///
/// TUTORIAL: flags are never taken down, they count. A rank that comes to its n-th
/// meeting writes n into its flag at every other rank, and goes on once all flags in its
/// own memory say n or more; nobody has to know when the others have read.
class PeerBarrier {
  public:
    /// By flags in the others' memory; or by events between streams, where the ranks are
    /// threads that share a device, and a kernel of one could wait for a kernel of
    /// another that finds no room.
    enum class Way { flags, events };
    /// The one of the two that this group can have. TUTORIAL: on the CPU executor a rank
    /// runs its kernels itself, so none keeps another's from running, unless streams hold
    /// their work back.
    static Way way_for(const Communicator& group);

    static std::unique_ptr<PeerBarrier> make(std::shared_ptr<Communicator> group,
                                             Way way);
    virtual ~PeerBarrier() = default;

    /// What the current stream gets from now on runs when every rank's stream has come as
    /// far, and sees what they wrote before, wherever. The host goes on at once.
    ///
    /// A rank that stays away for longer than the group's deadline stops the kernel of
    /// each rank that waits: CommunicatorError naming both, here or at whichever call
    /// learns of it first.
    virtual void meet(Step step, const RowsMoved& moved) = 0;
};

}  // namespace moe::distributed
