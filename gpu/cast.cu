#include "gpu/cast.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::gpu {
namespace {

/// One thread per element.
template <typename To, typename From>
__global__ void cast_kernel(To* target, const From* source, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) target[i] = narrow<To>(widen(source[i]));
}

template <typename To, typename From>
Tensor cast_to(const Tensor& source) {
    Tensor target = device_empty<To>(source.shape());
    launch("cast_kernel", cast_kernel<To, From>, one_thread_per(source.numel()),
           device_data<To>(target), device_data<From>(source), source.numel());
    return target;
}

}  // namespace

Tensor cast(const Tensor& source, DType dtype) {
    if (source.dtype() == dtype) return source;
    if (dtype == DType::f32 && source.dtype() == DType::bf16)
        return cast_to<float, __nv_bfloat16>(source);
    MOE_CHECK(dtype == DType::bf16 && source.dtype() == DType::f32);
    return cast_to<__nv_bfloat16, float>(source);
}

}  // namespace moe::gpu
