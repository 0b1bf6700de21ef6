// ptx_test.cu: gpu/ptx.h, one function per instruction.

#include "gpu/ptx.h"

#include <gtest/gtest.h>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;

/// The last warp hands numbers to the first, one at a time, through one word of data and
/// two flags. Whoever waits gives up after two seconds.
template <bool system>
__global__ void hand_over_kernel(std::uint32_t* sums, std::uint32_t* word,
                                 std::uint32_t* full, std::uint32_t* empty) {
    const auto wait_for = [](const std::uint32_t* flag, std::uint32_t value) {
        const std::uint64_t deadline = ptx::globaltimer() + 2'000'000'000;
        while ((system ? ptx::ld_acquire_sys(flag) : ptx::ld_acquire_gpu(flag)) != value)
            if (ptx::globaltimer() > deadline) __trap();
    };
    const auto raise = [](std::uint32_t* flag, std::uint32_t value) {
        system ? ptx::st_release_sys(flag, value) : ptx::st_release_gpu(flag, value);
    };
    constexpr std::uint32_t kRounds = 7;
    if (threadIdx.x == 64)
        for (std::uint32_t round = 1; round <= kRounds; ++round) {
            *word = round * round;
            raise(full, round);
            wait_for(empty, round);
        }
    if (threadIdx.x == 0) {
        std::uint32_t sum = 0;
        for (std::uint32_t round = 1; round <= kRounds; ++round) {
            wait_for(full, round);
            sum += *static_cast<volatile std::uint32_t*>(word);
            raise(empty, round);
        }
        sums[0] = sum;
    }
}

TEST(Ptx, ReleaseAndAcquireHandDataOver) {
    for (bool system : {false, true}) {
        DeviceArray<std::uint32_t> sums(1), word(1);
        DeviceArray<std::uint32_t> full(std::vector<std::uint32_t>{0});
        DeviceArray<std::uint32_t> empty(std::vector<std::uint32_t>{0});
        gpu::launch("hand_over_kernel",
                    system ? hand_over_kernel<true> : hand_over_kernel<false>, {1, 96},
                    sums.data(), word.data(), full.data(), empty.data());
        EXPECT_EQ(sums.to_host()[0], 1u + 4 + 9 + 16 + 25 + 36 + 49) << system;
    }
}

__global__ void clock_kernel(std::uint64_t* times) {
    times[0] = ptx::globaltimer();
    do times[1] = ptx::globaltimer();
    while (times[1] == times[0]);
}

TEST(Ptx, TheGlobalTimerRuns) {
    DeviceArray<std::uint64_t> times(2);
    gpu::launch("clock_kernel", clock_kernel, {1, 1}, times.data());
    const auto read = times.to_host();
    EXPECT_GT(read[1], read[0]);
    EXPECT_LT(read[1] - read[0], 1'000'000'000u);
}

}  // namespace
}  // namespace moe::test
