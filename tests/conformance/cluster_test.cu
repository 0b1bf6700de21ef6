// cluster_test.cu: blocks of a cluster meet, read each other's shared memory, and receive
// what one of them loads.

#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "gpu/tensor_map.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;

struct PeerSmem {
    int values[96];
};

/// Every thread reads its value from the next block of the cluster, and adds 1000 to that
/// of the one before.
__global__ void peers_kernel(int* result) {
    auto& s = gpu::shared_memory<PeerSmem>();
    const unsigned t = threadIdx.x, rank = ptx::cluster_ctarank();
    const unsigned size = ptx::cluster_nctarank();
    const unsigned block = blockIdx.x + gridDim.x * blockIdx.y;
    s.values[t] = int(100 * block + t);
    ptx::cluster_arrive();
    ptx::cluster_wait();
    const int read = *ptx::map_shared_rank(&s.values[t], (rank + 1) % size);
    ptx::cluster_arrive();
    ptx::cluster_wait();
    *ptx::map_shared_rank(&s.values[t], (rank + size - 1) % size) += 1000;
    ptx::cluster_arrive();
    ptx::cluster_wait();
    result[(block * blockDim.x + t) * 3] = read;
    result[(block * blockDim.x + t) * 3 + 1] = s.values[t];
    result[(block * blockDim.x + t) * 3 + 2] = int(rank);
    ptx::cluster_arrive();  // nobody leaves while a peer may still look
    ptx::cluster_wait();
}

TEST(ConformanceCluster, BlocksReadAndWriteEachOthersSharedMemory) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        struct Case {
            dim3 grid, cluster;
        };
        for (const Case& c : {Case{dim3(6), dim3(1)},
                              {dim3(6), dim3(3)},
                              {dim3(8), dim3(8)},
                              {dim3(4, 6), dim3(2, 3)}}) {
            const unsigned blocks = c.grid.x * c.grid.y;
            const unsigned size = c.cluster.x * c.cluster.y;
            DeviceArray<int> result(blocks * 96 * 3);
            launch("peers_kernel", peers_kernel,
                   {c.grid, 96, sizeof(PeerSmem), nullptr, c.cluster}, result.data());
            const auto got = result.to_host();
            for (unsigned block = 0; block < blocks; ++block) {
                const unsigned x = block % c.grid.x, y = block / c.grid.x;
                const unsigned rank = x % c.cluster.x + c.cluster.x * (y % c.cluster.y);
                const unsigned next = (rank + 1) % size;
                const unsigned nx = x / c.cluster.x * c.cluster.x + next % c.cluster.x;
                const unsigned ny = y / c.cluster.y * c.cluster.y + next / c.cluster.x;
                for (unsigned t = 0; t < 96; t += 5) {
                    const int* seen = &got[(block * 96 + t) * 3];
                    ASSERT_EQ(seen[0], int(100 * (ny * c.grid.x + nx) + t));
                    ASSERT_EQ(seen[1], int(100 * block + t + 1000));
                    ASSERT_EQ(seen[2], int(rank));
                }
            }
        }
    });
}

struct CountSmem {
    std::uint64_t barrier;
};

/// Rank 0 waits until one thread of every other block has arrived at its barrier.
__global__ void arrivals_kernel(int* phases) {
    auto& s = gpu::shared_memory<CountSmem>();
    const unsigned rank = ptx::cluster_ctarank(), size = ptx::cluster_nctarank();
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(&s.barrier, size - 1);
        ptx::fence_mbarrier_init();
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    for (unsigned phase = 0; phase < 3; ++phase) {
        if (rank != 0 && threadIdx.x == 5) ptx::mbarrier_arrive_remote(&s.barrier, 0);
        if (rank == 0) {
            ptx::mbarrier_wait(&s.barrier, phase & 1);
            if (threadIdx.x == 0) phases[phase] = int(phase) + 1;
        }
        ptx::cluster_arrive();
        ptx::cluster_wait();
    }
}

TEST(ConformanceCluster, ThreadsArriveAtBarriersOfOtherBlocks) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        DeviceArray<int> phases(3);
        launch("arrivals_kernel", arrivals_kernel, {4, 32, sizeof(CountSmem), nullptr, 4},
               phases.data());
        EXPECT_EQ(phases.to_host(), (std::vector<int>{1, 2, 3}));
    });
}

struct MulticastSmem {
    alignas(128) int values[32];
    std::uint64_t barrier;
};

/// Rank 1 loads a line for the blocks of `mask`; block 0 comes late.
template <bool tensor>
__global__ void multicast_kernel(int* result, const int* source,
                                 const __grid_constant__ CUtensorMap map,
                                 std::uint16_t mask) {
    auto& s = gpu::shared_memory<MulticastSmem>();
    const unsigned rank = ptx::cluster_ctarank(), t = threadIdx.x;
    const bool receives = mask >> rank & 1;
    if (t == 0) {
        ptx::mbarrier_init(&s.barrier, 1);
        ptx::fence_mbarrier_init();
        if (receives) ptx::mbarrier_arrive_expect_tx(&s.barrier, 128);
    }
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if (rank == 1 && t == 0) {
        if constexpr (tensor)
            ptx::tma_load_multicast_2d(s.values, &map, &s.barrier, mask, 0, 1);
        else
            ptx::bulk_load_multicast(s.values, source + 32, 128, &s.barrier, mask);
    }
    if (rank == 0)
        for (int i = 0; i < 3; ++i) __syncthreads();
    if (receives) ptx::mbarrier_wait(&s.barrier, 0);
    result[blockIdx.x * 32 + t] = receives ? s.values[t] : -1;
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

TEST(ConformanceCluster, OneLoadArrivesInEveryBlockOfTheMask) {
    MOE_NEEDS_HOPPER;
    std::vector<int> source(64);
    for (int i = 0; i < 64; ++i) source[i] = 10 + i;
    in_every_mode([&] {
        DeviceArray<int> device(source);
        gpu::TensorMapShape shape;
        shape.type = CU_TENSOR_MAP_DATA_TYPE_INT32;
        shape.sizes = {32, 2};
        shape.box = {32, 1};
        const CUtensorMap map = gpu::make_tensor_map(device.data(), shape);
        for (auto kernel : {multicast_kernel<false>, multicast_kernel<true>})
            for (std::uint16_t mask : {0xf, 0x5, 0x2}) {
                DeviceArray<int> result(4 * 32);
                launch("multicast_kernel", kernel,
                       {4, 32, sizeof(MulticastSmem), nullptr, 4}, result.data(),
                       device.data(), map, mask);
                const auto got = result.to_host();
                for (int i = 0; i < 128; ++i)
                    ASSERT_EQ(got[i], mask >> (i / 32) & 1 ? source[32 + i % 32] : -1);
            }
    });
}

TEST(ConformanceCluster, ShapesThatDoNotDivideTheGridAreRefused) {
    MOE_NEEDS_HOPPER;
    DeviceArray<int> result(3);
    EXPECT_THROW(launch("arrivals_kernel", arrivals_kernel,
                        {5, 32, sizeof(CountSmem), nullptr, 2}, result.data()),
                 gpu::DeviceError);
    EXPECT_THROW(launch("arrivals_kernel", arrivals_kernel,
                        {32, 32, sizeof(CountSmem), nullptr, 32}, result.data()),
                 gpu::DeviceError);
}

}  // namespace
}  // namespace moe::test
