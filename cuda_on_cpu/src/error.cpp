#include "error.h"

#include <atomic>
#include <mutex>

#include "cuda_on_cpu/runtime_api.h"

namespace cuda_on_cpu {
namespace {

struct ErrorText {
    cudaError_t error;
    const char *name, *sentence;
};
constexpr ErrorText kTexts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInitializationError, "cudaErrorInitializationError",
     "initialization error"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInvalidDevicePointer, "cudaErrorInvalidDevicePointer",
     "invalid device pointer"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection",
     "invalid copy direction for memcpy"},
    {cudaErrorInvalidDeviceFunction, "cudaErrorInvalidDeviceFunction",
     "invalid device function"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle",
     "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorAssert, "cudaErrorAssert", "device-side assert triggered"},
    {cudaErrorHardwareStackError, "cudaErrorHardwareStackError", "hardware stack error"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined",
     "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorStreamCaptureWrongThread, "cudaErrorStreamCaptureWrongThread",
     "attempt to terminate a thread-local capture sequence from another thread"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

thread_local cudaError_t last_error = cudaSuccess;
thread_local cudaError_t story_error = cudaSuccess;
thread_local std::string story;

// The last failure of held work, for all threads …
std::mutex failure_mutex;
cudaError_t failure_error = cudaSuccess;
std::string failure_story;
std::atomic<std::uint64_t> failure_count{0};

/// … and what one thread knows of it.
struct Told {
    std::uint64_t count = failure_count;  // a new thread has nothing to do with old ones
    cudaError_t error = cudaSuccess;      // until cudaGetLastError()
    std::string story;
};
thread_local Told told;

const ErrorText& find(cudaError_t error) {
    for (const ErrorText& text : kTexts)
        if (text.error == error) return text;
    return kTexts[std::size(kTexts) - 1];
}

}  // namespace

cudaError_t set_error(cudaError_t error, std::string text) {
    last_error = story_error = error;
    story = std::move(text);
    return error;
}

void note_held_failure(cudaError_t error) {
    const std::lock_guard lock(failure_mutex);
    failure_error = error;
    failure_story = cudaGetErrorString(error);
    ++failure_count;
}

cudaError_t held_failure() {
    if (told.count != failure_count) {
        const std::lock_guard lock(failure_mutex);
        told = {failure_count, failure_error, failure_story};
    }
    return told.error == cudaSuccess ? cudaSuccess : set_error(told.error, told.story);
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

const char* cudaGetErrorName(cudaError_t error) {
    return find(error).name;
}

const char* cudaGetErrorString(cudaError_t error) {
    return error != cudaSuccess && error == story_error ? story.c_str()
                                                        : find(error).sentence;
}

cudaError_t cudaGetLastError() {
    if (last_error == cudaSuccess) held_failure();
    const cudaError_t error = last_error;
    last_error = told.error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError() {
    return last_error;
}
