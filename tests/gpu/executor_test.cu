// executor_test.cu: what the CPU executor finds that hardware would not tell: bugs
// planted on purpose, each with the words that must name them. Executor only.

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <set>

#include "tests/conformance/device_array.h"
#include "tests/gpu/planted.h"

namespace moe::test {
namespace {

using cuda_on_cpu::Schedule;
using gpu::launch;

/// Runs with a schedule, then as before.
class ScheduleGuard {
  public:
    explicit ScheduleGuard(const std::string& text) : before_(cuda_on_cpu::options()) {
        EXPECT_TRUE(cuda_on_cpu::parse_schedule(text, cuda_on_cpu::options().schedule));
    }
    ~ScheduleGuard() { cuda_on_cpu::options() = before_; }

  private:
    cuda_on_cpu::Options before_;
};

const char* const kSchedules[] = {"forward",  "reverse",    "random:1",   "random:2",
                                  "random:3", "priority:1", "priority:2", "priority:3"};

// ------------------------------------------------------------------------- barriers
__global__ void divergent_kernel() {
    if (threadIdx.x < 7)
        __syncthreads();
    else
        __syncthreads();
}

__global__ void deadlock_kernel() {
    if (threadIdx.x < 5) __syncwarp(0xffu);
    __syncthreads();
}

TEST(Executor, NamesBothPlacesOfADivergentBarrier) {
    for (const char* schedule : kSchedules) {
        const ScheduleGuard guard(schedule);
        const std::string text = fault(divergent_kernel, {3, 33});
        EXPECT_SAYS(text, "divergent barrier: other threads wait at");
        EXPECT_SAYS(text, "executor_test.cu:");
        EXPECT_SAYS(text, "kernel planted, block (");
        EXPECT_SAYS(text, std::string("schedule ") + schedule);
    }
}

TEST(Executor, ReportsADeadlockInsteadOfHanging) {
    for (const char* schedule : kSchedules) {
        const ScheduleGuard guard(schedule);
        const std::string text = fault(deadlock_kernel, {1, 40});
        EXPECT_SAYS(text, "deadlock in kernel planted");
        EXPECT_SAYS(text, "warp 0: 5 threads at __syncwarp");
        EXPECT_SAYS(text, "warp 1: 8 threads at __syncthreads");
    }
}

/// votes[0] = how many vote, votes[1], votes[2]: all, any; of those that have not exited.
__global__ void vote_kernel(int* votes, unsigned leave, unsigned no) {
    if (threadIdx.x < leave) return;
    const int yes = threadIdx.x >= leave + no;
    const int count = __syncthreads_count(yes), all = __syncthreads_and(yes),
              any = __syncthreads_or(yes);
    if (threadIdx.x != blockDim.x - 1) return;
    votes[0] = count, votes[1] = all != 0, votes[2] = any != 0;
}

TEST(Executor, OnlyThreadsThatHaveNotExitedVote) {
    DeviceArray<int> votes(3);
    testing::internal::CaptureStderr();  // each launch warns
    for (const char* schedule : kSchedules) {
        const ScheduleGuard guard(schedule);
        const auto vote = [&](unsigned leave, unsigned no) {
            launch("vote", vote_kernel, {1, 48}, votes.data(), leave, no);
            return votes.to_host();
        };
        EXPECT_EQ(vote(16, 0), (std::vector<int>{32, 1, 1})) << schedule;
        EXPECT_EQ(vote(16, 1), (std::vector<int>{31, 0, 1})) << schedule;
        EXPECT_EQ(vote(0, 48), (std::vector<int>{0, 0, 0})) << schedule;
    }
    const std::string warnings = testing::internal::GetCapturedStderr();
    EXPECT_SAYS(warnings,
                "kernel vote: 16 of 48 threads of a block left before the barrier");
}

struct ReverseSmem {
    int values[64];
};
template <bool with_barrier>
__global__ void reverse_kernel(int* values) {
    auto& s = gpu::shared_memory<ReverseSmem>();
    const int t = int(threadIdx.x), n = int(blockDim.x);
    s.values[t] = values[t];
    if (with_barrier) __syncthreads();
    values[t] = s.values[n - 1 - t];
}

TEST(Executor, AMissingBarrierReadsPoisonInEverySchedule) {
    std::vector<int> start(64), reversed(64);
    for (int i = 0; i < 64; ++i) reversed[63 - i] = start[i] = i;
    for (const char* schedule : kSchedules) {
        const ScheduleGuard guard(schedule);
        DeviceArray<int> right(start), wrong(start);
        launch("reverse", reverse_kernel<true>, {1, 64, sizeof(ReverseSmem)},
               right.data());
        EXPECT_EQ(right.to_host(), reversed);
        launch("reverse", reverse_kernel<false>, {1, 64, sizeof(ReverseSmem)},
               wrong.data());
        EXPECT_NE(wrong.to_host(), reversed) << schedule;
    }
}

// ------------------------------------------------------------------------ warp
// operations
__global__ void foreign_mask_kernel() {
    __syncwarp(0xfffffffeu);  // lane 0 is not in its own mask
}
__global__ void outside_mask_kernel(int* result) {
    if (threadIdx.x < 16) *result = __shfl_down_sync(0xffffu, int(threadIdx.x), 8);
    __syncwarp();  // the others stay, so that they are known to be outside
}
__global__ void exited_lane_kernel(int* result) {
    if (threadIdx.x >= 20) return;
    *result = __shfl_sync(0xffffffffu, int(threadIdx.x), 25);
}
__global__ void disagreeing_kernel(int* result) {
    *result = threadIdx.x % 2 ? __shfl_sync(0xffffffffu, 1, 0)
                              : __shfl_xor_sync(0xffffffffu, 1, 1);
}
__global__ void two_masks_kernel() {
    __syncwarp(threadIdx.x < 16 ? 0xffffffffu : 0xfffffffeu);
}
__global__ void two_places_kernel(int* result) {
    if (threadIdx.x % 2)
        *result = __shfl_sync(0xffffffffu, 1, 0);
    else
        *result = __shfl_sync(0xffffffffu, 1, 0);
}
__global__ void odd_width_kernel(int* result) {
    *result = __shfl_sync(0xffffffffu, 1, 0, 24);
}

TEST(Executor, WarpOperationsThatHardwareLeavesUndefinedAreErrors) {
    DeviceArray<int> result(1);
    for (const char* schedule : kSchedules) {
        const ScheduleGuard guard(schedule);
        EXPECT_SAYS(fault(foreign_mask_kernel, {1, 32}), "lacks the calling lane 0");
        EXPECT_SAYS(fault(outside_mask_kernel, {1, 32}, result.data()),
                    "which is not in the mask 0x0000ffff");
        EXPECT_SAYS(fault(exited_lane_kernel, {1, 32}, result.data()),
                    "reads lane 25, which has exited");
        EXPECT_SAYS(fault(disagreeing_kernel, {1, 32}, result.data()), "waits at __shfl");
        EXPECT_SAYS(fault(two_masks_kernel, {1, 32}), "__syncwarp with mask 0xfffffff");
        EXPECT_SAYS(fault(two_places_kernel, {1, 32}, result.data()),
                    "waits at __shfl_sync with mask 0xffffffff");
        EXPECT_SAYS(fault(odd_width_kernel, {1, 32}, result.data()),
                    "width = 24: must be a power of two");
    }
}

// ----------------------------------------------------------------------------- schedules
__global__ void order_kernel(int* order, int* next) {
    for (int round = 0; round < 3; ++round) {
        order[atomicAdd(next, 1)] = int(threadIdx.x);
        __syncthreads();
    }
}

TEST(Executor, SchedulesDifferAndRepeat) {
    const auto order_of = [](const char* schedule) {
        const ScheduleGuard guard(schedule);
        DeviceArray<int> order(3 * 45), next(std::vector<int>{0});
        launch("order", order_kernel, {1, 45}, order.data(), next.data());
        return order.to_host();
    };
    std::set<std::vector<int>> different;
    for (const char* schedule : kSchedules) {
        const auto order = order_of(schedule);
        EXPECT_EQ(order, order_of(schedule)) << schedule;
        different.insert(order);
    }
    EXPECT_EQ(different.size(), std::size(kSchedules));
    EXPECT_EQ(order_of("forward")[44], 44);
    EXPECT_EQ(order_of("reverse")[44], 0);
}

TEST(Executor, ReadsScheduleNames) {
    Schedule schedule;
    for (const char* name : kSchedules) {
        ASSERT_TRUE(cuda_on_cpu::parse_schedule(name, schedule));
        EXPECT_EQ(to_string(schedule), name);
    }
    for (const char* name : {"", "forwards", "random", "random:", "random:-1", "random:x",
                             "forward:1", "priority:99999999999999999999"})
        EXPECT_FALSE(cuda_on_cpu::parse_schedule(name, schedule)) << name;
}

__global__ void blocks_kernel(int* counts) {
    atomicAdd(&counts[blockIdx.x], 1);
}
TEST(Executor, EveryScheduleRunsEveryBlockOnce) {
    for (const char* schedule : kSchedules)
        for (int blocks : {1, 2, 17, 64}) {
            const ScheduleGuard guard(schedule);
            DeviceArray<int> counts(std::vector<int>(blocks, 0));
            launch("blocks", blocks_kernel, {unsigned(blocks), 1}, counts.data());
            EXPECT_EQ(counts.to_host(), std::vector<int>(blocks, 1)) << schedule;
        }
}

TEST(Executor, AFaultOutsideOfKernelsIsForWhomItWasForBefore) {
    EXPECT_EXIT(
        {
            signal(SIGSEGV, [](int) { _exit(3); });
            DeviceArray<int> counts(std::vector<int>(1, 0));
            launch("blocks", blocks_kernel, {1, 1}, counts.data());
            volatile int* nowhere = nullptr;
            *nowhere = 1;
        },
        testing::ExitedWithCode(3), "");
}

__global__ void nest_kernel() {
    cudaLaunchConfig_t config;
    config.gridDim = config.blockDim = 1;
    if (cudaLaunchKernelEx(&config, blocks_kernel, nullptr) == cudaSuccess) __trap();
}
TEST(Executor, AKernelCannotLaunchAnother) {
    EXPECT_EQ(fault(nest_kernel, {1, 1}), "");
    cudaGetLastError();  // what it was told, lest the next test hear it
}

TEST(Executor, UnsupportedLaunchAttributesAreRefused) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    cudaLaunchConfig_t config;
    config.attrs = &attribute;
    config.numAttrs = 1;
    EXPECT_EQ(cudaLaunchKernelEx(&config, divergent_kernel), cudaErrorNotSupported);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorNotSupported)),
                "launch attribute = 2");
    cudaGetLastError();
}

}  // namespace
}  // namespace moe::test
