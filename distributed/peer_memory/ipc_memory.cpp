#include "distributed/peer_memory/ipc_memory.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "gpu/check.h"

namespace moe::distributed {
namespace {

// A handle is that of a whole allocation of the driver's, which holds several small ones.
constexpr std::size_t kOwnAllocation = std::size_t{2} << 20;

class IpcMemory : public PeerMemory {
  public:
    IpcMemory(const PeerTable& table, std::size_t bytes)
        : PeerMemory(table, bytes, MemorySpace::device) {}
    ~IpcMemory() override {
        for (int r = 0; r < table().size; ++r)
            if (r != table().rank) cudaIpcCloseMemHandle(table().base[r]);
    }
};

}  // namespace

std::shared_ptr<PeerMemory> make_ipc_memory(
    int rank, int size, std::size_t bytes,
    const std::function<void(const TensorView& whole, const TensorView& part)>&
        all_gather) {
    void* mine = nullptr;
    const std::size_t whole_bytes = std::max(bytes, kOwnAllocation);
    gpu::check(cudaMalloc(&mine, whole_bytes),
               fmt::format("cudaMalloc of {} bytes of peer memory", whole_bytes));
    gpu::check(cudaMemset(mine, 0, whole_bytes), "cudaMemset");
    gpu::check(cudaDeviceSynchronize(), "cudaMemset");

    cudaIpcMemHandle_t handle;
    gpu::check(cudaIpcGetMemHandle(&handle, mine), "cudaIpcGetMemHandle");
    constexpr std::int64_t kHandleBytes = sizeof handle;
    const Tensor part = Tensor::empty({1, kHandleBytes}, DType::u8);
    std::memcpy(part.view().bytes, &handle, sizeof handle);
    const Tensor handles = Tensor::empty({size, kHandleBytes}, DType::u8);
    all_gather(handles, part);

    PeerTable table{rank, size, {}};
    for (int r = 0; r < size; ++r) {
        void* theirs = mine;
        std::memcpy(&handle, handles.data<std::uint8_t>() + r * kHandleBytes,
                    sizeof handle);
        if (r != rank)
            gpu::check(
                cudaIpcOpenMemHandle(&theirs, handle, cudaIpcMemLazyEnablePeerAccess),
                fmt::format("peer memory of rank {} of the group (its GPU must be "
                            "in this machine)",
                            r));
        table.base[r] = static_cast<std::byte*>(theirs);
    }
    return std::make_shared<IpcMemory>(table, bytes);
}

}  // namespace moe::distributed
