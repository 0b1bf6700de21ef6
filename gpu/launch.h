/// @file
/// Starting kernels, and the one form of shared memory. The same text serves nvcc and the
/// CPU executor, so kernels are launched by a function, not by the three angle brackets.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <utility>

#include "gpu/check.h"
#include "gpu/counters.h"
#include "gpu/stream.h"

namespace moe::gpu {

/// How a kernel is started; what stands between the angle brackets of a launch.
struct LaunchConfig {
    dim3 grid = 1, block = 1;
    std::size_t smem = 0;  ///< bytes of shared memory per block: sizeof(Smem)
    cudaStream_t stream = current_stream();
    dim3 cluster = 1;  ///< blocks that run together; divides the grid
};

/// One thread for each of `count` items, in blocks of 256: item = blockIdx.x * blockDim.x
/// + threadIdx.x, and threads past the last item have nothing to do.
inline LaunchConfig one_thread_per(std::int64_t count,
                                   cudaStream_t stream = current_stream()) {
    constexpr unsigned kThreads = 256;
    return {dim3(unsigned((count + kThreads - 1) / kThreads)), dim3(kThreads), 0, stream};
}

/// Starts `kernel`; arguments are converted to its parameter types. A grid without blocks
/// starts nothing: no work is not an error. DeviceError, naming the kernel, when the
/// launch is refused.
/// @param name  the kernel's, for messages
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchConfig& config,
            Arguments&&... arguments) {
    if (config.grid.x == 0 || config.grid.y == 0 || config.grid.z == 0) return;
#ifndef __CUDACC__
    cuda_on_cpu::name_next_launch(name);
#endif
    cudaLaunchConfig_t launch_config = {};
    launch_config.gridDim = config.grid;
    launch_config.blockDim = config.block;
    launch_config.dynamicSmemBytes = config.smem;
    launch_config.stream = config.stream;
    // TUTORIAL: a block may use 48 KiB of shared memory without asking; more has to be
    // requested for each kernel.
    if (config.smem > 48 * 1024)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   int(config.smem)),
              std::string(name) + ", shared memory");
    // TUTORIAL: every GPU that has clusters runs 8 blocks in one; up to 16 must be asked
    // for, and may find no place.
    const unsigned blocks = config.cluster.x * config.cluster.y * config.cluster.z;
    if (blocks > 8)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed,
                                   1),
              std::string(name) + ", cluster");
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim = {config.cluster.x, config.cluster.y, config.cluster.z};
    launch_config.attrs = &cluster;
    launch_config.numAttrs = blocks == 1 ? 0 : 1;
    count_launch(name, config.stream);
    check(
        cudaLaunchKernelEx(&launch_config, kernel, std::forward<Arguments>(arguments)...),
        name);
}

/// Waits until the device has done all its work. DeviceError when a kernel failed.
inline void synchronize() {
    count_host_wait();
    check(cudaDeviceSynchronize(), "kernel");
}

/// The block's shared memory as a struct; the launch passes sizeof(Smem) as smem. Fresh
/// shared memory holds anything (on the CPU executor 0xFF: NaN, -1).
template <typename Smem>
__device__ Smem& shared_memory() {
#ifdef __CUDACC__
    extern __shared__ __align__(1024) unsigned char raw[];
    return *reinterpret_cast<Smem*>(raw);
#else
    return *static_cast<Smem*>(cuda_on_cpu::shared_arena(sizeof(Smem)));
#endif
}

}  // namespace moe::gpu
