/// @file
/// Captured streams, and what CUDA forbids while there are any. Source: CUDA C++
/// Programming Guide, "Prohibited and Unhandled Operations"; CUDA Runtime API,
/// cudaThreadExchangeStreamCaptureMode.
#pragma once

#include <memory>

#include "graph.h"
#include "stream.h"

namespace cuda_on_cpu {

/// An event that was last recorded in a captured stream.
struct CapturedEvent {
    std::shared_ptr<Capture> by;
    int number = 0;             ///< among the events of the graph
    std::vector<int> happened;  ///< of each lane, how many nodes are done before it
};
using CapturedEventPtr = std::shared_ptr<const CapturedEvent>;

bool is_captured(cudaStream_t stream);

// What a captured stream gets is written down.
cudaError_t capture_work(cudaStream_t stream, Work work);
CapturedEventPtr capture_record(cudaStream_t stream);
/// A stream that waits for a captured event is captured from then on.
cudaError_t capture_wait(cudaStream_t stream, const CapturedEventPtr& event);
/// Memory that the graph keeps; its end within the capture, if it is the graph's.
void capture_memory(cudaStream_t stream, std::shared_ptr<void> memory);
bool capture_free(cudaStream_t stream, const void* memory);
/// A captured stream is destroyed.
void leave_capture(cudaStream_t stream);

// What is forbidden. Each says cudaSuccess, or the error, which ends the captures that
// it concerns: their streams take nothing more, and cudaStreamEndCapture() fails.
/// Any use of a stream: not after such an error; not the legacy default stream, which
/// waits for ordinary ones, while one of them is captured.
cudaError_t check_capture(const char* function, cudaStream_t stream);
/// The host waits for, or asks about, a stream; an event; all of the device.
cudaError_t refuse_wait(const char* function, cudaStream_t stream);
cudaError_t refuse_wait(const char* function, const CapturedEventPtr& event);
cudaError_t refuse_device_wait(const char* function);
/// What no capture sees but a graph might depend on, as cudaMalloc(): forbidden by the
/// mode of this thread's captures, and of the global ones of others.
cudaError_t refuse_unsafe(const char* function);
/// A captured stream would wait for what is not captured.
cudaError_t refuse_isolation(const char* function, cudaStream_t stream);

}  // namespace cuda_on_cpu
