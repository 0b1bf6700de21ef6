/// @file
/// What the session and the groups over NCCL share.
#pragma once

#include <nccl.h>

#include <atomic>
#include <chrono>
#include <list>
#include <mutex>
#include <string>
#include <thread>

#include "distributed/communicators/nccl_communicator.h"

namespace moe::distributed {

struct NcclState {
    std::chrono::milliseconds deadline{0};
    int rank = 0, world_size = 1;
    ncclComm_t world = nullptr;       // until world() has handed it out
    std::atomic<bool> failed{false};  // NCCL is in no state to be shut down
    std::mutex mutex;
    std::list<ncclComm_t> comms;  // the watchdog asks them all for errors
};

inline bool is_bad(ncclResult_t status) {
    return status != ncclSuccess && status != ncclInProgress;
}

/// Why NCCL gave up; its last word is often more telling than the error's name.
inline std::string words_for(ncclResult_t status, ncclComm_t comm) {
    const char* last = ncclGetLastError(comm);
    std::string text = std::string("NCCL: ") + ncclGetErrorString(status);
    if (last != nullptr && *last != '\0') text += std::string(" (") + last + ")";
    return one_line(text);
}

/// Asks `done` again and again; false after the deadline.
template <typename Done>
bool poll_until(std::chrono::milliseconds deadline, Done&& done) {
    for (const auto start = std::chrono::steady_clock::now();
         std::chrono::steady_clock::now() - start <= deadline;) {
        if (done()) return true;
        std::this_thread::sleep_for(std::chrono::microseconds(20));
    }
    return done();
}

/// What a non-blocking communicator has come to; ncclInProgress after the deadline.
inline ncclResult_t settle(ncclComm_t comm, std::chrono::milliseconds deadline) {
    ncclResult_t state = ncclInProgress;
    poll_until(deadline, [&] {
        const ncclResult_t asked = ncclCommGetAsyncError(comm, &state);
        if (is_bad(asked)) state = asked;
        return state != ncclInProgress;
    });
    return state;
}

/// A group over a communicator that has settled.
std::unique_ptr<Communicator> make_nccl_communicator(
    std::string name, std::vector<int> members, int rank,
    std::shared_ptr<OpLedger> ledger, ncclComm_t comm, std::shared_ptr<NcclState> state,
    std::function<void(const std::string& reason)> on_abort);

}  // namespace moe::distributed
