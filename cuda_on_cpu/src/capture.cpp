// capture.cpp: streams whose work is written down instead of done.

#include "capture.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"
#include "handles.h"

namespace cuda_on_cpu {

/// From cudaStreamBeginCapture() to cudaStreamEndCapture().
struct Capture {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    std::thread::id thread = std::this_thread::get_id();
    bool is_invalid = false, has_ended = false;
    std::vector<cudaStream_t> streams;  // by lane
    /// By lane: of each lane, how many nodes are done before its next one.
    std::vector<std::vector<int>> happened;
    std::shared_ptr<Graph> graph = std::make_shared<Graph>();

    int nodes_of(int lane) const { return happened[lane][lane]; }
    bool has_blocking_stream() const {
        return std::any_of(streams.begin(), streams.end(),
                           [](cudaStream_t stream) { return stream->blocking; });
    }
    int add(cudaStream_t stream) {
        const int lane = int(streams.size());
        streams.push_back(stream);
        for (std::vector<int>& known : happened) known.resize(lane + 1);
        happened.emplace_back(lane + 1);
        graph->lanes = lane + 1;
        return lane;
    }
};

namespace {

std::mutex captures_mutex;  // of all that is below, and of all captures
std::vector<std::shared_ptr<Capture>> captures;
std::atomic<int> capture_count{0};  // for those who need not lock

cudaError_t refuse(cudaError_t error, const char* function, const std::string& why) {
    return set_error(error, std::string(function) + ": " + why);
}

/// Refuses, and ends all captures of which `concerns(capture)`.
template <typename Concerns>
cudaError_t refuse_for(cudaError_t error, const char* function, const std::string& why,
                       Concerns concerns) {
    bool any = false;
    for (const std::shared_ptr<Capture>& capture : captures)
        if (concerns(*capture)) any = capture->is_invalid = true;
    return any ? refuse(error, function, why) : cudaSuccess;
}

void finish(const std::shared_ptr<Capture>& capture) {
    for (cudaStream_t stream : capture->streams) stream->captured = {};
    capture->has_ended = true;
    std::erase(captures, capture);
    --capture_count;
}

}  // namespace

bool is_captured(cudaStream_t stream) {
    if (stream == nullptr || capture_count == 0) return false;
    const std::lock_guard lock(captures_mutex);
    return stream->captured.by != nullptr;
}

cudaError_t capture_work(cudaStream_t stream, Work work) {
    const std::lock_guard lock(captures_mutex);
    const auto& [by, lane] = stream->captured;
    by->graph->steps.push_back({Graph::Kind::work, lane, 0, std::move(work)});
    ++by->happened[lane][lane];
    return cudaSuccess;
}

CapturedEventPtr capture_record(cudaStream_t stream) {
    const std::lock_guard lock(captures_mutex);
    const auto& [by, lane] = stream->captured;
    const int number = by->graph->events++;
    by->graph->steps.push_back({Graph::Kind::record, lane, number, {}});
    return std::make_shared<CapturedEvent>(CapturedEvent{by, number, by->happened[lane]});
}

cudaError_t capture_wait(cudaStream_t stream, const CapturedEventPtr& event) {
    constexpr const char* kFunction = "cudaStreamWaitEvent";
    const std::lock_guard lock(captures_mutex);
    Capture& by = *event->by;
    if (by.has_ended)
        return refuse(cudaErrorCapturedEvent, kFunction,
                      "the event was recorded in a capture that has ended");
    if (by.is_invalid)
        return refuse(cudaErrorStreamCaptureInvalidated, kFunction,
                      "an earlier call spoilt the capture of the event");
    if (stream == nullptr)
        return refuse_for(cudaErrorStreamCaptureImplicit, kFunction,
                          "the legacy default stream cannot be captured",
                          [&](const Capture& each) { return &each == &by; });
    Captured& captured = stream->captured;
    if (captured.by != nullptr && captured.by != event->by)
        return refuse_for(cudaErrorStreamCaptureMerge, kFunction,
                          "the event belongs to another capture than the stream",
                          [&](const Capture& each) {
                              return &each == &by || &each == captured.by.get();
                          });
    if (captured.by == nullptr) captured = {event->by, by.add(stream)};
    by.graph->steps.push_back({Graph::Kind::wait, captured.lane, event->number, {}});
    std::vector<int>& known = by.happened[captured.lane];
    for (std::size_t lane = 0; lane < event->happened.size(); ++lane)
        known[lane] = std::max(known[lane], event->happened[lane]);
    return cudaSuccess;
}

void capture_memory(cudaStream_t stream, std::shared_ptr<void> memory) {
    const std::lock_guard lock(captures_mutex);
    const void* const address = memory.get();
    stream->captured.by->graph->memory[address] = {std::move(memory)};
}

bool capture_free(cudaStream_t stream, const void* memory) {
    const std::lock_guard lock(captures_mutex);
    auto& all = stream->captured.by->graph->memory;
    const auto found = all.find(memory);
    if (found == all.end()) return false;
    return !std::exchange(found->second.is_freed, true);
}

void leave_capture(cudaStream_t stream) {
    if (!is_captured(stream)) return;
    const std::lock_guard lock(captures_mutex);
    const std::shared_ptr<Capture> by = stream->captured.by;
    by->is_invalid = true;
    if (by->streams.front() == stream) return finish(by);
    std::erase(by->streams, stream);
}

// ---------------------------------------------------------------------- what is
// forbidden
cudaError_t check_capture(const char* function, cudaStream_t stream) {
    if (capture_count == 0) return cudaSuccess;
    const std::lock_guard lock(captures_mutex);
    if (stream == nullptr)
        return refuse_for(cudaErrorStreamCaptureImplicit, function,
                          "the legacy default stream waits for ordinary streams, one of "
                          "which is being captured",
                          [](const Capture& each) { return each.has_blocking_stream(); });
    if (stream->captured.by != nullptr && stream->captured.by->is_invalid)
        return refuse(cudaErrorStreamCaptureInvalidated, function,
                      "an earlier call spoilt the capture of this stream");
    return cudaSuccess;
}

cudaError_t refuse_wait(const char* function, cudaStream_t stream) {
    if (!is_captured(stream)) return cudaSuccess;
    const std::lock_guard lock(captures_mutex);
    return refuse_for(
        cudaErrorStreamCaptureUnsupported, function,
        "the stream is being captured: its work is not under way",
        [&](const Capture& each) { return &each == stream->captured.by.get(); });
}

cudaError_t refuse_wait(const char* function, const CapturedEventPtr& event) {
    if (event == nullptr) return cudaSuccess;
    const std::lock_guard lock(captures_mutex);
    event->by->is_invalid = true;
    return refuse(cudaErrorCapturedEvent, function,
                  "the event was recorded in a captured stream");
}

cudaError_t refuse_device_wait(const char* function) {
    if (capture_count == 0) return cudaSuccess;
    const std::lock_guard lock(captures_mutex);
    return refuse_for(cudaErrorStreamCaptureUnsupported, function,
                      "a stream of the device is being captured",
                      [](const Capture&) { return true; });
}

cudaError_t refuse_unsafe(const char* function) {
    if (capture_count == 0) return cudaSuccess;
    const std::lock_guard lock(captures_mutex);
    return refuse_for(cudaErrorStreamCaptureUnsupported, function,
                      "no graph can repeat it, and the mode of a capture forbids it",
                      [](const Capture& each) {
                          return each.thread == std::this_thread::get_id()
                                     ? each.mode != cudaStreamCaptureModeRelaxed
                                     : each.mode == cudaStreamCaptureModeGlobal;
                      });
}

cudaError_t refuse_isolation(const char* function, cudaStream_t stream) {
    if (!is_captured(stream)) return cudaSuccess;
    const std::lock_guard lock(captures_mutex);
    return refuse_for(
        cudaErrorStreamCaptureIsolation, function,
        "the event was recorded in a stream that is not captured",
        [&](const Capture& each) { return &each == stream->captured.by.get(); });
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

// ------------------------------------------------------------------- beginning and end
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    constexpr const char* kFunction = "cudaStreamBeginCapture";
    if (stream == nullptr)
        return refuse(cudaErrorStreamCaptureUnsupported, kFunction,
                      "the legacy default stream cannot be captured");
    if (const cudaError_t error = check_stream(kFunction, stream)) return error;
    if (is_captured(stream))
        return refuse(cudaErrorIllegalState, kFunction, "the stream is captured already");
    const std::lock_guard lock(captures_mutex);
    const auto capture = std::make_shared<Capture>();
    capture->mode = mode;
    stream->captured = {capture, capture->add(stream)};
    captures.push_back(capture);
    ++capture_count;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    constexpr const char* kFunction = "cudaStreamEndCapture";
    *graph = nullptr;
    if (stream != nullptr)
        if (const cudaError_t error = check_handle(kFunction, stream)) return error;
    if (!is_captured(stream))
        return refuse(cudaErrorIllegalState, kFunction, "the stream is not captured");
    const std::lock_guard lock(captures_mutex);
    const std::shared_ptr<Capture> by = stream->captured.by;
    if (by->streams.front() != stream) {
        by->is_invalid = true;
        return refuse(cudaErrorStreamCaptureUnmatched, kFunction,
                      "the capture began in another stream");
    }
    if (by->mode != cudaStreamCaptureModeRelaxed &&
        by->thread != std::this_thread::get_id())
        return refuse(cudaErrorStreamCaptureWrongThread, kFunction,
                      "the capture began on another CPU thread");
    finish(by);
    if (by->is_invalid)
        return refuse(cudaErrorStreamCaptureInvalidated, kFunction,
                      "an earlier call spoilt the capture");
    for (int lane = 1; lane < by->graph->lanes; ++lane)
        if (by->happened[0][lane] < by->nodes_of(lane))
            return refuse(cudaErrorStreamCaptureUnjoined, kFunction,
                          "work of another captured stream was not waited for");
    make(graph, {by->graph});
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    constexpr const char* kFunction = "cudaStreamIsCapturing";
    if (stream != nullptr)
        if (const cudaError_t error = check_handle(kFunction, stream)) return error;
    const std::lock_guard lock(captures_mutex);
    *status = cudaStreamCaptureStatusNone;
    if (stream == nullptr) {
        for (const std::shared_ptr<Capture>& capture : captures)
            if (capture->has_blocking_stream())
                return refuse(cudaErrorStreamCaptureImplicit, kFunction,
                              "an ordinary stream is being captured");
        return cudaSuccess;
    }
    if (const std::shared_ptr<Capture>& by = stream->captured.by)
        *status = by->is_invalid ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
