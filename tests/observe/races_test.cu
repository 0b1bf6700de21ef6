// races_test.cu: planted races inside a launch are found, each at its line, and kernels
// that are right are not blamed.

#include "gpu/ptx.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

using gpu::launch;

/// What findings_of() says of a race of two marked lines.
std::string race(const std::string& first, const std::string& second) {
    return race_in(__FILE__, first, second);
}

constexpr int kThreads = 128;
struct Partial {
    float values[kThreads];
};

/// Without its barrier number `Missing`.
template <int Missing>
__global__ void average_kernel(float* target, const float* source) {
    auto& s = gpu::shared_memory<Partial>();
    const int t = int(threadIdx.x);
    s.values[t] = source[t];  // fill
    if (Missing != 1) __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
        if (t < half) s.values[t] += s.values[t + half];  // add
        if (Missing != 2) __syncthreads();
    }
    const float average = s.values[0] / kThreads;  // result
    if (Missing != 3) __syncthreads();
    s.values[t] = source[t] - average;  // reuse
    if (Missing != 4) __syncthreads();
    target[t] = s.values[kThreads - 1 - t];  // mirror
}

template <int Missing>
std::string races_without() {
    DeviceArray<float> source(std::vector<float>(kThreads, 2.0f)), target(kThreads);
    return races_of([&] {
        launch("average_kernel", average_kernel<Missing>, {1, kThreads, sizeof(Partial)},
               target.data(), source.data());
    });
}

TEST(ObserveRaces, AReductionNeedsEachOfItsBarriers) {
    EXPECT_EQ(races_without<0>(), "");
    EXPECT_EQ(races_without<1>(), race("fill", "add"));
    EXPECT_EQ(races_without<2>(), race("add", "add") + "; " + race("add", "result"));
    EXPECT_EQ(races_without<3>(), race("result", "reuse"));
    EXPECT_EQ(races_without<4>(), race("reuse", "mirror"));
}

__global__ void neighbours_kernel(float* target, const float* source) {
    auto& s = gpu::shared_memory<Partial>();
    const int t = int(threadIdx.x);
    s.values[t] = source[t];                     // own
    target[t] = t > 0 ? s.values[t - 1] : 0.0f;  // neighbour's
}

TEST(ObserveRaces, AKernelThatIsRightOnlyInTheOrderOfFibersIsFound) {
    DeviceArray<float> source(std::vector<float>(kThreads, 2.0f)), target(kThreads);
    cuda_on_cpu::observe::start({.races = true});
    launch("neighbours_kernel", neighbours_kernel, {1, kThreads, sizeof(Partial)},
           target.data(), source.data());
    cuda_on_cpu::observe::stop();
    EXPECT_EQ(target.to_host()[kThreads - 1], 2.0f);
    const Report report = cuda_on_cpu::observe::report();
    EXPECT_EQ(findings_of(report), race("own", "neighbour's"));
    const std::string& text = report.findings.at(0).text;
    for (const std::string& part :
         {std::string("race on 4 bytes, offset 0 of shared memory: read at "),
          "tests/observe/races_test.cu:" +
              std::to_string(marked_line(__FILE__, "neighbour's")) +
              " by block (0,0,0), thread (1,0,0), and write at ",
          "tests/observe/races_test.cu:" + std::to_string(marked_line(__FILE__, "own")) +
              " by block (0,0,0), thread (0,0,0)",
          std::string("__syncwarp()")})
        EXPECT_TRUE(text.find(part) != std::string::npos) << text;
}

enum class Between { nothing, shuffle, warp };
template <Between What>
__global__ void exchange_kernel(float* target) {
    auto& s = gpu::shared_memory<Partial>();
    const int t = int(threadIdx.x);
    s.values[t] = float(t);  // bring
    if (What == Between::shuffle) __shfl_sync(0xffffffffu, t, 0);
    if (What == Between::warp) __syncwarp();
    target[t] = s.values[t ^ 1];  // exchange
}

