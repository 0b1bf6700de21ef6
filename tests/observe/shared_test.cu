// shared_test.cu: kernels whose conflicts over the banks of shared memory are known. On a
// GPU, Nsight Compute must say the same: l1tex__data_bank_conflicts_pipe_lsu.

#include "tests/observe/support.h"

namespace moe::test {
namespace {

/// A tile of 32 rows; Width 33 puts a column's elements in 32 different banks.
template <int Width>
struct Tile {
    float values[32][Width];
};

template <int Width>
__global__ void column_kernel(float* target) {
    auto& s = gpu::shared_memory<Tile<Width>>();
    for (int row = 0; row < 32; ++row)
        s.values[row][threadIdx.x] = float(row);  // row store
    __syncthreads();
    target[threadIdx.x] = s.values[threadIdx.x][3];  // column load
}

template <int Width>
Seen column() {
    DeviceArray<float> target(32);
    Seen seen =
        OBSERVE(column_kernel<Width>, {1, 32, sizeof(Tile<Width>)}, target.data());
    EXPECT_EQ(target.to_host()[9], 9.0f);
    return seen;
}

TEST(ObserveShared, AColumnConflictsUnlessRowsArePadded) {
    for (const Seen& seen : {column<32>(), column<33>()}) {
        EXPECT_EQ(seen.at("row store").shared.requests, 32);
        EXPECT_EQ(seen.at("row store").shared.wavefronts, 32);
        EXPECT_EQ(seen.at("row store").shared.most_ways, 1);
        EXPECT_EQ(seen.at("column load").shared.requests, 1);
        EXPECT_EQ(seen.at("column load").shared.ideal_wavefronts, 1);
        EXPECT_EQ(seen.total().barriers, 1);
    }
    EXPECT_EQ(column<32>().at("column load").shared.wavefronts, 32);
    EXPECT_EQ(column<32>().at("column load").shared.most_ways, 32);
    EXPECT_EQ(column<33>().at("column load").shared.wavefronts, 1);
    EXPECT_EQ(column<33>().at("column load").shared.most_ways, 1);
}

template <typename T>
struct Values {
    T values[32 * 32];
};
template <typename T>
__global__ void stride_kernel(T* target, int stride) {
    auto& s = gpu::shared_memory<Values<T>>();
    for (int i = 0; i < 32; ++i) s.values[32 * i + threadIdx.x] = T{};
    __syncthreads();
    target[threadIdx.x] = s.values[threadIdx.x * stride];  // strided load
}

template <typename T>
Counters strided(int stride) {
    DeviceArray<T> target(32);
    return OBSERVE(stride_kernel<T>, {1, 32, sizeof(Values<T>)}, target.data(), stride)
        .at("strided load");
}

TEST(ObserveShared, StridesConflict) {
    EXPECT_EQ(strided<float>(0).shared.wavefronts, 1);  // one word for all
    EXPECT_EQ(strided<float>(1).shared.wavefronts, 1);
    EXPECT_EQ(strided<float>(2).shared.wavefronts, 2);
    EXPECT_EQ(strided<float>(2).shared.most_ways, 2);
    EXPECT_EQ(strided<float>(31).shared.wavefronts, 1);
    // Two lanes share a word of two bf16
    EXPECT_EQ(strided<__nv_bfloat16>(1).shared.wavefronts, 1);
    EXPECT_EQ(strided<__nv_bfloat16>(4).shared.wavefronts, 2);
}

TEST(ObserveShared, WideLoadsComeInParts) {
    EXPECT_EQ(strided<double>(1).shared.wavefronts, 2);
    EXPECT_EQ(strided<double>(1).shared.ideal_wavefronts, 2);
    EXPECT_EQ(strided<double>(2).shared.wavefronts, 4);
    EXPECT_EQ(strided<double>(2).shared.most_ways, 2);
    EXPECT_EQ(strided<float4>(1).shared.wavefronts, 4);
    EXPECT_EQ(strided<float4>(1).shared.most_ways, 1);
    EXPECT_EQ(strided<float4>(2).shared.wavefronts, 8);
    EXPECT_EQ(strided<float4>(2).loads.requests, 0);
}

__global__ void barriers_kernel(int* values) {
    __syncthreads();
    if (threadIdx.x >= 64) return;
    values[threadIdx.x] = 1;
    __syncthreads();
}

TEST(ObserveShared, AWarpThatHasLeftWaitsNoMore) {
    DeviceArray<int> values(64);
    const Seen seen = OBSERVE(barriers_kernel, {3, 128}, values.data());
    EXPECT_EQ(seen.total().barriers, 3 * (4 + 2));
}

struct Ranks {
    int values[64];
};
__global__ void shuffle_kernel(int* target) {
    auto& s = gpu::shared_memory<Ranks>();
    const int t = int(threadIdx.x);
    int sum = t;
    for (int delta = 16; delta > 0; delta /= 2) {
        s.values[t] = sum;  // store between shuffles
        sum += __shfl_xor_sync(0xffffffffu, sum, delta);
    }
    target[t] = sum;
}

TEST(ObserveShared, LanesAreMatchedBetweenShuffles) {
    DeviceArray<int> target(64);
    const Seen seen = OBSERVE(shuffle_kernel, {1, 64, sizeof(Ranks)}, target.data());
    EXPECT_EQ(seen.at("store between shuffles").shared.requests, 2 * 5);
    EXPECT_EQ(seen.total().divergent, 0);
    EXPECT_EQ(target.to_host()[0], 31 * 16);
}

}  // namespace
}  // namespace moe::test
