// stream_calls.cpp: CUDA's functions for streams and events.

#include "capture.h"
#include "error.h"
#include "handles.h"
#include "observe/events.h"
#include "stream.h"

struct CUevent_st {
    bool timed = true;
    std::shared_ptr<cuda_on_cpu::Recording> last;  // null before the first record
    cuda_on_cpu::CapturedEventPtr captured = {};   // where that was last
};

namespace cuda_on_cpu {
namespace {

/// What a query says of a ticket or of a stream.
template <typename Asked>
cudaError_t readiness(const Asked& asked) {
    return is_done(asked) ? held_failure() : cudaErrorNotReady;
}

}  // namespace

cudaError_t check_stream(const char* function, cudaStream_t stream) {
    if (stream != nullptr)
        if (const cudaError_t error = check_handle(function, stream)) return error;
    return check_capture(function, stream);
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

cudaError_t cudaDeviceSynchronize() {
    if (const cudaError_t error = refuse_device_wait("cudaDeviceSynchronize"))
        return error;
    observe::host_waits_for_device();
    demand_all();
    return cudaPeekAtLastError();
}

// ------------------------------------------------------------------------------ streams
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    const bool blocking = !(flags & cudaStreamNonBlocking);
    make(stream, {make_queue(blocking), blocking});
    observe::stream_made(*stream, blocking);
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (const cudaError_t error = check_handle("cudaStreamDestroy", stream)) return error;
    leave_capture(stream);
    leave_queue(stream->queue);
    return destroy("cudaStreamDestroy", stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (const cudaError_t error = check_stream("cudaStreamSynchronize", stream))
        return error;
    if (const cudaError_t error = refuse_wait("cudaStreamSynchronize", stream))
        return error;
    observe::host_waits_for_stream(stream);
    demand_stream(stream);
    return cudaPeekAtLastError();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (const cudaError_t error = check_stream("cudaStreamQuery", stream)) return error;
    if (const cudaError_t error = refuse_wait("cudaStreamQuery", stream)) return error;
    return readiness(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (const cudaError_t error = check_stream("cudaStreamWaitEvent", stream))
        return error;
    if (const cudaError_t error = check_handle("cudaStreamWaitEvent", event))
        return error;
    if (event->captured != nullptr) return capture_wait(stream, event->captured);
    if (event->last == nullptr) return cudaSuccess;
    if (const cudaError_t error = refuse_isolation("cudaStreamWaitEvent", stream))
        return error;
    observe::stream_waits(stream, event);
    if (!holds_work()) return cudaSuccess;
    return enqueue(
        stream, [](observe::Ticket) { return cudaSuccess; }, 0, nullptr,
        event->last->ticket);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    return submit("cudaLaunchHostFunc", stream, [=](observe::Ticket) {
        function(data);
        return cudaSuccess;
    });
}

// ------------------------------------------------------------------------------- events
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    make(event, {!(flags & cudaEventDisableTiming), nullptr});
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return destroy("cudaEventDestroy", event);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (const cudaError_t error = check_handle("cudaEventRecord", event)) return error;
    if (const cudaError_t error = check_stream("cudaEventRecord", stream)) return error;
    event->captured = is_captured(stream) ? capture_record(stream) : nullptr;
    if (event->captured != nullptr) return cudaSuccess;
    observe::event_recorded(event, stream);
    event->last = std::make_shared<Recording>();
    const auto record = [recording = event->last](observe::Ticket) {
        recording->time = std::chrono::steady_clock::now();
        return cudaSuccess;
    };
    return holds_work() ? enqueue(stream, record, 0, &event->last->ticket) : record(0);
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (const cudaError_t error = check_handle("cudaEventSynchronize", event))
        return error;
    if (const cudaError_t error = refuse_wait("cudaEventSynchronize", event->captured))
        return error;
    if (const cudaError_t error = refuse_unsafe("cudaEventSynchronize")) return error;
    observe::host_waits_for_event(event);
    return event->last == nullptr ? cudaSuccess : demand(event->last->ticket);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (const cudaError_t error = check_handle("cudaEventQuery", event)) return error;
    if (const cudaError_t error = refuse_wait("cudaEventQuery", event->captured))
        return error;
    if (const cudaError_t error = refuse_unsafe("cudaEventQuery")) return error;
    return event->last == nullptr ? cudaSuccess : readiness(event->last->ticket);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start,
                                 cudaEvent_t end) {
    for (cudaEvent_t event : {start, end}) {
        if (const cudaError_t error = check_handle("cudaEventElapsedTime", event))
            return error;
        if (const cudaError_t error =
                refuse_wait("cudaEventElapsedTime", event->captured))
            return error;
        if (event->last == nullptr || !event->timed)
            return set_error(cudaErrorInvalidResourceHandle,
                             "cudaEventElapsedTime: both events must be recorded, and "
                             "made with timing");
        if (!is_done(event->last->ticket)) return cudaErrorNotReady;
    }
    const std::chrono::duration<float, std::milli> passed =
        end->last->time - start->last->time;
    *milliseconds = passed.count();
    return cudaSuccess;
}
