/// @file
/// Streams that hold their work back, for as long as an object lives. Executor only.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

namespace moe::test {

/// In both of these orders every wait between two streams that is missing shows.
inline constexpr const char* kStreamOrders[] = {"forward", "reverse"};

class HeldStreams {
  public:
    /// @param schedule  whose turn it is among streams, too
    explicit HeldStreams(const char* schedule = "forward")
        : before_(cuda_on_cpu::options()) {
        cuda_on_cpu::options().streams = cuda_on_cpu::Streams::held;
        EXPECT_TRUE(
            cuda_on_cpu::parse_schedule(schedule, cuda_on_cpu::options().schedule));
    }
    ~HeldStreams() {
        cudaDeviceSynchronize();
        cudaGetLastError();
        cuda_on_cpu::options() = before_;
    }
    HeldStreams(const HeldStreams&) = delete;
    HeldStreams& operator=(const HeldStreams&) = delete;

  private:
    cuda_on_cpu::Options before_;
};

}  // namespace moe::test
