#include "distributed/communicators/mpi_messages.h"

#include <sched.h>

#include <algorithm>
#include <thread>

#include "distributed/communicators/communicator.h"

namespace moe::distributed {
namespace {

constexpr int kTag = 1;
// Counts are ints, so that large messages go in pieces.
constexpr std::size_t kPiece = std::size_t(1) << 30;

}  // namespace

void check_mpi(int status, const char* call) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(status, text, &length);
    throw CommunicatorError(one_line(fmt::format("{}: {}", call, text)));
}

MPI_Request& MpiMessages::add(int peer, bool receives) {
    peers_.push_back(peer);
    receives_.push_back(receives);
    return requests_.emplace_back(MPI_REQUEST_NULL);
}

void MpiMessages::receive(int peer, void* bytes, std::size_t count) {
    for (std::size_t first = 0; first < count; first += kPiece)
        check_mpi(MPI_Irecv(static_cast<std::byte*>(bytes) + first,
                            int(std::min(kPiece, count - first)), MPI_BYTE, peer, kTag,
                            comm_, &add(peer, true)),
                  "MPI_Irecv");
}

void MpiMessages::send(int peer, const void* bytes, std::size_t count) {
    for (std::size_t first = 0; first < count; first += kPiece)
        check_mpi(MPI_Isend(static_cast<const std::byte*>(bytes) + first,
                            int(std::min(kPiece, count - first)), MPI_BYTE, peer, kTag,
                            comm_, &add(peer, false)),
                  "MPI_Isend");
}

std::optional<int> MpiMessages::wait(std::chrono::milliseconds deadline) {
    constexpr int kEager = 500;  // looks before it begins to sleep
    const auto start = std::chrono::steady_clock::now();
    for (int looks = 0;; ++looks) {
        int done = 0;
        check_mpi(MPI_Testall(int(requests_.size()), requests_.data(), &done,
                              MPI_STATUSES_IGNORE),
                  "MPI_Testall");
        if (done) return {};
        if (std::chrono::steady_clock::now() - start > deadline) return give_up();
        if (looks < kEager)
            sched_yield();  // ranks often share cores
        else
            std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
}

std::optional<int> MpiMessages::give_up() {
    std::optional<int> missing;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
        int done = 0;
        MPI_Test(&requests_[i], &done, MPI_STATUS_IGNORE);
        if (done) continue;
        if (!missing) missing = peers_[i];
        // Nothing may arrive any more in memory that is about to be freed.
        if (receives_[i]) MPI_Cancel(&requests_[i]);
    }
    return missing;
}

}  // namespace moe::distributed
