// cluster_test.cu: shared memory of a neighbour in the cluster: its accesses are counted,
// and what orders them is known.

#include "gpu/ptx.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;

constexpr int kThreads = 64;
struct Row {
    int values[kThreads];
    std::uint64_t barrier;
};

gpu::LaunchConfig pair() {
    return {2, kThreads, sizeof(Row), nullptr, 2};
}
std::string race(const char* one, const char* other) {
    return race_in(__FILE__, one, other);
}
template <typename Kernel, typename... Arguments>
std::string races(Kernel kernel, Arguments... arguments) {
    return races_of([&] { gpu::launch("kernel", kernel, pair(), arguments...); });
}

/// The running thread's place in an array for all of them.
__device__ int& mine(int* target) {
    return target[blockIdx.x * kThreads + threadIdx.x];
}
__device__ void meet_neighbours() {
    ptx::cluster_arrive();
    ptx::cluster_wait();
}
__device__ int* neighbours_row(Row& own) {
    return ptx::map_shared_rank(own.values, ptx::cluster_ctarank() ^ 1);
}

// ------------------------------------------------------------------------------ counting
__global__ void strided_kernel(int* target, int stride) {
    Row& own = gpu::shared_memory<Row>();
    const int t = int(threadIdx.x);
    own.values[t] = t;
    meet_neighbours();
    const int* row = neighbours_row(own);
    mine(target) = row[t * stride % kThreads];  // strided
    meet_neighbours();
}

TEST(ObserveCluster, ReadsOfANeighboursRowAreRequestsOfSharedMemory) {
    DeviceArray<int> target(2 * kThreads);
    const auto read = [&](int stride) {
        return OBSERVE(strided_kernel, pair(), target.data(), stride).at("strided");
    };
    EXPECT_EQ(read(1).shared.requests, 2 * 2);  // of two warps in two blocks
    EXPECT_EQ(read(1).shared.wavefronts, 2 * 2);
    EXPECT_EQ(read(1).loads.requests, 0);
    EXPECT_EQ(read(4).shared.wavefronts, 2 * 2 * 2);  // 16 words in 8 banks
    EXPECT_EQ(read(4).shared.most_ways, 2);
}

__global__ void mixed_kernel(int* target) {
    Row& own = gpu::shared_memory<Row>();
    const int t = int(threadIdx.x);
    own.values[t] = t;
    meet_neighbours();
    const int* row = ptx::map_shared_rank(own.values, unsigned(t & 1));
    mine(target) = row[t];  // one of two rows
    meet_neighbours();
}

TEST(ObserveCluster, LanesInTwoBlocksMemoriesAreTwoRequests) {
    DeviceArray<int> target(2 * kThreads);
    const Counters line =
        OBSERVE(mixed_kernel, pair(), target.data()).at("one of two rows");
    EXPECT_EQ(line.shared.requests, 2 * 2 * 2);
    EXPECT_EQ(line.shared.wavefronts, 2 * 2 * 2);
}

// ------------------------------------------------------------------------- out of bounds
struct Short {
    int values[kThreads];
};
__global__ void past_the_end_kernel(int* target) {
    Short& own = gpu::shared_memory<Short>();
    const int t = int(threadIdx.x);
    own.values[t] = t;
    meet_neighbours();
    const unsigned peer = ptx::cluster_ctarank() ^ 1;
    const int* row = ptx::map_shared_rank(own.values, peer);
    if (blockIdx.x == 0) target[t] = row[t + 1];  // one too far
    meet_neighbours();
}

TEST(ObserveCluster, AnAccessPastANeighboursMemoryIsTold) {
    DeviceArray<int> target(kThreads);
    cuda_on_cpu::observe::start();
    EXPECT_THROW(gpu::launch("kernel", past_the_end_kernel,
                             {2, kThreads, sizeof(Short), nullptr, 2}, target.data()),
                 gpu::DeviceError);
    cuda_on_cpu::observe::stop();
    const Report report = cuda_on_cpu::observe::report();
    const int line = marked_line(__FILE__, "one too far");
    EXPECT_EQ(findings_of(report), "outside at " + std::to_string(line));
    const std::string& text = report.findings.at(0).text;
    for (const std::string& part :
         {std::string("illegal read of 4 bytes, offset 256 of 256 bytes of shared memory "
                      "of block (1,0,0), at "),
          "cluster_test.cu:" + std::to_string(line),
          std::string("block (0,0,0), thread (63,0,0)")})
        EXPECT_TRUE(text.find(part) != std::string::npos) << text;
}

