// window_memory.cu: a symmetric window of NCCL as a table of addresses.

#include "distributed/peer_memory/window_memory.h"

#include <nccl_device.h>

#include <vector>

#include "distributed/communicators/nccl_state.h"
#include "gpu/check.h"
#include "gpu/launch.h"

namespace moe::distributed {
namespace {

/// One thread per rank. NCCL 2.28 tells these addresses to kernels only.
__global__ void lsa_pointers_kernel(std::byte** pointers, ncclWindow_t window, int size) {
    const int r = int(threadIdx.x);
    if (r < size) pointers[r] = static_cast<std::byte*>(ncclGetLsaPointer(window, 0, r));
}

void require(ncclResult_t status, ncclComm_t comm, const char* what) {
    if (is_bad(status))
        throw gpu::DeviceError(fmt::format("{}: {}", what, words_for(status, comm)));
}

/// Where every rank's part of the window lies in this process.
std::vector<std::byte*> lsa_pointers(ncclWindow_t window, int size) {
    std::vector<std::byte*> host(size);
    void* device = nullptr;
    gpu::check(cudaMalloc(&device, size * sizeof(std::byte*)), "cudaMalloc");
    gpu::launch("lsa_pointers_kernel", lsa_pointers_kernel, {1, kMaxPeers},
                static_cast<std::byte**>(device), window, size);
    gpu::check(cudaDeviceSynchronize(), "lsa_pointers_kernel");
    gpu::check(cudaMemcpy(host.data(), device, size * sizeof(std::byte*),
                          cudaMemcpyDeviceToHost),
               "cudaMemcpy");
    gpu::check(cudaFree(device), "cudaFree");
    return host;
}

}  // namespace

std::shared_ptr<PeerMemory> make_window_memory(ncclComm_t comm, int rank, int size,
                                               std::size_t bytes,
                                               std::chrono::milliseconds deadline) {
    if (ncclTeamLsa(comm).nRanks != size) return nullptr;
    void* mine = nullptr;
    require(ncclMemAlloc(&mine, bytes), comm, "ncclMemAlloc");
    gpu::check(cudaMemset(mine, 0, bytes), "cudaMemset");
    gpu::check(cudaDeviceSynchronize(), "cudaMemset");
    // Where NCCL has no symmetric memory it succeeds and leaves the window as it was.
    ncclWindow_t window = nullptr;
    require(ncclCommWindowRegister(comm, mine, bytes, &window, NCCL_WIN_COLL_SYMMETRIC),
            comm, "ncclCommWindowRegister");
    require(settle(comm, deadline), comm, "ncclCommWindowRegister");
    if (window == nullptr) {
        require(ncclMemFree(mine), comm, "ncclMemFree");
        return nullptr;
    }
    const std::vector<std::byte*> pointers = lsa_pointers(window, size);
    PeerTable table{rank, size, {}};
    for (int r = 0; r < size; ++r) table.base[r] = pointers[r];
    return std::make_shared<PeerMemory>(table, bytes, MemorySpace::device);
}

}  // namespace moe::distributed
