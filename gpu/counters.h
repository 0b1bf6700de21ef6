/// @file
/// What the GPU tiers ask of the device, counted: the same on a GPU and on the executor,
/// where time means nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe::gpu {

struct Counters {
    std::int64_t launches = 0;  ///< kernels
    /// Times the host stood still until the device was done: gpu::synchronize(), and
    /// copies between host and device. What cudaMalloc and cudaFree wait for is not seen.
    std::int64_t host_waits = 0;
    std::int64_t bytes = 0;       ///< of device tensors, now
    std::int64_t peak_bytes = 0;  ///< the most since reset_peak()
};

/// Since the program began; of all threads together.
Counters counters();

/// The peak starts again from what is held now.
void reset_peak();

/// For whoever launches, waits, allocates. Streams are cudaStream_t.
void count_launch(const char* kernel, const void* stream);
/// For all streams.
void count_host_wait();
void count_host_wait(const void* stream);
void count_bytes(std::int64_t change);

}  // namespace moe::gpu
