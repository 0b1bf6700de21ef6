// mbarrier_test.cu: phases of mbarriers, and named barriers.

#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;

struct RingSmem {
    std::uint64_t full[3], empty[3];
    int values[3];
};

/// One warp produces `rounds` numbers through a ring of three stages, which the others
/// consume; result[t] is what thread t has added up.
__global__ void ring_kernel(int* result, int rounds) {
    auto& s = gpu::shared_memory<RingSmem>();
    const int t = int(threadIdx.x), consumers = int(blockDim.x) - 32;
    if (t == 0) {
        for (int stage = 0; stage < 3; ++stage) {
            ptx::mbarrier_init(&s.full[stage], 1);
            ptx::mbarrier_init(&s.empty[stage], consumers);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    if (t < 32) {
        if (t != 7) return;  // one thread of the warp is enough
        for (int round = 0; round < rounds; ++round) {
            const int stage = round % 3, use = round / 3;
            ptx::mbarrier_wait(&s.empty[stage], (use & 1) ^ 1);
            s.values[stage] = round * round;
            ptx::mbarrier_arrive(&s.full[stage]);
        }
        return;
    }
    int sum = 0;
    for (int round = 0; round < rounds; ++round) {
        const int stage = round % 3, use = round / 3;
        ptx::mbarrier_wait(&s.full[stage], use & 1);
        sum += s.values[stage] * (t - 31);
        ptx::mbarrier_arrive(&s.empty[stage]);
    }
    result[t - 32] = sum;
}

TEST(ConformanceMbarrier, ARingHandsEveryValueToEveryConsumer) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        for (int rounds : {1, 3, 4, 13}) {
            DeviceArray<int> result(69);
            launch("ring_kernel", ring_kernel, {2, 32 + 69, sizeof(RingSmem)},
                   result.data(), rounds);
            int sum = 0;
            for (int round = 0; round < rounds; ++round) sum += round * round;
            const auto got = result.to_host();
            for (int t = 0; t < 69; ++t) EXPECT_EQ(got[t], sum * (t + 1)) << rounds;
        }
    });
}

struct ParitySmem {
    std::uint64_t barrier;
};

/// Bit p of seen[i]: after i phases the phase of parity p had completed.
__global__ void parity_kernel(int* seen) {
    auto& s = gpu::shared_memory<ParitySmem>();
    if (threadIdx.x != 0) return;
    ptx::mbarrier_init(&s.barrier, 3);
    for (int phase = 0; phase < 6; ++phase) {
        seen[2 * phase] = ptx::mbarrier_test_wait(&s.barrier, 0) |
                          ptx::mbarrier_test_wait(&s.barrier, 1) << 1;
        ptx::mbarrier_arrive(&s.barrier, 2);  // two of three: nothing changes
        seen[2 * phase + 1] = ptx::mbarrier_test_wait(&s.barrier, 0) |
                              ptx::mbarrier_test_wait(&s.barrier, 1) << 1;
        ptx::mbarrier_arrive(&s.barrier);
    }
    ptx::mbarrier_invalidate(&s.barrier);
}

TEST(ConformanceMbarrier, ThePhaseOfAParityCompletesByCount) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        DeviceArray<int> seen(12);
        launch("parity_kernel", parity_kernel, {1, 32, sizeof(ParitySmem)}, seen.data());
        const auto got = seen.to_host();
        for (int i = 0; i < 12; ++i) EXPECT_EQ(got[i], i / 2 % 2 == 0 ? 2 : 1) << i;
    });
}

struct HandSmem {
    int values[128];
};

/// Warps 0 and 1 write, warps 2 and 3 read, through barriers of 128 threads on which one
/// half only arrives.
__global__ void named_kernel(int* result) {
    auto& s = gpu::shared_memory<HandSmem>();
    const int t = int(threadIdx.x);
    for (int round = 0; round < 5; ++round) {
        if (t < 64) {
            if (round > 0) ptx::named_barrier_sync(2, 128);  // they have read
            s.values[t] = 100 * round + t;
            ptx::named_barrier_arrive(1, 128);
        } else {
            ptx::named_barrier_sync(1, 128);
            result[round * 64 + t - 64] = s.values[127 - t];
            if (round < 4) ptx::named_barrier_arrive(2, 128);
        }
    }
}

TEST(ConformanceMbarrier, NamedBarriersHandOverBetweenWarps) {
    in_every_mode([] {
        DeviceArray<int> result(5 * 64);
        launch("named_kernel", named_kernel, {1, 128, sizeof(HandSmem)}, result.data());
        const auto got = result.to_host();
        for (int i = 0; i < 5 * 64; ++i) EXPECT_EQ(got[i], 100 * (i / 64) + 63 - i % 64);
    });
}

__global__ void __launch_bounds__(256, 1) registers_kernel(int* elected) {
    const int t = int(threadIdx.x);
    if (t < 128)
        ptx::setmaxnreg_dec<40>();
    else
        ptx::setmaxnreg_inc<216>();
    if (ptx::elect_one()) atomicAdd(&elected[t / 32], 1);
    ptx::griddep_launch();
    ptx::griddep_wait();
}

TEST(ConformanceMbarrier, OneLaneOfEachWarpIsElectedAndRegistersMove) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        DeviceArray<int> elected(std::vector<int>(8, 0));
        launch("registers_kernel", registers_kernel, {1, 256}, elected.data());
        EXPECT_EQ(elected.to_host(), std::vector<int>(8, 1));
    });
}

}  // namespace
}  // namespace moe::test
