/// @file
/// One timed sample: from cold caches, on the clock of whoever does the work.
#pragma once

#include <functional>
#include <memory>

namespace moe::bench {

class Stopwatch {
  public:
    virtual ~Stopwatch() = default;
    /// Empties the caches, then runs `work` once. Milliseconds until all of it is done.
    virtual double time(const std::function<void()>& work) = 0;
};

/// For work on the host alone: a steady clock, after writing 64 to 256 MiB:
/// twice the last-level cache, as far as that goes.
std::unique_ptr<Stopwatch> make_host_stopwatch();

/// For work that uses the device: CUDA events on the default stream, after zeroing a
/// buffer of twice the L2 cache. Only for a real GPU: InternalError on the executor,
/// whose times mean nothing. DeviceError when memory is short.
std::unique_ptr<Stopwatch> make_device_stopwatch();

}  // namespace moe::bench
