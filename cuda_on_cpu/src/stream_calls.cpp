// stream_calls.cpp: CUDA's functions for streams and events.

#include <mutex>
#include <set>

#include "error.h"
#include "observe/events.h"
#include "stream.h"

struct CUevent_st {
    bool timed = true;
    std::shared_ptr<cuda_on_cpu::Recording> last;  // null before the first record
};

namespace cuda_on_cpu {
namespace {

std::mutex handles_mutex;
std::set<const void*> handles;  // streams and events that exist

cudaError_t check_handle(const char* function, const void* handle) {
    const std::lock_guard lock(handles_mutex);
    if (handles.contains(handle)) return cudaSuccess;
    return set_error(cudaErrorInvalidResourceHandle,
                     std::string(function) + ": no such stream or event");
}

template <typename Handle>
void make(Handle** handle, Handle content) {
    *handle = new Handle(std::move(content));
    const std::lock_guard lock(handles_mutex);
    handles.insert(*handle);
}
template <typename Handle>
cudaError_t destroy(const char* function, Handle* handle) {
    if (const cudaError_t error = check_handle(function, handle)) return error;
    const std::lock_guard lock(handles_mutex);
    handles.erase(handle);
    delete handle;
    return cudaSuccess;
}

/// What a query says of a ticket or of a stream.
template <typename Asked>
cudaError_t readiness(const Asked& asked) {
    return is_done(asked) ? held_failure() : cudaErrorNotReady;
}

}  // namespace

cudaError_t check_stream(const char* function, cudaStream_t stream) {
    return stream == nullptr ? cudaSuccess : check_handle(function, stream);
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

cudaError_t cudaDeviceSynchronize() {
    observe::host_waits_for_device();
    demand_all();
    return cudaPeekAtLastError();
}

// ------------------------------------------------------------------------------ streams
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    const bool blocking = !(flags & cudaStreamNonBlocking);
    make(stream, {make_queue(blocking)});
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
    leave_queue(stream->queue);
    return destroy("cudaStreamDestroy", stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (const cudaError_t error = check_stream("cudaStreamSynchronize", stream))
        return error;
    observe::host_waits_for_stream(stream);
    demand_stream(stream);
    return cudaPeekAtLastError();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (const cudaError_t error = check_stream("cudaStreamQuery", stream)) return error;
    return readiness(stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (const cudaError_t error = check_stream("cudaStreamWaitEvent", stream))
        return error;
    if (const cudaError_t error = check_handle("cudaStreamWaitEvent", event))
        return error;
    observe::stream_waits(stream, event);
    if (event->last == nullptr || !holds_work()) return cudaSuccess;
    return enqueue(
        stream, [] { return cudaSuccess; }, nullptr, event->last->ticket);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    return submit("cudaLaunchHostFunc", stream, [=] {
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
    observe::event_recorded(event, stream);
    event->last = std::make_shared<Recording>();
    const auto record = [recording = event->last] {
        recording->time = std::chrono::steady_clock::now();
        return cudaSuccess;
    };
    return holds_work() ? enqueue(stream, record, &event->last->ticket) : record();
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if (const cudaError_t error = check_handle("cudaEventSynchronize", event))
        return error;
    observe::host_waits_for_event(event);
    return event->last == nullptr ? cudaSuccess : demand(event->last->ticket);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (const cudaError_t error = check_handle("cudaEventQuery", event)) return error;
    return event->last == nullptr ? cudaSuccess : readiness(event->last->ticket);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start,
                                 cudaEvent_t end) {
    for (cudaEvent_t event : {start, end}) {
        if (const cudaError_t error = check_handle("cudaEventElapsedTime", event))
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
