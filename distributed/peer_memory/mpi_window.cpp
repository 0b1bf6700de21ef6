#include "distributed/peer_memory/mpi_window.h"

#include <cstdint>
#include <cstring>

#include "gpu/foreign_memory.h"

namespace moe::distributed {
namespace {

/// As cudaMalloc() aligns: kernels move 16 bytes at a time.
constexpr std::size_t kAlignment = 256;

/// MPI promises nothing; a window maps whole pages, so this is the same byte in every
/// process.
std::byte* aligned(std::byte* base) {
    const auto address = reinterpret_cast<std::uintptr_t>(base);
    return base + (kAlignment - address % kAlignment) % kAlignment;
}

class WindowMemory : public PeerMemory {
  public:
    WindowMemory(const PeerTable& table, std::size_t bytes, MemorySpace space,
                 MPI_Comm comm, MPI_Win window, const bool* failed)
        : PeerMemory(table, bytes, space), comm_(comm), window_(window), failed_(failed) {
        if (space == MemorySpace::device)
            for (int r = 0; r < table.size; ++r)
                gpu::adopt_device_memory(table.base[r], bytes);
    }
    ~WindowMemory() override {
        if (space() == MemorySpace::device)
            for (int r = 0; r < table().size; ++r)
                gpu::disown_device_memory(table().base[r]);
        if (*failed_) return;
        MPI_Win_unlock_all(window_);
        MPI_Win_free(&window_);
        MPI_Comm_free(&comm_);
    }

  private:
    MPI_Comm comm_;
    MPI_Win window_;
    const bool* failed_;
};

}  // namespace

std::shared_ptr<PeerMemory> allocate_window(MPI_Comm comm, const std::string& name,
                                            std::size_t bytes, MemorySpace space,
                                            const bool* failed) {
    int rank = 0, size = 0, here = 0;
    MPI_Comm_rank(comm, &rank);
    MPI_Comm_size(comm, &size);
    MPI_Comm machine = MPI_COMM_NULL;
    check_mpi(
        MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &machine),
        "MPI_Comm_split_type");
    MPI_Comm_size(machine, &here);
    if (here != size) {
        MPI_Comm_free(&machine);
        reject("peer memory: ranks of group " + name, size,
               "must be on one machine over MPI");
    }
    // Each rank's part on pages of its own, for each to be near its own rank.
    MPI_Info info;
    MPI_Info_create(&info);
    MPI_Info_set(info, "alloc_shared_noncontig", "true");
    void* mine = nullptr;
    MPI_Win window = MPI_WIN_NULL;
    const int status = MPI_Win_allocate_shared(MPI_Aint(bytes + kAlignment), 1, info,
                                               machine, &mine, &window);
    MPI_Info_free(&info);
    check_mpi(status, "MPI_Win_allocate_shared");
    check_mpi(MPI_Win_lock_all(MPI_MODE_NOCHECK, window), "MPI_Win_lock_all");
    std::memset(aligned(static_cast<std::byte*>(mine)), 0, bytes);
    PeerTable table{rank, size, {}};
    for (int r = 0; r < size; ++r) {
        MPI_Aint length = 0;
        int unit = 0;
        std::byte* base = nullptr;
        check_mpi(MPI_Win_shared_query(window, r, &length, &unit, &base),
                  "MPI_Win_shared_query");
        table.base[r] = aligned(base);
    }
    return std::make_shared<WindowMemory>(table, bytes, space, machine, window, failed);
}

}  // namespace moe::distributed
