// readers_test.cu: of many readers of a byte few are remembered, and none is overlooked.

#include "tests/observe/support.h"

namespace moe::test {
namespace {

constexpr int kThreads = 64;
struct Values {
    float values[kThreads];
};

__global__ void crowd_kernel(float* target) {
    auto& s = gpu::shared_memory<Values>();
    const int t = int(threadIdx.x);
    if (t == 0) s.values[0] = 1.0f;                 // for a crowd
    if (t == 1 || t == 2) target[t] = s.values[0];  // two
    __shfl_sync(0xffffffffu, t, 0);
    if (t > 2) target[t] = s.values[0];  // the crowd
    __syncthreads();
}
__global__ void far_reader_kernel(float* target) {
    auto& s = gpu::shared_memory<Values>();
    const int t = int(threadIdx.x);
    s.values[t] = 1.0f;
    __syncthreads();
    target[t] = s.values[0];  // readers of two warps
    __syncwarp();
    if (t == 5) s.values[0] = 2.0f;  // knows of one warp
    __syncwarp();
}

TEST(ObserveReaders, ManyHideNoOther) {
    DeviceArray<float> target(kThreads);
    const auto run = [&](auto kernel, int threads) {
        return races_of([&] {
            gpu::launch("kernel", kernel, {1, threads, sizeof(Values)}, target.data());
        });
    };
    EXPECT_EQ(run(crowd_kernel, 32), race_in(__FILE__, "for a crowd", "two") + "; " +
                                         race_in(__FILE__, "for a crowd", "the crowd"));
    EXPECT_EQ(run(far_reader_kernel, 64),
              race_in(__FILE__, "readers of two warps", "knows of one warp"));
}

}  // namespace
}  // namespace moe::test
