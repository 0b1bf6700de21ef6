/// @file
/// The stream that work goes to, and streams for work that may run beside it.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "gpu/check.h"
#include "gpu/device_log.h"

namespace moe::gpu {

/// While it lives, what this thread asks of the device goes to `stream`: launches,
/// copies, fills. Guards nest. Source: c10::cuda::CUDAStreamGuard.
///
/// TUTORIAL: work of two streams has no order of its own, and a layer's parameters,
/// counts and buffers were written in some stream: where another takes over, it has to
/// wait_for() the one before.
class StreamGuard {
  public:
    explicit StreamGuard(cudaStream_t stream) : outer_(std::exchange(current_, stream)) {}
    ~StreamGuard() { current_ = outer_; }
    StreamGuard(const StreamGuard&) = delete;
    StreamGuard& operator=(const StreamGuard&) = delete;

  private:
    friend cudaStream_t current_stream();
    static inline thread_local cudaStream_t current_ = nullptr;
    cudaStream_t outer_;
};

/// That of this thread's innermost guard; without one the legacy default stream. Source:
/// torch.cuda.current_stream.
inline cudaStream_t current_stream() {
    return StreamGuard::current_;
}

/// A stream of its own, destroyed with the object; work that is on it then still ends.
class Stream {
  public:
    // TUTORIAL: an ordinary stream and the default stream wait for each other at every
    // launch. Only a non-blocking one leaves the order to us: see wait_for().
    Stream() {
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking),
              "cudaStreamCreate");
    }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    cudaStream_t get() const { return stream_; }

  private:
    cudaStream_t stream_ = nullptr;
};

/// Whatever `later` gets from now on starts when all that `earlier` has got is done. The
/// host does not wait. Source: torch.cuda.Stream.wait_stream.
inline void wait_for(cudaStream_t later, cudaStream_t earlier) {
    if (later == earlier) return;
    log_wait_for_stream(later, earlier);
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    check(cudaEventRecord(event, earlier), "cudaEventRecord");
    check(cudaStreamWaitEvent(later, event, 0), "cudaStreamWaitEvent");
    check(cudaEventDestroy(event), "cudaEventDestroy");
}

}  // namespace moe::gpu
