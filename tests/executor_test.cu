// executor_test.cu: what the CPU executor finds that hardware would not tell: bugs
// planted on purpose, each with the words that must name them. Executor only.

#include <gtest/gtest.h>

#include <set>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

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

/// What the launch says; empty when it goes well.
template <typename... Parameters, typename... Arguments>
std::string fault(void (*kernel)(Parameters...), gpu::LaunchConfig config,
                  Arguments... arguments) {
    try {
        launch("planted", kernel, config, arguments...);
    } catch (const gpu::DeviceError& error) {
        return error.what();
    }
    return "";
}

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << text

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
        EXPECT_SAYS(fault(odd_width_kernel, {1, 32}, result.data()),
                    "width = 24: must be a power of two");
    }
}

// -------------------------------------------------------------------------------- memory
__global__ void write_kernel(int* values, int index) {
    if (threadIdx.x == 33) values[index] = 1;
}
__global__ void too_much_shared_kernel(int* values) {
    values[0] = gpu::shared_memory<ReverseSmem>().values[0];
}

TEST(Executor, AHostPointerIsRefusedWhereADevicePointerBelongs) {
    std::vector<int> host(4);
    DeviceArray<int> device(4);
    EXPECT_SAYS(fault(write_kernel, {1, 64}, host.data(), 0), "kernel argument 0 = 0x");
    EXPECT_SAYS(fault(write_kernel, {1, 64}, host.data(), 0), "is host memory");
    EXPECT_EQ(cudaMemcpy(host.data(), device.data(), 16, cudaMemcpyHostToDevice),
              cudaErrorInvalidValue);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorInvalidValue)),
                "cudaMemcpy: dst = ");
    EXPECT_EQ(cudaMemcpy(device.data(), host.data(), 17, cudaMemcpyHostToDevice),
              cudaErrorInvalidValue);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorInvalidValue)),
                "17 bytes reach past its allocation");
    EXPECT_EQ(cudaFree(host.data()), cudaErrorInvalidValue);
    cudaGetLastError();
}

TEST(Executor, SharedMemoryBeyondTheLaunchIsAnError) {
    DeviceArray<int> values(1);
    EXPECT_SAYS(fault(too_much_shared_kernel, {1, 1, 255}, values.data()),
                "uses 256 bytes of shared memory, but its launch gave 255");
}

#ifndef __SANITIZE_ADDRESS__  // its own report ends the program
__global__ void null_kernel(int* values) {
    if (threadIdx.x == 33) *values = 1;
}
__global__ void overflow_kernel(int* result) {
    volatile char frame[400'000];  // a fiber has 128 KiB
    frame[threadIdx.x] = 1;
    *result = frame[0];
}
__global__ void divide_kernel(int* values, int divisor) {
    values[0] = 7 / divisor;
}

TEST(Executor, AFaultNamesKernelBlockAndThreadAndTheNextLaunchWorks) {
    DeviceArray<int> values(std::vector<int>{0});
    EXPECT_SAYS(fault(null_kernel, {2, 64}, nullptr), "illegal access to address");
    EXPECT_SAYS(fault(null_kernel, {2, 64}, nullptr), "thread (33,0,0)");
    EXPECT_SAYS(fault(overflow_kernel, {1, 1}, values.data()), "stack overflow");
    EXPECT_SAYS(fault(divide_kernel, {1, 1}, values.data(), 0), "division by zero");
    EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), 0), "");
    EXPECT_EQ(values.to_host()[0], 1);
}
#endif

__global__ void trap_kernel(const int* values) {
    if (threadIdx.x == 5 && values[0] != 0) __trap();
}
TEST(Executor, ATrapEndsTheLaunch) {
    DeviceArray<int> values(std::vector<int>{1});
    EXPECT_SAYS(fault(trap_kernel, {1, 32}, values.data()), "__trap(), at ");
    EXPECT_SAYS(fault(trap_kernel, {1, 32}, values.data()), "thread (5,0,0)");
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

__global__ void nest_kernel() {
    cudaLaunchConfig_t config;
    config.gridDim = config.blockDim = 1;
    if (cudaLaunchKernelEx(&config, blocks_kernel, nullptr) == cudaSuccess) __trap();
}
TEST(Executor, AKernelCannotLaunchAnother) {
    EXPECT_EQ(fault(nest_kernel, {1, 1}), "");
}

TEST(Executor, UnsupportedLaunchAttributesAreRefused) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    cudaLaunchConfig_t config;
    config.attrs = &attribute;
    config.numAttrs = 1;
    EXPECT_EQ(cudaLaunchKernelEx(&config, divergent_kernel), cudaErrorNotSupported);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorNotSupported)),
                "launch attribute = 4");
    cudaGetLastError();
}

}  // namespace
}  // namespace moe::test