/// A fault ends block 1 after it has looked into block 0.
__global__ void fault_kernel(int* target) {
    Row& own = gpu::shared_memory<Row>();
    own.values[threadIdx.x] = 1;
    meet_neighbours();
    if (blockIdx.x == 1) mine(target) = neighbours_row(own)[threadIdx.x];
    if (blockIdx.x == 1) ptx::map_shared_rank(own.values, 9);
    meet_neighbours();
}

TEST(ObserveCluster, AFaultElsewhereBlamesNoReadOfANeighboursRow) {
    DeviceArray<int> target(2 * kThreads);
    cuda_on_cpu::observe::start();
    EXPECT_THROW(gpu::launch("kernel", fault_kernel, pair(), target.data()),
                 gpu::DeviceError);
    cuda_on_cpu::observe::stop();
    EXPECT_EQ(findings_of(cuda_on_cpu::observe::report()), "");
}

// --------------------------------------------------------------------------------- races
enum class Without { nothing, first, second };

/// Each block reads its neighbour's row, and then writes its own anew.
template <Without Missing>
__global__ void exchange_kernel(int* target) {
    Row& own = gpu::shared_memory<Row>();
    const int t = int(threadIdx.x);
    own.values[t] = t;  // own row
    const int* row = neighbours_row(own);
    if (Missing != Without::first) meet_neighbours();
    mine(target) = row[t];  // neighbour's row
    if (Missing != Without::second) meet_neighbours();
    own.values[t] = -t;  // anew
    meet_neighbours();
}

TEST(ObserveCluster, OnlyTheClustersBarrierOrdersItsBlocks) {
    DeviceArray<int> target(2 * kThreads);
    EXPECT_EQ(races(exchange_kernel<Without::nothing>, target.data()), "");
    EXPECT_EQ(races(exchange_kernel<Without::second>, target.data()),
              race("neighbour's row", "anew"));
    EXPECT_EQ(races(exchange_kernel<Without::first>, target.data()),
              race("own row", "neighbour's row"));
    const std::string text = cuda_on_cpu::observe::report().findings.at(0).text;
    for (const char* part :
         {"race on 4 bytes, offset ", " of shared memory", "write at ", "read at ",
          " by block (0,0,0), thread (", " by block (1,0,0), thread (",
          ": the cluster's barrier would order them, or an mbarrier"})
        EXPECT_TRUE(text.find(part) != std::string::npos) << text;
}

/// Each block writes its neighbour's row, and reads its own.
template <bool Waits>
__global__ void send_kernel(int* target) {
    Row& own = gpu::shared_memory<Row>();
    const int t = int(threadIdx.x);
    neighbours_row(own)[t] = t;  // sent
    if (Waits)
        meet_neighbours();
    else
        __syncthreads();
    mine(target) = own.values[t];  // received
    meet_neighbours();
}

TEST(ObserveCluster, WhatANeighbourSendsIsWritten) {
    DeviceArray<int> target(2 * kThreads);
    EXPECT_EQ(races(send_kernel<true>, target.data()), "");
    EXPECT_EQ(races(send_kernel<false>, target.data()), race("sent", "received"));
}

__global__ void unwritten_kernel(int* target) {
    Row& own = gpu::shared_memory<Row>();
    const int t = int(threadIdx.x);
    if (blockIdx.x == 0 || t > 0) own.values[t] = t;
    meet_neighbours();
    mine(target) = neighbours_row(own)[t];  // unwritten
    meet_neighbours();
}

