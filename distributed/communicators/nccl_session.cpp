// nccl_session.cpp: choosing the GPU, and joining the world.

#include <cstdlib>
#include <cstring>
#include <numeric>

#include "distributed/communicators/nccl_library.h"
#include "distributed/communicators/nccl_state.h"
#include "gpu/check.h"

namespace moe::distributed {
namespace {

using std::chrono::milliseconds;

/// NCCL's version code: 22809 is version 2.28.9. That of the library is 0 when it does
/// not tell.
int version_of_library() {
    int version = 0;
    return ncclGetVersion(&version) == ncclSuccess ? version : 0;
}
std::string version_text(int version) {
    return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

/// InputError unless the library was found and knows all that the headers promise.
void check_library() {
    if (const std::string missing = NcclSession::missing(); !missing.empty())
        reject("NCCL",
               nccl_library().found() ? version_text(version_of_library()) : "missing",
               missing);
}

/// For tests of the machinery where there are fewer GPUs than ranks: each rank claims a
/// machine of its own, so that NCCL, which wants one rank for each GPU of a machine, goes
/// by sockets. Correct, slow, and no path that a real machine takes.
bool ranks_share_gpu(int rank) {
    if (std::getenv("MOE_RANKS_SHARE_GPU") == nullptr) return false;
    setenv("NCCL_HOSTID", fmt::format("rank-{}", rank).c_str(), 1);
    for (const auto& [name, value] : {std::pair{"NCCL_NET", "Socket"},
                                      {"NCCL_NET_PLUGIN", "none"},
                                      {"NCCL_IB_DISABLE", "1"},
                                      {"NCCL_SOCKET_IFNAME", "=lo"},
                                      {"NCCL_SOCKET_FAMILY", "AF_INET"},
                                      {"NCCL_MNNVL_ENABLE", "0"},
                                      {"NCCL_NVLS_ENABLE", "0"},
                                      {"NCCL_CUMEM_HOST_ENABLE", "0"},
                                      {"NCCL_RAS_ENABLE", "0"},
                                      {"NCCL_ALGO", "Ring"},
                                      {"NCCL_PROTO", "Simple"},
                                      {"NCCL_MAX_CTAS", "2"},
                                      {"CUDA_MODULE_LOADING", "EAGER"}})
        setenv(name, value, 0);
    return true;
}

void choose_gpu(int local_rank, bool shared) {
    int count = 0;
    gpu::check(cudaGetDeviceCount(&count), "GPUs");
    if (!shared && local_rank >= count)
        reject("local rank", local_rank,
               fmt::format("this machine has {} GPUs, one for each rank", count));
    gpu::check(cudaSetDevice(shared ? 0 : local_rank), "cudaSetDevice");
}

}  // namespace

NcclSession::NcclSession(ControlConnection& control, int local_rank,
                         std::chrono::milliseconds deadline)
    : state_(std::make_shared<NcclState>()) {
    state_->deadline = deadline;
    state_->rank = control.rank();
    state_->world_size = control.world_size();
    choose_gpu(local_rank, ranks_share_gpu(control.rank()));
    check_library();
    const auto require = [&](ncclResult_t status, const char* call) {
        if (status == ncclSuccess) return;
        state_->failed = true;
        const std::string why =
            status == ncclInProgress
                ? fmt::format("not all ranks joined within {} ms", deadline.count())
                : words_for(status, state_->world);
        throw CommunicatorError(
            fmt::format("rank {}: {} failed: {}", control.rank(), call, why), why);
    };
    ncclUniqueId id = {};
    if (control.rank() == 0) {
        require(ncclGetUniqueId(&id), "ncclGetUniqueId");
        control.set("nccl", std::string(id.internal, sizeof id.internal));
    }
    const std::string shared = control.get("nccl");
    MOE_CHECK_EQ(shared.size(), sizeof id.internal);
    std::memcpy(id.internal, shared.data(), sizeof id.internal);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t begun = ncclCommInitRankConfig(
        &state_->world, control.world_size(), id, control.rank(), &config);
    if (is_bad(begun)) require(begun, "ncclCommInitRankConfig");
    require(settle(state_->world, deadline), "joining the others");
}

NcclSession::~NcclSession() = default;

std::unique_ptr<Communicator> NcclSession::world(
    std::shared_ptr<OpLedger> ledger,
    std::function<void(const std::string& reason)> on_abort) const {
    std::vector<int> members(state_->world_size);
    std::iota(members.begin(), members.end(), 0);
    return make_nccl_communicator("world", members, state_->rank, std::move(ledger),
                                  state_->world, state_, std::move(on_abort));
}

std::string NcclSession::error() const {
    const std::lock_guard lock(state_->mutex);
    for (ncclComm_t comm : state_->comms) {
        ncclResult_t state = ncclSuccess;
        ncclCommGetAsyncError(comm, &state);
        if (is_bad(state)) return words_for(state, comm);
    }
    return {};
}

std::string NcclSession::missing() {
    const gpu::Library& library = nccl_library();
    if (!library.found())
        return fmt::format(
            "needs libnccl.so.2, looked for in MOE_LIBRARY_PATH, by the loader, and in "
            "python3's packages ({})",
            library.where());
    if (version_of_library() < NCCL_VERSION_CODE)
        return fmt::format(
            "needs version {} or newer, which {} is not; MOE_LIBRARY_PATH may name the "
            "folder of another",
            version_text(NCCL_VERSION_CODE), library.where());
    return "";
}

std::string NcclSession::library() {
    return fmt::format("{}, version {}", nccl_library().where(),
                       version_text(version_of_library()));
}

}  // namespace moe::distributed
