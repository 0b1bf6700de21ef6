// block_test.cu: launches, barriers, atomics, streams and events. The same file runs on
// the executor and on a GPU.

#include <gtest/gtest.h>

#include <numeric>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

namespace moe::test {
namespace {

using gpu::launch;

__global__ void index_kernel(unsigned* result) {
    const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const unsigned thread =
        threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
    result[block * threads + thread] = 1000 * block + thread;
}

TEST(ConformanceBlock, EveryThreadOfEveryBlockRunsOnce) {
    DeviceArray<unsigned> result(std::vector<unsigned>(3 * 2 * 5 * 7 * 3 * 2, 0));
    launch("index_kernel", index_kernel, {dim3(3, 2, 5), dim3(7, 3, 2)}, result.data());
    const auto got = result.to_host();
    for (unsigned i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], i / 42 * 1000 + i % 42);
}

struct Pair {
    int first;
    double second;
};
__global__ void argument_kernel(double* result, Pair pair, float narrow, bool flag,
                                const double* optional) {
    pair.first += int(threadIdx.x);  // each thread's own copy
    result[threadIdx.x] = pair.first + pair.second + narrow + (flag ? 1000.0 : 0.0) +
                          (optional == nullptr ? 0.5 : 0.0);
}

TEST(ConformanceBlock, ArgumentsAreConvertedOnceAndCopiedForEachThread) {
    DeviceArray<double> result(5);
    launch("argument_kernel", argument_kernel, {1, 5}, result.data(), Pair{40, 0.25},
           2.0 /* a double for a float */, 1 /* an int for a bool */, nullptr);
    for (int t = 0; t < 5; ++t) EXPECT_EQ(result.to_host()[t], 40 + t + 0.75 + 1002.0);
}

struct RotateSmem {
    int values[97];
};
__global__ void rotate_kernel(int* values, int rounds) {
    auto& s = gpu::shared_memory<RotateSmem>();
    const int t = int(threadIdx.x), n = int(blockDim.x);
    s.values[t] = values[t];
    for (int round = 0; round < rounds; ++round) {
        __syncthreads();
        const int next = s.values[(t + 1) % n];
        __syncthreads();
        s.values[t] = next;
    }
    values[t] = s.values[t];
}

TEST(ConformanceBlock, BarriersSeparateRoundsOverSharedMemory) {
    std::vector<int> start(97);
    std::iota(start.begin(), start.end(), 0);
    DeviceArray<int> values(start);
    launch("rotate_kernel", rotate_kernel, {1, 97, sizeof(RotateSmem)}, values.data(), 5);
    for (int t = 0; t < 97; ++t) EXPECT_EQ(values.to_host()[t], (t + 5) % 97);
}

__global__ void vote_kernel(int* result, int divisor) {
    const int t = int(threadIdx.x);
    const int predicate = t % divisor == 0;
    result[3 * t] = __syncthreads_count(predicate);
    result[3 * t + 1] = __syncthreads_and(predicate);
    result[3 * t + 2] = __syncthreads_or(predicate);
}

TEST(ConformanceBlock, BarriersVote) {
    DeviceArray<int> result(3 * 77);
    for (int divisor : {1, 3, 77}) {
        launch("vote_kernel", vote_kernel, {1, 77}, result.data(), divisor);
        const auto got = result.to_host();
        for (int t = 0; t < 77; ++t) {
            EXPECT_EQ(got[3 * t], (77 + divisor - 1) / divisor);
            EXPECT_EQ(got[3 * t + 1], divisor == 1 ? 1 : 0);
            EXPECT_EQ(got[3 * t + 2], 1);
        }
    }
}

struct TotalSmem {
    int total;
};
__global__ void early_exit_kernel(int* result) {
    auto& s = gpu::shared_memory<TotalSmem>();
    if (threadIdx.x >= 64) return;  // whole warps leave; the others still meet
    if (threadIdx.x == 0) s.total = 0;
    __syncthreads();
    atomicAdd(&s.total, 1);
    __syncthreads();
    result[threadIdx.x] = s.total;
}

TEST(ConformanceBlock, ExitedThreadsDoNotBlockABarrier) {
    DeviceArray<int> result(64);
    launch("early_exit_kernel", early_exit_kernel, {1, 128, sizeof(TotalSmem)},
           result.data());
    for (int total : result.to_host()) EXPECT_EQ(total, 64);
}

__global__ void atomics_kernel(int* integers, unsigned* words, float* sum,
                               double* wide_sum, unsigned long long* wide) {
    const int t = int(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&integers[0], t);
    atomicSub(&integers[1], t);
    atomicMin(&integers[2], -t);
    atomicMax(&integers[3], t);
    atomicAnd(&words[0], ~(1u << t % 32));
    atomicOr(&words[1], 1u << t % 32);
    atomicXor(&words[2], 1u << t % 32);
    atomicInc(&words[3], 6u);
    atomicDec(&words[4], 6u);
    atomicAdd(sum, 0.5f);
    atomicAdd(wide_sum, 0.25);
    atomicAdd(&wide[0], 1ull << 33);
    atomicMin(&wide[1], static_cast<unsigned long long>(t) + 3);
    int seen = integers[4], assumed;  // a product, by compare-and-swap
    do {
        assumed = seen;
        seen = atomicCAS(&integers[4], assumed, (assumed * 3) % 10007);
    } while (seen != assumed);
}

TEST(ConformanceBlock, AtomicsLoseNothing) {
    const int count = 11 * 93;
    DeviceArray<int> integers(std::vector<int>{0, 0, 0, 0, 1});
    DeviceArray<unsigned> words(std::vector<unsigned>{~0u, 0, 0, 0, 0});
    DeviceArray<float> sum(std::vector<float>{0});
    DeviceArray<double> wide_sum(std::vector<double>{0});
    DeviceArray<unsigned long long> wide(std::vector<unsigned long long>{0, ~0ull});
    launch("atomics_kernel", atomics_kernel, {11, 93}, integers.data(), words.data(),
           sum.data(), wide_sum.data(), wide.data());
    int product = 1;
    unsigned odd = 0;
    for (int t = 0; t < count; ++t) {
        product = product * 3 % 10007;
        odd ^= 1u << t % 32;
    }
    const int total = count * (count - 1) / 2;
    EXPECT_EQ(integers.to_host(),
              (std::vector<int>{total, -total, -(count - 1), count - 1, product}));
    EXPECT_EQ(words.to_host(), (std::vector<unsigned>{0, ~0u, odd, unsigned(count % 7),
                                                      unsigned((7 - count % 7) % 7)}));
    EXPECT_EQ(sum.to_host()[0], 0.5f * count);
    EXPECT_EQ(wide_sum.to_host()[0], 0.25 * count);
    EXPECT_EQ(wide.to_host(), (std::vector<unsigned long long>{
                                  (1ull << 33) * (unsigned long long)count, 3ull}));
}

__global__ void lock_kernel(int* lock, int* counter) {
    // One thread at a time, threads of a warp among them: each takes and frees the lock.
    for (bool done = false; !done;) {
        if (atomicCAS(lock, 0, 1) == 0) {
            __threadfence();
            *counter += 1;
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
    }
}

TEST(ConformanceBlock, ALockIsHeldByOneThread) {
    DeviceArray<int> lock(std::vector<int>{0}), counter(std::vector<int>{0});
    launch("lock_kernel", lock_kernel, {3, 64}, lock.data(), counter.data());
    EXPECT_EQ(counter.to_host()[0], 3 * 64);
}

__global__ void scale_kernel(float* values, float factor) {
    values[threadIdx.x] *= factor;
}

TEST(ConformanceBlock, AStreamKeepsItsOrderAndEventsTellIt) {
    cudaStream_t stream = nullptr;
    cudaEvent_t start = nullptr, end = nullptr;
    ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
    ASSERT_EQ(cudaEventCreate(&start), cudaSuccess);
    ASSERT_EQ(cudaEventCreate(&end), cudaSuccess);
    DeviceArray<float> values(33);
    std::vector<float> host(33, 1.0f), back(33);
    const std::size_t bytes = 33 * sizeof(float);
    cudaEventRecord(start, stream);
    cudaMemcpyAsync(values.data(), host.data(), bytes, cudaMemcpyHostToDevice, stream);
    launch("scale_kernel", scale_kernel, {1, 33, 0, stream}, values.data(), 3.0f);
    launch("scale_kernel", scale_kernel, {1, 33, 0, stream}, values.data(), 5.0f);
    cudaMemcpyAsync(back.data(), values.data(), bytes, cudaMemcpyDeviceToHost, stream);
    cudaEventRecord(end, stream);
    EXPECT_EQ(cudaEventSynchronize(end), cudaSuccess);
    EXPECT_EQ(back, std::vector<float>(33, 15.0f));
    float milliseconds = -1.0f;
    EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaSuccess);
    EXPECT_GE(milliseconds, 0.0f);
    EXPECT_EQ(cudaStreamQuery(stream), cudaSuccess);
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    cudaStreamDestroy(stream);
}

TEST(ConformanceBlock, LaunchesBeyondTheLimitsAreRefused) {
    DeviceArray<float> values(1);
    const auto refused = [&](gpu::LaunchConfig config) {
        EXPECT_THROW(launch("scale_kernel", scale_kernel, config, values.data(), 1.0f),
                     gpu::DeviceError);
    };
    refused({1, 1025});
    refused({1, dim3(1, 1, 65)});
    refused({dim3(1, 65536), 1});
    refused({1, 32, 228 * 1024});
    launch("scale_kernel", scale_kernel, {1, 1}, values.data(), 1.0f);  // still works
}

TEST(ConformanceBlock, MemoryIsAlignedAndCopiesAreChecked) {
    void* pointer = nullptr;
    ASSERT_EQ(cudaMalloc(&pointer, 3), cudaSuccess);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(pointer) % 256, 0u);
    cudaPointerAttributes attributes = {};
    ASSERT_EQ(cudaPointerGetAttributes(&attributes, pointer), cudaSuccess);
    EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
    int host = 0;
    ASSERT_EQ(cudaPointerGetAttributes(&attributes, &host), cudaSuccess);
    EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
    EXPECT_EQ(cudaFree(pointer), cudaSuccess);
    EXPECT_EQ(cudaMalloc(&pointer, std::size_t(1) << 60), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace moe::test
