/// @file
/// Ranks as processes without GPUs, on one machine or several. Device tensors, which on
/// such machines are the CPU executor's, go by way of the host; sums run in ascending
/// rank order.
///
/// Before data moves, every rank tells every other what it came for. So ranks that
/// disagree all fail with the same line, and a rank that is missing is known by name.
/// Nothing here waits in a blocking MPI call for another rank's program.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// MPI, from construction to destruction; one per process. A build without MPI rejects
/// the construction and says how to get it.
///
/// After a CommunicatorError MPI cannot end in good order any more: the process then
/// leaves without MPI_Finalize, and mpirun ends the others.
class MpiSession {
  public:
    MpiSession();
    ~MpiSession();
    MpiSession(const MpiSession&) = delete;
    MpiSession& operator=(const MpiSession&) = delete;

    int rank() const { return rank_; }
    int size() const { return size_; }

    /// All ranks, as the group "world". The session must outlive it.
    /// @param deadline  how long an operation waits for the other ranks
    /// @param on_abort  what Communicator::abort() does: tells the other processes
    std::unique_ptr<Communicator> world(
        std::shared_ptr<OpLedger> ledger, std::chrono::milliseconds deadline,
        std::function<void(const std::string& reason)> on_abort);

    /// False in a build without MPI.
    static bool available();

  private:
    struct State;
    std::shared_ptr<State> state_;
    int rank_ = 0, size_ = 1;
};

}  // namespace moe::distributed
