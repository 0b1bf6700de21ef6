#include "bench/stopwatch.h"

#include <cuda_runtime.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "gpu/check.h"
#include "gpu/device_facts.h"
#include "gpu/tensor.h"

namespace moe::bench {
namespace {

/// Twice the last-level cache, and 64 MiB where the system does not tell its size.
std::size_t flush_bytes() {
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return std::clamp<std::size_t>(2 * std::size_t(std::max(cache, 32L << 20)), 64u << 20,
                                   256u << 20);
}

class HostStopwatch : public Stopwatch {
  public:
    double time(const std::function<void()>& work) override {
        std::memset(flush_.data(), ++value_, flush_.size());
        const auto start = std::chrono::steady_clock::now();
        work();
        return 1e3 *
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start)
                   .count();
    }

  private:
    std::vector<unsigned char> flush_ = std::vector<unsigned char>(flush_bytes());
    int value_ = 0;
};

class DeviceStopwatch : public Stopwatch {
  public:
    DeviceStopwatch() {
        MOE_CHECK(!gpu::is_emulated());
        flush_ = gpu::device_empty<std::uint8_t>({2 * gpu::l2_bytes()});
        gpu::check(cudaEventCreate(&start_), "cudaEventCreate");
        gpu::check(cudaEventCreate(&stop_), "cudaEventCreate");
    }
    ~DeviceStopwatch() override {
        cudaEventDestroy(start_);
        cudaEventDestroy(stop_);
    }

    double time(const std::function<void()>& work) override {
        // TUTORIAL: the host does not wait for the memset, so while it runs the host
        // already prepares the first kernel, and its launch is not part of the time.
        gpu::check(cudaMemsetAsync(flush_.view().bytes, 0, flush_.size_bytes(), nullptr),
                   "cudaMemset");
        gpu::check(cudaEventRecord(start_, nullptr), "cudaEventRecord");
        work();
        gpu::check(cudaEventRecord(stop_, nullptr), "cudaEventRecord");
        gpu::check(cudaEventSynchronize(stop_), "kernel");
        float milliseconds = 0.0f;
        gpu::check(cudaEventElapsedTime(&milliseconds, start_, stop_),
                   "cudaEventElapsedTime");
        return milliseconds;
    }

  private:
    Tensor flush_;
    cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

}  // namespace

std::unique_ptr<Stopwatch> make_host_stopwatch() {
    return std::make_unique<HostStopwatch>();
}

std::unique_ptr<Stopwatch> make_device_stopwatch() {
    return std::make_unique<DeviceStopwatch>();
}

}  // namespace moe::bench