TEST(ObserveCluster, AReadOfWhatNoBlockHasWrittenIsFound) {
    DeviceArray<int> target(2 * kThreads);
    EXPECT_EQ(races(unwritten_kernel, target.data()),
              "unwritten at " + std::to_string(marked_line(__FILE__, "unwritten")));
    const std::string text = cuda_on_cpu::observe::report().findings.at(0).text;
    EXPECT_TRUE(text.find("offset 0 of shared memory of block (1,0,0), at ") !=
                std::string::npos)
        << text;
}

/// Block 1 fills its row and says so at block 0's mbarrier.
template <bool Waits>
__global__ void arrival_kernel(int* target) {
    Row& own = gpu::shared_memory<Row>();
    const int t = int(threadIdx.x);
    if (t == 0) {
        ptx::mbarrier_init(&own.barrier, kThreads);
        ptx::fence_mbarrier_init();
    }
    meet_neighbours();
    if (blockIdx.x == 1) {
        own.values[t] = t;  // filled
        ptx::mbarrier_arrive_remote(&own.barrier, 0);
    } else {
        if (Waits) ptx::mbarrier_wait(&own.barrier, 0);
        target[t] = neighbours_row(own)[kThreads - 1 - t];  // fetched
    }
    meet_neighbours();
}

TEST(ObserveCluster, AnArrivalAtANeighboursMbarrierOrders) {
    DeviceArray<int> target(kThreads);
    EXPECT_EQ(races(arrival_kernel<true>, target.data()), "");
    EXPECT_EQ(races(arrival_kernel<false>, target.data()), race("filled", "fetched"));
}

/// Thread 0 of block 1 hands a value over by a flag in global memory.
template <bool Release>
__global__ void flag_kernel(int* target, std::uint32_t* flag) {
    Row& own = gpu::shared_memory<Row>();
    if (threadIdx.x == 0) {
        if (blockIdx.x == 1) {
            own.values[0] = 7;  // to hand over
            if (Release)
                ptx::st_release_gpu(flag, 1);
            else
                atomicExch(flag, 1u);
        } else {
            while (ptx::ld_acquire_gpu(flag) == 0) {
            }
            *target = *neighbours_row(own);  // handed over
        }
    }
    meet_neighbours();
}

TEST(ObserveCluster, ReleaseAndAcquireOrder) {
    DeviceArray<int> target(1);
    const auto run = [&](auto kernel) {
        DeviceArray<std::uint32_t> flag(std::vector<std::uint32_t>(1, 0));
        return races(kernel, target.data(), flag.data());
    };
    EXPECT_EQ(run(flag_kernel<true>), "");
    EXPECT_EQ(run(flag_kernel<false>), race("to hand over", "handed over"));
}

/// Block 1 loads a row for both blocks.
template <bool Waits>
__global__ void multicast_kernel(int* target, const int* source) {
    Row& own = gpu::shared_memory<Row>();
    std::uint64_t* const bar = &own.barrier;
    const int t = int(threadIdx.x);
    if (t == 0) {
        ptx::mbarrier_init(bar, 1);
        ptx::fence_mbarrier_init();
        ptx::mbarrier_arrive_expect_tx(bar, 256);
    }
    meet_neighbours();
    if (blockIdx.x == 1 && t == 0)
        ptx::bulk_load_multicast(own.values, source, 256, bar, 3);  // load
    if (Waits || blockIdx.x == 1) ptx::mbarrier_wait(bar, 0);
    mine(target) = own.values[t];  // loaded
    if (!Waits && blockIdx.x == 0) ptx::mbarrier_wait(bar, 0);
    meet_neighbours();
}

TEST(ObserveCluster, AMulticastIsSeenInEachBlock) {
    DeviceArray<int> target(2 * kThreads), source(std::vector<int>(kThreads, 1));
    EXPECT_EQ(races(multicast_kernel<true>, target.data(), source.data()), "");
    EXPECT_EQ(races(multicast_kernel<false>, target.data(), source.data()),
              race("load", "loaded"));
}

}  // namespace
}  // namespace moe::test
