/// @file
/// A second stream, for work that may run beside that of the default stream.
#pragma once

#include <cuda_runtime.h>

#include "gpu/check.h"

namespace moe::gpu {

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
    cudaEvent_t event = nullptr;
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    check(cudaEventRecord(event, earlier), "cudaEventRecord");
    check(cudaStreamWaitEvent(later, event, 0), "cudaStreamWaitEvent");
    check(cudaEventDestroy(event), "cudaEventDestroy");
}

}  // namespace moe::gpu
