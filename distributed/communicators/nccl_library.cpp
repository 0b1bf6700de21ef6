// nccl_library.cpp: the functions of NCCL, each handed on to the library that was opened.

#include "distributed/communicators/nccl_library.h"

#include <fmt/format.h>

#include <mutex>
#include <string>

// Nobody else's calls come here: a library of the same process, such as PyTorch, may have
// an NCCL of its own.
#pragma GCC visibility push(hidden)
#include <nccl.h>
#include <nccl_device/core.h>

namespace moe::distributed {
namespace {

std::mutex mutex;
std::string missing;

/// What a call ends in when the library has no such function; ncclGetLastError tells
/// the first of them.
ncclResult_t lacks(const char* function) {
    const std::lock_guard lock(mutex);
    const gpu::Library& library = nccl_library();
    if (missing.empty())
        missing = library.found()
                      ? fmt::format("{} has no {}: it is too old for this build",
                                    library.where(), function)
                      : fmt::format("no library: {}", library.where());
    return ncclInvalidUsage;
}

}  // namespace

const gpu::Library& nccl_library() {
    static const gpu::Library library({"libnccl.so.2", "libnccl.so"});
    return library;
}

}  // namespace moe::distributed

/// The library's function of that name and that type, or null.
#define THEIRS(name, type) \
    static const auto theirs = moe::distributed::nccl_library().function<type>(#name)

/// Returns what the library's function of that name returns.
#define HAND_ON(name, ...)        \
    THEIRS(name, decltype(name)); \
    return theirs != nullptr ? theirs(__VA_ARGS__) : moe::distributed::lacks(#name)

// -------------------------------------------------------------------- communicators
ncclResult_t ncclGetVersion(int* version) {
    HAND_ON(ncclGetVersion, version);
}
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    HAND_ON(ncclGetUniqueId, id);
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int ranks, ncclUniqueId id,
                                    int rank, ncclConfig_t* config) {
    HAND_ON(ncclCommInitRankConfig, comm, ranks, id, rank, config);
}
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t* part,
                           ncclConfig_t* config) {
    HAND_ON(ncclCommSplit, comm, color, key, part, config);
}
ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    HAND_ON(ncclCommFinalize, comm);
}
ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    HAND_ON(ncclCommDestroy, comm);
}

// --------------------------------------------------------------------------- errors
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    HAND_ON(ncclCommGetAsyncError, comm, error);
}
const char* ncclGetErrorString(ncclResult_t result) {
    THEIRS(ncclGetErrorString, decltype(ncclGetErrorString));
    return theirs != nullptr ? theirs(result) : "error";
}
const char* ncclGetLastError(ncclComm_t comm) {
    {
        const std::lock_guard lock(moe::distributed::mutex);
        if (!moe::distributed::missing.empty()) return moe::distributed::missing.c_str();
    }
    THEIRS(ncclGetLastError, decltype(ncclGetLastError));
    return theirs != nullptr ? theirs(comm) : "";
}

// ---------------------------------------------------------------------- collectives
ncclResult_t ncclGroupStart() {
    HAND_ON(ncclGroupStart);
}
ncclResult_t ncclGroupEnd() {
    HAND_ON(ncclGroupEnd);
}
ncclResult_t ncclBroadcast(const void* source, void* target, size_t count,
                           ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream) {
    HAND_ON(ncclBroadcast, source, target, count, type, root, comm, stream);
}
ncclResult_t ncclAllGather(const void* source, void* target, size_t count,
                           ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    HAND_ON(ncclAllGather, source, target, count, type, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* source, void* target, size_t count,
                               ncclDataType_t type, ncclRedOp_t operation,
                               ncclComm_t comm, cudaStream_t stream) {
    HAND_ON(ncclReduceScatter, source, target, count, type, operation, comm, stream);
}
ncclResult_t ncclAllReduce(const void* source, void* target, size_t count,
                           ncclDataType_t type, ncclRedOp_t operation, ncclComm_t comm,
                           cudaStream_t stream) {
    HAND_ON(ncclAllReduce, source, target, count, type, operation, comm, stream);
}
ncclResult_t ncclReduce(const void* source, void* target, size_t count,
                        ncclDataType_t type, ncclRedOp_t operation, int root,
                        ncclComm_t comm, cudaStream_t stream) {
    HAND_ON(ncclReduce, source, target, count, type, operation, root, comm, stream);
}
ncclResult_t ncclSend(const void* source, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
    HAND_ON(ncclSend, source, count, type, peer, comm, stream);
}
ncclResult_t ncclRecv(void* target, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
    HAND_ON(ncclRecv, target, count, type, peer, comm, stream);
}

// --------------------------------------------------------------------------- memory
ncclResult_t ncclMemAlloc(void** memory, size_t bytes) {
    HAND_ON(ncclMemAlloc, memory, bytes);
}
ncclResult_t ncclMemFree(void* memory) {
    HAND_ON(ncclMemFree, memory);
}
ncclResult_t ncclCommWindowRegister(ncclComm_t comm, void* memory, size_t bytes,
                                    ncclWindow_t* window, int flags) {
    HAND_ON(ncclCommWindowRegister, comm, memory, bytes, window, flags);
}
/// Without the function: a team of nobody, so that there is no window.
ncclTeam_t ncclTeamLsa(ncclComm_t comm) {
    THEIRS(ncclTeamLsa, ncclTeam_t(ncclComm_t));
    return theirs != nullptr ? theirs(comm) : ncclTeam_t{};
}
