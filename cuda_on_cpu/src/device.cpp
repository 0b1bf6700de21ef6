// device.cpp: the emulated device, streams and events.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <set>

#include "block.h"
#include "error.h"

struct CUstream_st {};
struct CUevent_st {
    bool recorded = false, timed = true;
    std::chrono::steady_clock::time_point time;
};

namespace cuda_on_cpu {
namespace {

std::mutex handles_mutex;
std::set<const void*> handles;  // streams and events that exist

cudaError_t check_device(int device) {
    if (device == 0) return cudaSuccess;
    return set_error(cudaErrorInvalidDevice, "device = " + std::to_string(device) +
                                                 ": the executor emulates one: 0");
}

/// A stream may be null, the default stream; an event may not.
cudaError_t check_handle(const char* function, const void* handle) {
    const std::lock_guard lock(handles_mutex);
    if (handles.contains(handle)) return cudaSuccess;
    return set_error(cudaErrorInvalidResourceHandle,
                     std::string(function) + ": no such stream or event");
}
cudaError_t check_stream(const char* function, cudaStream_t stream) {
    return stream == nullptr ? cudaSuccess : check_handle(function, stream);
}

template <typename Handle>
void make(Handle** handle) {
    *handle = new Handle;
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

}  // namespace

int max_active_blocks(int threads, std::size_t smem) {
    if (threads < 1 || threads > kMaxThreads || smem > kMaxSharedMemory) return 0;
    const int warps = (threads + kWarpSize - 1) / kWarpSize;
    // Each block's shared memory costs one KiB more than it asks for.
    const auto by_memory = int(228 * 1024 / (smem + 1024));
    return std::min({32, 64 / warps, by_memory});
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

// ------------------------------------------------------------------------------- device
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    return check_device(device);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    if (const cudaError_t error = check_device(device)) return error;
    *properties = {};
    const Options& chosen = options();
    std::snprintf(properties->name, sizeof properties->name,
                  "CUDA on a CPU, emulated, %d thread%s, schedule %s", chosen.threads,
                  chosen.threads == 1 ? "" : "s", to_string(chosen.schedule).c_str());
    std::size_t free_bytes = 0;
    cudaMemGetInfo(&free_bytes, &properties->totalGlobalMem);
    properties->sharedMemPerBlock = 48 * 1024;
    properties->sharedMemPerMultiprocessor = 228 * 1024;
    properties->sharedMemPerBlockOptin = kMaxSharedMemory;
    properties->reservedSharedMemPerBlock = 1024;
    properties->regsPerBlock = 65536;
    properties->warpSize = kWarpSize;
    properties->maxThreadsPerBlock = kMaxThreads;
    const int threads[] = {1024, 1024, 64}, grid[] = {2147483647, 65535, 65535};
    std::copy(threads, threads + 3, properties->maxThreadsDim);
    std::copy(grid, grid + 3, properties->maxGridSize);
    properties->major = 9;
    properties->multiProcessorCount = chosen.multiprocessors;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxBlocksPerMultiProcessor = 32;
    properties->l2CacheSize = 50 * 1024 * 1024;
    properties->unifiedAddressing = properties->managedMemory = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (const cudaError_t error = cudaGetDeviceProperties(&p, device)) return error;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = int(p.sharedMemPerBlock); break;
        case cudaDevAttrWarpSize: *value = p.warpSize; break;
        case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor:
            *value = p.maxThreadsPerMultiProcessor;
            break;
        case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
            *value = int(p.sharedMemPerMultiprocessor);
            break;
        case cudaDevAttrCooperativeLaunch: *value = p.cooperativeLaunch; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = int(p.sharedMemPerBlockOptin);
            break;
        default:
            return set_error(cudaErrorInvalidValue,
                             "device attribute = " + std::to_string(int(attribute)) +
                                 ": the executor has no such");
    }
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return cudaSuccess;
}

// ------------------------------------------------------------------------------ streams
cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    make(stream);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    return cudaStreamCreate(stream);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return destroy("cudaStreamDestroy", stream);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (const cudaError_t error = check_stream("cudaStreamSynchronize", stream))
        return error;
    return cudaPeekAtLastError();
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    return check_stream("cudaStreamQuery", stream);
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    if (const cudaError_t error = check_stream("cudaStreamWaitEvent", stream))
        return error;
    return check_handle("cudaStreamWaitEvent", event);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    if (const cudaError_t error = check_stream("cudaLaunchHostFunc", stream))
        return error;
    function(data);
    return cudaSuccess;
}

// ------------------------------------------------------------------------------- events
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    make(event);
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    make(event);
    (*event)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    return destroy("cudaEventDestroy", event);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    if (const cudaError_t error = check_handle("cudaEventRecord", event)) return error;
    if (const cudaError_t error = check_stream("cudaEventRecord", stream)) return error;
    event->recorded = true;
    event->time = std::chrono::steady_clock::now();
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return check_handle("cudaEventSynchronize", event);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    return check_handle("cudaEventQuery", event);
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start,
                                 cudaEvent_t end) {
    for (cudaEvent_t event : {start, end}) {
        if (const cudaError_t error = check_handle("cudaEventElapsedTime", event))
            return error;
        if (!event->recorded || !event->timed)
            return set_error(cudaErrorInvalidResourceHandle,
                             "cudaEventElapsedTime: both events must be recorded, and "
                             "made with timing");
    }
    const std::chrono::duration<float, std::milli> passed = end->time - start->time;
    *milliseconds = passed.count();
    return cudaSuccess;
}
