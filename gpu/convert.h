/// @file
/// Element types inside kernels: values are stored as T and computed with as float (or
/// double).
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

namespace moe::gpu {

/// The type in which sums over T are kept: fp32, and fp64 for fp64. Probabilities have
/// it as well.
template <typename T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

/// A stored value as a number to compute with.
template <typename T>
__device__ Accumulator<T> widen(T value) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
        return __bfloat162float(value);
    else
        return value;
}

/// A computed number as a stored value, rounded to nearest even.
template <typename T>
__device__ T narrow(Accumulator<T> value) {
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
        return __float2bfloat16(value);
    else
        return value;
}

}  // namespace moe::gpu