TEST(ObserveRaces, OfWarpFunctionsOnlySyncwarpOrdersMemory) {
    DeviceArray<float> target(kThreads);
    const auto run = [&](auto kernel) {
        return races_of([&] {
            launch("exchange_kernel", kernel, {1, kThreads, sizeof(Partial)},
                   target.data());
        });
    };
    EXPECT_EQ(run(exchange_kernel<Between::nothing>), race("bring", "exchange"));
    EXPECT_EQ(run(exchange_kernel<Between::shuffle>), race("bring", "exchange"));
    EXPECT_EQ(run(exchange_kernel<Between::warp>), "");
}

__global__ void partial_warp_kernel(float* target, unsigned mask) {
    auto& s = gpu::shared_memory<Partial>();
    const int t = int(threadIdx.x);
    s.values[t] = float(t);  // four lanes
    if (mask >> t & 1) __syncwarp(mask);
    if (t < 2) target[t] = s.values[3 - t];  // lanes 3 and 2
}

TEST(ObserveRaces, AWarpBarrierOrdersTheLanesOfItsMask) {
    DeviceArray<float> target(2);
    const auto run = [&](unsigned mask) {
        return races_of([&] {
            launch("partial_warp_kernel", partial_warp_kernel, {1, 32, sizeof(Partial)},
                   target.data(), mask);
        });
    };
    EXPECT_EQ(run(0xf), "");
    EXPECT_EQ(run(0x7), race("four lanes", "lanes 3 and 2"));
}

__global__ void leaving_kernel(float* target) {
    auto& s = gpu::shared_memory<Partial>();
    const int t = int(threadIdx.x);
    s.values[t] = 1.0f;  // all
    if (t >= 96) return;
    __syncthreads();
    target[t] = s.values[t + 32];  // of one that left
}

TEST(ObserveRaces, WhoLeavesBeforeABarrierIsNotOrderedByIt) {
    DeviceArray<float> target(96);
    EXPECT_EQ(races_of([&] {
                  launch("leaving_kernel", leaving_kernel, {1, 128, sizeof(Partial)},
                         target.data());
              }),
              race("all", "of one that left"));
}

__global__ void same_place_kernel(int* place) {
    if (threadIdx.x == 0) *place = 7;  // same place
}
__global__ void atomic_place_kernel(int* place, int* copy) {
    atomicMax(place, int(blockIdx.x));  // atomic
    if (copy != nullptr)
        copy[blockIdx.x * blockDim.x + threadIdx.x] = *place;  // plain read
}

TEST(ObserveRaces, BlocksAreOrderedByNothing) {
    DeviceArray<int> place(std::vector<int>(1, 0)), copy(std::vector<int>(128, 0));
    EXPECT_EQ(races_of([&] {
                  launch("same_place_kernel", same_place_kernel, {2, 32}, place.data());
              }),
              race("same place", "same place"));
    EXPECT_EQ(races_of([&] {
                  launch("atomic_place_kernel", atomic_place_kernel, {2, 64},
                         place.data(), nullptr);
              }),
              "");
    EXPECT_EQ(races_of([&] {
                  launch("atomic_place_kernel", atomic_place_kernel, {1, 64},
                         place.data(), copy.data());
              }),
              race("atomic", "plain read"));
}

template <bool Fence>
__global__ void last_block_kernel(float* sum, float* partial, unsigned* done) {
    if (threadIdx.x != 0) return;
    partial[blockIdx.x] = 1.0f;  // a part
    if (Fence) __threadfence();
    if (atomicAdd(done, 1u) + 1 < gridDim.x) return;
    if (Fence) __threadfence();
    float all = 0.0f;
    for (unsigned i = 0; i < gridDim.x; ++i) all += partial[i];  // the last block's sum
    *sum = all;
}

TEST(ObserveRaces, AFenceAndAnAtomicOrderBlocks) {
    DeviceArray<float> sum(1), partial(8);
    const auto run = [&](auto kernel) {
        DeviceArray<unsigned> done(std::vector<unsigned>(1, 0));
        return races_of([&] {
            launch("last_block_kernel", kernel, {8, 32}, sum.data(), partial.data(),
                   done.data());
        });
    };
    EXPECT_EQ(run(last_block_kernel<true>), "");
    EXPECT_EQ(run(last_block_kernel<false>), race("a part", "the last block's sum"));
}

