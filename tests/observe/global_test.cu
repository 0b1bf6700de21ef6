// global_test.cu: kernels whose use of global memory is known, counted. On a GPU, Nsight
// Compute must say the same: l1tex__t_requests and l1tex__t_sectors_pipe_lsu_mem_global.

#include "tests/observe/support.h"

namespace moe::test {
namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

__global__ void stride_kernel(float* target, const float* source, int stride,
                              int offset) {
    const int i = int(threadIdx.x);
    const float value = source[i * stride + offset];  // strided load
    target[i] = value;                                // packed store
}

Seen strided(int stride, int offset) {
    DeviceArray<float> source(std::vector<float>(kThreads * 33, 1.0f)), target(kThreads);
    return OBSERVE(stride_kernel, {1, kThreads}, target.data(), source.data(), stride,
                   offset);
}

TEST(ObserveGlobal, AStrideCostsSectors) {
    struct Case {
        int stride, offset;
        unsigned sectors;  // of a warp's load
    };
    for (const Case& c : {Case{1, 0, 4}, {2, 0, 8}, {32, 0, 32}, {1, 1, 5}, {0, 0, 1}}) {
        const Seen seen = strided(c.stride, c.offset);
        const Counters load = seen.at("strided load");
        EXPECT_EQ(load.loads.requests, kWarps) << c.stride;
        EXPECT_EQ(load.loads.sectors, kWarps * c.sectors) << c.stride << " " << c.offset;
        EXPECT_EQ(load.loads.ideal_sectors, kWarps * (c.stride == 0 ? 1 : 4));
        EXPECT_EQ(load.stores.requests, 0);
        const Counters store = seen.at("packed store");
        EXPECT_EQ(store.stores.requests, kWarps);
        EXPECT_EQ(store.stores.sectors, kWarps * 4);
        EXPECT_EQ(seen.total().sectors_written, kWarps * 4);
        EXPECT_EQ(seen.total().divergent, 0);
        EXPECT_EQ(seen.total().instructions, 2 * kWarps);
    }
    // Warps of an offset launch share the sectors at their seams; a broadcast is one
    EXPECT_EQ(strided(1, 0).total().sectors_read, 16);
    EXPECT_EQ(strided(1, 1).total().sectors_read, 17);
    EXPECT_EQ(strided(1, 1).total().requested_bytes(), 32 * (4 * 5 + 4 * 4));
    EXPECT_EQ(strided(0, 0).total().sectors_read, 1);
}

__global__ void vector_kernel(float* target, const float4* source) {
    const int i = int(threadIdx.x);
    const float4 v = source[i];  // vector load
    target[i] = v.x * v.y + v.z * v.w;
}

TEST(ObserveGlobal, AVectorIsOneLoad) {
    DeviceArray<float> source(std::vector<float>(4 * kThreads, 2.0f)), target(kThreads);
    const Seen seen = OBSERVE(vector_kernel, {1, kThreads}, target.data(),
                              reinterpret_cast<const float4*>(source.data()));
    EXPECT_EQ(seen.at("vector load").loads.requests, kWarps);
    EXPECT_EQ(seen.at("vector load").loads.sectors, kWarps * 16);
    EXPECT_EQ(seen.at("vector load").loads.ideal_sectors, kWarps * 16);
    EXPECT_EQ(target.to_host()[5], 8.0f);
}

__global__ void pairs_kernel(float* target, const __nv_bfloat162* source) {
    const int i = int(threadIdx.x);
    const __nv_bfloat162 pair = source[i];  // pair load
    target[i] = __low2float(pair) + __high2float(pair);
}

TEST(ObserveGlobal, APairOfBf16IsOneLoad) {
    DeviceArray<float> target(kThreads);
    DeviceArray<__nv_bfloat162> source(
        std::vector<__nv_bfloat162>(kThreads, __floats2bfloat162_rn(1.0f, 2.0f)));
    const Seen seen = OBSERVE(pairs_kernel, {1, kThreads}, target.data(), source.data());
    EXPECT_EQ(seen.at("pair load").loads.requests, kWarps);
    EXPECT_EQ(seen.at("pair load").loads.sectors, kWarps * 4);
    EXPECT_EQ(target.to_host()[7], 3.0f);
}

__global__ void cached_kernel(float* target, const float* source) {
    target[threadIdx.x] = __ldg(source + threadIdx.x);  // hinted load
}

TEST(ObserveGlobal, AnIntrinsicCountsForTheKernelsLine) {
    DeviceArray<float> source(std::vector<float>(32, 1.0f)), target(32);
    const Seen seen = OBSERVE(cached_kernel, {1, 32}, target.data(), source.data());
    EXPECT_EQ(seen.at("hinted load").loads.requests, 1);
    EXPECT_EQ(seen.at("hinted load").loads.sectors, 4);
}

__global__ void tail_kernel(float* values, int count, int rounds) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    for (int n = 0; n < rounds + i % 4; ++n) values[64 * n + i] += 1.0f;  // loop
}

