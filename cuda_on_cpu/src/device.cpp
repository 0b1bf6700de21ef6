// device.cpp: the emulated device.

#include <algorithm>
#include <cstdio>

#include "block.h"
#include "error.h"

namespace cuda_on_cpu {
namespace {

cudaError_t check_device(int device) {
    if (device == 0) return cudaSuccess;
    return set_error(cudaErrorInvalidDevice, "device = " + std::to_string(device) +
                                                 ": the executor emulates one: 0");
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
                  "CUDA on a CPU, emulated, %d thread%s, schedule %s%s", chosen.threads,
                  chosen.threads == 1 ? "" : "s", to_string(chosen.schedule).c_str(),
                  chosen.streams == Streams::held ? ", streams held" : "");
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
