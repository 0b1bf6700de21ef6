/// @file
/// Tensors in device memory, and their elements as kernels want them.
#pragma once

#include <cuda_bf16.h>

#include <vector>

#include "core/tensor.h"
#include "gpu/convert.h"

namespace moe::gpu {

/// Makes MemorySpace::device known to core/transfer.h: cudaMalloc, cudaMemcpy, … Safe to
/// call more than once.
void register_device_memory();

/// What is missing to run kernels, "needs an NVIDIA GPU and its driver (…)", or nothing.
std::string missing_device();

/// "emulated on the CPU, forward schedule, 2 threads" or the GPU's name. DeviceError
/// when there is no device.
std::string device_name();

/// True when kernels run on the CPU executor: their times say nothing about a GPU.
bool is_emulated();

/// The DType of an element type of kernels: that of core, and __nv_bfloat16 for bf16.
template <typename T>
inline constexpr DType device_dtype = dtype_of<T>;
template <>
inline constexpr DType device_dtype<__nv_bfloat16> = DType::bf16;

/// Uninitialised, or zeroed, memory on the device.
template <typename T>
Tensor device_empty(Shape shape) {
    return Tensor::empty(std::move(shape), device_dtype<T>, MemorySpace::device);
}
template <typename T>
Tensor device_zeros(Shape shape) {
    return Tensor::zeros(std::move(shape), device_dtype<T>, MemorySpace::device);
}

/// First element, for a kernel; null when the tensor is undefined. InternalError when the
/// tensor lives elsewhere or holds another type.
template <typename T>
T* device_data(Tensor& tensor) {
    if (!tensor.defined()) return nullptr;
    MOE_CHECK(tensor.space() == MemorySpace::device);
    MOE_CHECK(tensor.dtype() == device_dtype<T>);
    return static_cast<T*>(tensor.view().bytes);
}
template <typename T>
const T* device_data(const Tensor& tensor) {
    return device_data<T>(const_cast<Tensor&>(tensor));
}

/// First element of an i64 tensor of counts, as atomicAdd() and atomicMin() want it: CUDA
/// has 64-bit atomics for `unsigned long long`.
inline unsigned long long* device_counts(Tensor& tensor) {
    return reinterpret_cast<unsigned long long*>(device_data<std::int64_t>(tensor));
}

/// Copies a host vector to the device, shape (size). Returns when done.
template <typename T>
Tensor to_device(const std::vector<T>& values);

/// Copies a device tensor to the host. Waits for the kernels before it.
template <typename T>
std::vector<T> to_host(const Tensor& tensor);

}  // namespace moe::gpu