template <bool Release>
__global__ void hand_over_kernel(float* value, std::uint32_t* flag) {
    if (threadIdx.x != 0) return;
    if (blockIdx.x == 0) {
        *value = 3.0f;  // to hand over
        if (Release)
            gpu::ptx::st_release_gpu(flag, 1);
        else
            atomicExch(flag, 1u);
    } else {
        while (gpu::ptx::ld_acquire_gpu(flag) == 0) {
        }
        *value += 1.0f;  // handed over
    }
}

TEST(ObserveRaces, ReleaseAndAcquireOrderBlocks) {
    DeviceArray<float> value(1);
    const auto run = [&](auto kernel) {
        DeviceArray<std::uint32_t> flag(std::vector<std::uint32_t>(1, 0));
        return races_of([&] {
            launch("hand_over_kernel", kernel, {2, 32}, value.data(), flag.data());
        });
    };
    EXPECT_EQ(run(hand_over_kernel<true>), "");
    EXPECT_EQ(run(hand_over_kernel<false>), race("to hand over", "handed over"));
}

__global__ void bytes_kernel(std::uint8_t* bytes, float* whole) {
    bytes[threadIdx.x] = std::uint8_t(threadIdx.x);  // bytes
    if (whole != nullptr && threadIdx.x == 40)
        *reinterpret_cast<float*>(bytes + 40) = 1.0f;  // four bytes
}

TEST(ObserveRaces, NeighbouringBytesAreNotOneAnother) {
    DeviceArray<std::uint8_t> bytes(128);
    DeviceArray<float> whole(1);
    const auto run = [&](float* other) {
        return races_of([&] {
            launch("bytes_kernel", bytes_kernel, {1, 128}, bytes.data(), other);
        });
    };
    EXPECT_EQ(run(nullptr), "");
    EXPECT_NE(run(whole.data()), "");
}

__global__ void unwritten_kernel(float* target, const float* source, int count) {
    auto& s = gpu::shared_memory<Partial>();
    const int t = int(threadIdx.x);
    if (t < count) s.values[t] = 1.0f;
    __syncthreads();
    float value = s.values[t];                  // shared read
    if (source != nullptr) value += source[t];  // global read
    target[t] = value;
}

TEST(ObserveRaces, ReadsOfWhatNobodyHasWrittenAreFound) {
    const auto unwritten = [](const std::string& mark) {
        return "unwritten at " + std::to_string(marked_line(__FILE__, mark));
    };
    EXPECT_EQ(races_of([] {
                  DeviceArray<float> target(32);
                  launch("unwritten_kernel", unwritten_kernel, {1, 32, sizeof(Partial)},
                         target.data(), nullptr, 32);
                  launch("unwritten_kernel", unwritten_kernel, {1, 32, sizeof(Partial)},
                         target.data(), target.data(), 32);
              }),
              "");
    // Shared memory of the block before is not this block's
    EXPECT_EQ(races_of([] {
                  DeviceArray<float> target(32);
                  launch("unwritten_kernel", unwritten_kernel, {1, 32, sizeof(Partial)},
                         target.data(), nullptr, 32);
                  launch("unwritten_kernel", unwritten_kernel, {1, 32, sizeof(Partial)},
                         target.data(), nullptr, 31);
              }),
              unwritten("shared read"));
    EXPECT_EQ(races_of([] {
                  DeviceArray<float> target(32), source(32);
                  cudaMemset(source.data(), 0, 31 * sizeof(float));
                  launch("unwritten_kernel", unwritten_kernel, {1, 32, sizeof(Partial)},
                         target.data(), source.data(), 32);
              }),
              unwritten("global read"));
    const Report report = cuda_on_cpu::observe::report();
    EXPECT_EQ(report.findings.at(0).times, 1);
    EXPECT_TRUE(report.findings.at(0).text.find("124 bytes into the ") !=
                std::string::npos)
        << report.findings.at(0).text;
}

}  // namespace
}  // namespace moe::test
