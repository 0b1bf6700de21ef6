// allgather_dispatcher.cu: the local experts' columns of everybody's choices.

#include "naive_gpu/allgather_dispatcher.h"

namespace moe::naive {
namespace {

/// One thread per token and local expert.
template <typename E>
__global__ void slice_experts_kernel(E* slice, const E* source, std::int64_t first,
                                     std::int64_t num_experts, std::int64_t count,
                                     std::int64_t num_local) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / num_local, l = i % num_local;
    slice[i] = source[t * num_experts + first + l];
}

/// One thread per token and local expert.
__global__ void slice_experts_backward_kernel(float* dsource, const float* dslice,
                                              std::int64_t first,
                                              std::int64_t num_experts,
                                              std::int64_t count,
                                              std::int64_t num_local) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / num_local, l = i % num_local;
    dsource[t * num_experts + first + l] = dslice[i];
}

}  // namespace

template <typename E>
Tensor slice_experts(const Tensor& source, std::int64_t first, std::int64_t num_local) {
    Tensor slice = gpu::device_empty<E>({source.dim(0), num_local});
    gpu::launch("slice_experts_kernel", slice_experts_kernel<E>,
                gpu::one_thread_per(slice.numel()), gpu::device_data<E>(slice),
                gpu::device_data<E>(source), first, source.dim(1), slice.numel(),
                num_local);
    return slice;
}

Tensor slice_experts_backward(const Tensor& dslice, std::int64_t first,
                              std::int64_t num_experts) {
    Tensor dsource = gpu::device_zeros<float>({dslice.dim(0), num_experts});
    gpu::launch("slice_experts_backward_kernel", slice_experts_backward_kernel,
                gpu::one_thread_per(dslice.numel()), gpu::device_data<float>(dsource),
                gpu::device_data<float>(dslice), first, num_experts, dslice.numel(),
                dslice.dim(1));
    return dsource;
}

template Tensor slice_experts<float>(const Tensor&, std::int64_t, std::int64_t);
template Tensor slice_experts<std::uint8_t>(const Tensor&, std::int64_t, std::int64_t);

}  // namespace moe::naive
