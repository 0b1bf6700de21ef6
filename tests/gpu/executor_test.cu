// executor_test.cu: what the CPU executor finds that hardware would not tell: bugs
// planted on purpose, each with the words that must name them. Executor only.

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <memory>
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

#if !defined(CUDA_ON_CPU_ASAN) && !defined(CUDA_ON_CPU_TSAN)  // they report first
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

__global__ void read_kernel(int* target, const int* values, int index) {
    target[0] = values[index];
}
struct Holder {
    int* values;  // inside a struct the launch does not see a pointer
};
__global__ void write_held_kernel(Holder holder, int index) {
    holder.values[index] = 1;
}

TEST(Executor, AnAccessOutsideAnAllocationNamesItAndTheNextLaunchWorks) {
    DeviceArray<int> target(1);
    for (int count : {64, 1024, 4096}) {  // these end where the forbidden pages begin
        DeviceArray<int> values(count);
        const std::string name =
            "a device allocation of " + std::to_string(4 * count) + " bytes";
        struct Case {
            int index;
            std::string place;
        };
        std::vector<Case> cases = {{count, "0 bytes past the end of "},
                                   {count + 299, "1196 bytes past the end of "},
                                   {-1024, "4096 bytes before the start of "}};
        if (count % 1024 == 0) cases.push_back({-1, "4 bytes before the start of "});
        for (const Case& c : cases) {
            for (const std::string& text :
                 {fault(write_kernel, {2, 64}, values.data(), c.index),
                  fault(read_kernel, {1, 1}, target.data(), values.data(), c.index)}) {
                EXPECT_SAYS(text, "illegal access to address 0x");
                EXPECT_SAYS(text, ", " + c.place + name);
                EXPECT_SAYS(text, "executor_test.cu:");
                EXPECT_SAYS(text, "in kernel planted, block (");
            }
            EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), count - 1), "");
        }
    }
}

TEST(Executor, AWriteBetweenAnAllocationAndItsGuardIsFoundAfterTheLaunch) {
    DeviceArray<int> target(1), values(75);
    const auto write_at = [&](int index) {
        return fault(write_kernel, {1, 64}, values.data(), index);
    };
    for (const auto& [index, place] : {std::pair(75, "0 bytes past the end of "),
                                       {-1, "4 bytes before the start of "},
                                       {-300, "1200 bytes before the start of "}}) {
        const std::string text = write_at(index);
        EXPECT_SAYS(text, "kernel planted: a write ");
        EXPECT_SAYS(text, place + std::string("a device allocation of 300 bytes"));
        EXPECT_SAYS(text, "`./moe test --asan` finds the line");
        EXPECT_EQ(write_at(74), "");
    }
    EXPECT_SAYS(write_at(75 + 299), "1196 bytes past the end of a device allocation");

    // What is read there is NaN, and not what fresh memory holds.
    EXPECT_EQ(fault(read_kernel, {1, 1}, target.data(), values.data(), 75), "");
    EXPECT_EQ(target.to_host()[0], 0x7FFE7FFE);
}

TEST(Executor, AWriteOutsideKernelsIsFoundWhenTheAllocationIsFreed) {
    void* pointer = nullptr;
    ASSERT_EQ(cudaMalloc(&pointer, 300), cudaSuccess);
    static_cast<char*>(pointer)[301] = 1;
    EXPECT_EQ(cudaFree(pointer), cudaErrorIllegalAddress);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorIllegalAddress)),
                "cudaFree: since its last check, a write 1 byte past the end of");
    EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
    DeviceArray<int> values(4);
    EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), 0), "");
}

TEST(Executor, UseAfterFreeNamesTheAllocationThatWas) {
    int* kept = nullptr;
    ASSERT_EQ(cudaMalloc(&kept, 300), cudaSuccess);
    ASSERT_EQ(cudaFree(kept), cudaSuccess);
    DeviceArray<int> values(75);  // of the same size: not in the same place
    const std::string was = "a device allocation of 300 bytes, freed before";

    const std::string written = fault(write_held_kernel, {1, 1}, Holder{kept}, 5);
    EXPECT_SAYS(written, ", 20 bytes into " + was);
    EXPECT_SAYS(written, "in kernel planted, block (0,0,0), thread (0,0,0)");
    EXPECT_SAYS(fault(write_kernel, {1, 64}, kept, 0), "is 0 bytes into " + was);
    EXPECT_EQ(cudaMemcpy(values.data(), kept, 300, cudaMemcpyDefault),
              cudaErrorInvalidValue);
    EXPECT_SAYS(std::string(cudaGetErrorString(cudaErrorInvalidValue)),
                "is 0 bytes into " + was);
    EXPECT_EQ(cudaFree(kept), cudaErrorInvalidValue);
    cudaGetLastError();
    EXPECT_EQ(fault(write_kernel, {1, 64}, values.data(), 0), "");
}

TEST(Executor, ThousandsOfAllocationsLive) {
    std::vector<std::unique_ptr<DeviceArray<int>>> arrays;
    for (int i = 0; i < 5000; ++i)
        arrays.push_back(std::make_unique<DeviceArray<int>>(1 + i % 63));
    for (int i : {0, 2345, 4999}) {
        const int count = int(arrays[i]->size());
        EXPECT_EQ(fault(write_kernel, {1, 64}, arrays[i]->data(), count - 1), "");
        const std::string place = " 0 bytes past the end of a device allocation of " +
                                  std::to_string(4 * count) + " bytes";
        EXPECT_SAYS(fault(write_kernel, {1, 64}, arrays[i]->data(), count), place);
        EXPECT_SAYS(fault(write_held_kernel, {1, 1}, Holder{arrays[i]->data()}, count),
                    place);
    }
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
