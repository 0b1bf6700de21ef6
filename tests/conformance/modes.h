/// @file
/// Tests of asynchronous instructions run several times on the executor: at once and at
/// the last moment, in several orders of threads. On a GPU they run as they run, where
/// there is a Hopper.
#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <string>

namespace moe::test {

#ifdef __CUDACC__

/// False, and the test is skipped, when the GPU lacks the instructions.
inline bool has_hopper() {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
    return major == 9 && minor == 0;
}

template <typename Body>
void in_every_mode(Body body) {
    body();
}

#else

inline bool has_hopper() {
    return true;
}

/// Runs with a schedule and an asynchrony, then as before.
class ModeGuard {
  public:
    ModeGuard(const std::string& schedule, const std::string& asynchrony)
        : before_(cuda_on_cpu::options()) {
        auto& options = cuda_on_cpu::options();
        EXPECT_TRUE(cuda_on_cpu::parse_schedule(schedule, options.schedule));
        EXPECT_TRUE(cuda_on_cpu::parse_asynchrony(asynchrony, options.asynchrony));
    }
    ~ModeGuard() { cuda_on_cpu::options() = before_; }

  private:
    cuda_on_cpu::Options before_;
};

template <typename Body>
void in_every_mode(Body body) {
    for (const char* asynchrony : {"eager", "deferred", "deferred:7"})
        for (const char* schedule : {"forward", "reverse", "random:1", "priority:2"}) {
            SCOPED_TRACE(std::string("CUDA_ON_CPU_ASYNC=") + asynchrony +
                         " CUDA_ON_CPU_SCHEDULE=" + schedule);
            const ModeGuard guard(schedule, asynchrony);
            body();
        }
}

#endif

#define MOE_NEEDS_HOPPER \
    if (!has_hopper()) GTEST_SKIP() << "needs a GPU of compute capability 9.0"

}  // namespace moe::test
