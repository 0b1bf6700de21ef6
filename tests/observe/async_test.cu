// async_test.cu: what functions that stand for instructions tell: a copy by a thread into
// shared memory, which the compiler does not see.

#include <cstring>

#include "tests/observe/support.h"

namespace moe::test {
namespace {

struct Stage {
    float values[64];
    int done;
};

/// The whole copy, as one instruction of one thread.
__device__ void copy_stage(Stage& stage, const float* source) {
    namespace observe = cuda_on_cpu::observe;
    const cuda_on_cpu::Site site{__FILE__, __LINE__};  // copy
    observe::async_read(source, sizeof stage.values, site);
    observe::async_write(stage.values, sizeof stage.values, site);
    observe::async_bytes(sizeof stage.values, site);
    std::memcpy(stage.values, source, sizeof stage.values);
    observe::mma_flops(1000, site);
}

template <bool Acquire>
__global__ void staged_kernel(float* target, const float* source) {
    Stage& stage = gpu::shared_memory<Stage>();
    if (threadIdx.x == 0) {
        copy_stage(stage, source);
        cuda_on_cpu::observe::release(&stage.done);
    }
    if (Acquire) cuda_on_cpu::observe::acquire(&stage.done);
    target[threadIdx.x] = stage.values[threadIdx.x];  // use
}

TEST(ObserveAsync, ACopyIsCountedAndOrdered) {
    DeviceArray<float> source(std::vector<float>(64, 1.0f)), target(64);
    const Seen seen = OBSERVE(staged_kernel<true>, {1, 64, sizeof(Stage)}, target.data(),
                              source.data());
    EXPECT_EQ(seen.total().async_bytes, 256);
    EXPECT_EQ(seen.total().async_sectors, 8);
    EXPECT_EQ(seen.total().sectors_read, 8);
    EXPECT_EQ(seen.total().mma_flops, 1000);
    EXPECT_EQ(seen.at("copy").async_bytes, 256);
    EXPECT_EQ(seen.total().requested_bytes(), 256 + 256);
    const auto races = [&](auto kernel) {
        return races_of([&] {
            gpu::launch("staged_kernel", kernel, {1, 64, sizeof(Stage)}, target.data(),
                        source.data());
        });
    };
    EXPECT_EQ(races(staged_kernel<true>), "");
    EXPECT_EQ(races(staged_kernel<false>),
              fmt::format("race of {} and {}", marked_line(__FILE__, "copy"),
                          marked_line(__FILE__, "use")));
}

}  // namespace
}  // namespace moe::test
