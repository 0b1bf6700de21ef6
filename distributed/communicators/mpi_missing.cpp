// mpi_missing.cpp: MpiSession in a build without MPI.

#include "distributed/communicators/mpi_communicator.h"

namespace moe::distributed {

struct MpiSession::State {};

MpiSession::MpiSession() {
    reject("MPI", "missing",
           "this build has none; get it with: apt-get update && apt-get install "
           "libopenmpi-dev openmpi-bin, then configure again");
}
MpiSession::~MpiSession() = default;

std::unique_ptr<Communicator> MpiSession::world(
    std::shared_ptr<OpLedger>, std::chrono::milliseconds,
    std::function<void(const std::string& reason)>) {
    return nullptr;  // nobody has a session
}

bool MpiSession::available() {
    return false;
}

}  // namespace moe::distributed
