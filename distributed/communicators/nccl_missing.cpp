// nccl_missing.cpp: NcclSession in a build without NCCL.

#include "distributed/communicators/nccl_communicator.h"

namespace moe::distributed {

struct NcclState {};

NcclSession::NcclSession(ControlConnection&, int, std::chrono::milliseconds) {
    reject("NCCL", "missing",
           "this build has none; get it with: apt-get update && apt-get install "
           "libnccl-dev, then configure with the preset cuda");
}
NcclSession::~NcclSession() = default;

std::unique_ptr<Communicator> NcclSession::world(
    std::shared_ptr<OpLedger>, std::function<void(const std::string& reason)>) const {
    return nullptr;  // nobody has a session
}

std::string NcclSession::error() const {
    return {};
}

std::string NcclSession::missing() {
    return "not in this build: needs the preset cuda and NCCL's headers";
}

std::string NcclSession::library() {
    return {};  // one is missing
}

}  // namespace moe::distributed
