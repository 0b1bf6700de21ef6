/// @file
/// Device memory for tests of kernels.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <type_traits>
#include <vector>

#include "gpu/check.h"

namespace moe::test {

/// An array in device memory that lives as long as this object.
template <typename T>
class DeviceArray {
    static_assert(std::is_trivially_copyable_v<T>);

  public:
    /// Not initialised.
    explicit DeviceArray(std::size_t count) : count_(count) {
        void* bytes = nullptr;
        gpu::check(cudaMalloc(&bytes, count * sizeof(T)), "cudaMalloc");
        data_ = static_cast<T*>(bytes);
    }
    explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
        gpu::check(
            cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice),
            "cudaMemcpy to the device");
    }
    ~DeviceArray() { cudaFree(data_); }
    DeviceArray(const DeviceArray&) = delete;
    DeviceArray& operator=(const DeviceArray&) = delete;

    /// For kernels.
    T* data() { return data_; }
    std::size_t size() const { return count_; }

    /// A copy; waits for the kernels before it. DeviceError when one of them failed.
    std::vector<T> to_host() const {
        gpu::check(cudaDeviceSynchronize(), "kernel");
        std::vector<T> values(count_);
        gpu::check(
            cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
            "cudaMemcpy to the host");
        return values;
    }

  private:
    T* data_ = nullptr;
    std::size_t count_ = 0;
};

}  // namespace moe::test