TEST(ObserveGlobal, LanesThatAreMissingAreDivergence) {
    DeviceArray<float> values(std::vector<float>(64 * 5, 0.0f));
    // Two warps, of which the second has 8 lanes at work; 2, 3, 4 and 5 rounds
    const Seen seen = OBSERVE(tail_kernel, {1, 64}, values.data(), 40, 2);
    const Counters loop = seen.at("loop");
    EXPECT_EQ(loop.loads.requests, 2 * 5);
    EXPECT_EQ(loop.stores.requests, 2 * 5);
    EXPECT_EQ(loop.instructions, 2 * 2 * 5);
    EXPECT_EQ(loop.divergent, 2 * (3 + 5));
    EXPECT_EQ(values.to_host()[64 * 4 + 39], 1.0f);
}

__global__ void atomic_kernel(int* counters, float* sum, int modulus) {
    atomicAdd(&counters[threadIdx.x % modulus], 1);  // count
    atomicAdd(sum, 1.0f);                            // sum
}

TEST(ObserveGlobal, AtomicsOnOneAddressHaveADegree) {
    DeviceArray<int> counters(std::vector<int>(32, 0));
    DeviceArray<float> sum(std::vector<float>(1, 0.0f));
    for (const int modulus : {1, 8, 32}) {
        const Seen seen =
            OBSERVE(atomic_kernel, {2, 64}, counters.data(), sum.data(), modulus);
        const Counters count = seen.at("count");
        EXPECT_EQ(count.atomics.requests, 4) << modulus;
        EXPECT_EQ(count.atomic_degree, 32 / modulus);
        EXPECT_EQ(count.loads.requests + count.stores.requests, 0);
        EXPECT_EQ(seen.at("sum").atomic_degree, 32);
        EXPECT_EQ(seen.at("sum").atomics.requests, 4);
        EXPECT_EQ(seen.total().atomics.requests, 8);
    }
    EXPECT_EQ(sum.to_host()[0], 3 * 128.0f);
}

__global__ void outside_kernel(float* target, const float* source, int offset) {
    target[threadIdx.x] = source[int(threadIdx.x) + offset];  // outside
}

TEST(ObserveGlobal, AReadPastTheEndIsTold) {
    DeviceArray<float> source(std::vector<float>(33, 1.0f)), target(32);
    const auto run = [&](int offset) {
        cuda_on_cpu::observe::start();
        std::string said;
        try {
            gpu::launch("outside_kernel", outside_kernel, {1, 32}, target.data(),
                        source.data(), offset);
        } catch (const gpu::DeviceError& error) {
            said = error.what();
        }
        cuda_on_cpu::observe::stop();
        return said;
    };
    EXPECT_EQ(run(1), "");
    const std::string said = run(3);
    EXPECT_NE(said.find("illegal read of 4 bytes, 0 bytes past the end of the "),
              std::string::npos)
        << said;
    EXPECT_NE(
        said.find("global_test.cu:" + std::to_string(marked_line(__FILE__, "outside"))),
        std::string::npos)
        << said;
    EXPECT_NE(said.find("block (0,0,0), thread (30,0,0)"), std::string::npos) << said;
    const auto findings = cuda_on_cpu::observe::report().findings;
    ASSERT_EQ(findings.size(), 1);
    EXPECT_EQ(findings[0].kind, Finding::Kind::out_of_bounds);
    EXPECT_EQ(findings[0].line, marked_line(__FILE__, "outside"));
    EXPECT_EQ(findings[0].times, 2);
    EXPECT_EQ(run(0), "");
}

TEST(ObserveGlobal, PinnedHostMemoryMayBeTouched) {
    float* pinned = nullptr;
    ASSERT_EQ(cudaMallocHost(&pinned, kThreads * sizeof(float)), cudaSuccess);
    for (int i = 0; i < kThreads; ++i) pinned[i] = 3.0f;
    DeviceArray<float> target(kThreads);
    EXPECT_EQ(races_of([&] {
                  gpu::launch("cached_kernel", cached_kernel, {1, kThreads},
                              target.data(), pinned);
              }),
              "");
    EXPECT_EQ(target.to_host()[9], 3.0f);
    cudaFreeHost(pinned);
}

TEST(ObserveRuntime, CallsAreCounted) {
    cuda_on_cpu::observe::start();
    {
        DeviceArray<float> first(1000);
        DeviceArray<float> second(24);
        DeviceArray<float> third(std::vector<float>(24, 1.0f));
        third.to_host();
    }
    DeviceArray<float> later(10);
    const Report report = cuda_on_cpu::observe::report();
    cuda_on_cpu::observe::stop();
    EXPECT_EQ(report.allocations, 4);
    EXPECT_EQ(report.peak_bytes, 4 * (1000 + 24 + 24));
    EXPECT_EQ(report.host_waits, 3);  // two copies, and the device
    EXPECT_TRUE(report.launches.empty());
}

}  // namespace
}  // namespace moe::test
