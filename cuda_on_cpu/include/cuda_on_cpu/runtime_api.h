/// @file
/// The part of the CUDA runtime that is provided. What is missing does not compile, so
/// that nothing is silently ignored. Everything happens when it is called, unless streams
/// hold their work back: see cuda_on_cpu::Streams.
#pragma once

#include <memory>
#include <tuple>
#include <type_traits>

#include "cuda_on_cpu/executor.h"
#include "cuda_on_cpu/runtime_types.h"
#include "vector_types.h"

// ------------------------------------------------------------------------------- errors
const char* cudaGetErrorName(cudaError_t error);
/// CUDA's sentence; for the error that happened last on this CPU thread, what happened:
/// kernel, block, thread and source line, or the argument that was wrong.
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

// ------------------------------------------------------------------------------- device
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
/// Of the driver's functions there is cuTensorMapEncodeTiled.
cudaError_t cudaGetDriverEntryPointByVersion(
    const char* symbol, void** function, unsigned version, unsigned long long flags,
    cudaDriverEntryPointQueryResult* result = nullptr);

// ------------------------------------------------------------------------------- memory
// Device memory is aligned to 256 bytes and starts as words 0x7FFFFFFF: NaN as
// float, double or bf16, and too large an index as an integer.
cudaError_t cudaMalloc(void** pointer, std::size_t bytes);
cudaError_t cudaFree(void* pointer);
cudaError_t cudaMallocAsync(void** pointer, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream);
cudaError_t cudaMallocHost(void** pointer, std::size_t bytes);
cudaError_t cudaFreeHost(void* pointer);
cudaError_t cudaMallocManaged(void** pointer, std::size_t bytes, unsigned flags = 1);
cudaError_t cudaMemcpy(void* target, const void* source, std::size_t bytes,
                       cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy2D(void* target, std::size_t target_pitch, const void* source,
                         std::size_t source_pitch, std::size_t width, std::size_t height,
                         cudaMemcpyKind kind);
cudaError_t cudaMemcpy2DAsync(void* target, std::size_t target_pitch, const void* source,
                              std::size_t source_pitch, std::size_t width,
                              std::size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream = nullptr);
cudaError_t cudaMemset(void* pointer, int value, std::size_t bytes);
cudaError_t cudaMemsetAsync(void* pointer, int value, std::size_t bytes,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                     const void* pointer);

template <typename T>
cudaError_t cudaMalloc(T** pointer, std::size_t bytes) {
    return cudaMalloc(reinterpret_cast<void**>(pointer), bytes);
}
template <typename T>
cudaError_t cudaMallocAsync(T** pointer, std::size_t bytes, cudaStream_t stream) {
    return cudaMallocAsync(reinterpret_cast<void**>(pointer), bytes, stream);
}
template <typename T>
cudaError_t cudaMallocHost(T** pointer, std::size_t bytes) {
    return cudaMallocHost(reinterpret_cast<void**>(pointer), bytes);
}
template <typename T>
cudaError_t cudaMallocManaged(T** pointer, std::size_t bytes, unsigned flags = 1) {
    return cudaMallocManaged(reinterpret_cast<void**>(pointer), bytes, flags);
}

// -------------------------------------------------------------------- streams and events
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags,
                                         int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                unsigned flags = 0);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
/// Time on this machine's CPU: it says nothing about a GPU.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end);

// ------------------------------------------------------------------------------- graphs
// From its capture to its launches: what a stream gets in between is written down.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
/// @param nodes  null: count them
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes,
                              std::size_t* count);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);

// ------------------------------------------------------------------------------- launch
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute* attrs = nullptr;
    unsigned numAttrs = 0;
};

namespace cuda_on_cpu {

/// A kernel with its arguments, to be called once per CUDA thread.
struct KernelCall {
    void (*invoke)(const void* arguments) noexcept;
    const void* arguments;
    std::size_t argument_bytes;
    const void* kernel;                 ///< its address
    std::shared_ptr<const void> owner;  ///< of the arguments
};
cudaError_t launch(const cudaLaunchConfig_t& config, const KernelCall& call);

/// Notes an argument that is a pointer to neither device memory nor null.
cudaError_t check_pointer_argument(int index, const void* pointer, const void* kernel);

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute,
                                   int value);
cudaError_t get_function_attributes(cudaFuncAttributes* attributes, const void* kernel);
int max_active_blocks(int threads, std::size_t smem);

template <typename T>
cudaError_t check_argument(int index, const T& value, const void* kernel) {
    if constexpr (std::is_pointer_v<T> && !std::is_function_v<std::remove_pointer_t<T>>)
        return check_pointer_argument(index, value, kernel);
    else
        return cudaSuccess;
}

}  // namespace cuda_on_cpu

/// Runs the kernel. Arguments are converted to the parameters' types once, now, and every
/// CUDA thread gets its own copy.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config,
                               void (*kernel)(Parameters...), Arguments&&... arguments) {
    static_assert((!std::is_reference_v<Parameters> && ...),
                  "a kernel's parameters are copied to the device: no references");
    using Values = std::tuple<std::remove_cv_t<Parameters>...>;
    struct Packed {
        void (*kernel)(Parameters...);
        Values values;
    };
    const auto packed = std::make_shared<const Packed>(Packed{
        kernel, Values(static_cast<Parameters>(std::forward<Arguments>(arguments))...)});
    const void* address = reinterpret_cast<const void*>(kernel);
    int index = 0;
    cudaError_t status = cudaSuccess;
    std::apply(
        [&](const auto&... values) {
            ((status = status != cudaSuccess
                           ? status
                           : cuda_on_cpu::check_argument(index++, values, address)),
             ...);
        },
        packed->values);
    if (status != cudaSuccess) return status;
    const auto invoke = [](const void* bytes) noexcept {
        const auto& self = *static_cast<const Packed*>(bytes);
        std::apply(self.kernel, self.values);
    };
    return cuda_on_cpu::launch(*config,
                               {invoke, packed.get(), sizeof *packed, address, packed});
}

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...),
                                 cudaFuncAttribute attribute, int value) {
    return cuda_on_cpu::set_function_attribute(reinterpret_cast<const void*>(kernel),
                                               attribute, value);
}
template <typename... Parameters>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes,
                                  void (*kernel)(Parameters...)) {
    return cuda_on_cpu::get_function_attributes(attributes,
                                                reinterpret_cast<const void*>(kernel));
}

/// By threads and shared memory alone: the executor knows no registers.
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel,
                                                          int threads, std::size_t smem) {
    *blocks = cuda_on_cpu::max_active_blocks(threads, smem);
    return cudaSuccess;
}
