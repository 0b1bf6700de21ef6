/// @file
/// Ranks as processes with one GPU each, over NCCL. Only tensors on the device travel,
/// but for small ones on the host (counts), which go by way of the device.
///
/// Three things differ from the other back-ends. NCCL chooses the order of its sums (it
/// is the same on every rank). Ranks that call different operations, or bring other
/// counts, are not told apart: they end at the deadline. And peer memory is that of
/// GPUs that reach each other: a window of NCCL's (window_memory.h), or else CUDA's
/// memory handles (ipc_memory.h).
///
/// Nothing here waits without end: every call is non-blocking, and is asked for its
/// result until a deadline. NCCL's kernels do spin without end when a rank is gone; the
/// watchdog's _exit() is what ends them.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

#include "distributed/communicators/communicator.h"
#include "distributed/launch/rendezvous.h"

namespace moe::distributed {

/// Shared by the session and all groups of this process.
struct NcclState;

/// This process's NCCL. The construction is rejected in a build without it, and where the
/// program finds no library (nccl_library.h) or one that is older than its headers.
class NcclSession {
  public:
    /// Chooses the GPU, and joins the world of the control connection.
    /// @param deadline  for joining, and for every operation
    NcclSession(ControlConnection& control, int local_rank,
                std::chrono::milliseconds deadline);
    ~NcclSession();
    NcclSession(const NcclSession&) = delete;
    NcclSession& operator=(const NcclSession&) = delete;

    /// All ranks, as the group "world". The session must outlive it; call it once.
    std::unique_ptr<Communicator> world(
        std::shared_ptr<OpLedger> ledger,
        std::function<void(const std::string& reason)> on_abort) const;

    /// What NCCL found out by itself, for the watchdog; empty while all is well.
    std::string error() const;

    /// What it lacks here, in one line, or nothing.
    static std::string missing();
    /// The library that was found: "libnccl.so.2, version 2.28.9". Only when nothing is
    /// missing.
    static std::string library();

  private:
    std::shared_ptr<NcclState> state_;
};

}  // namespace moe::distributed
