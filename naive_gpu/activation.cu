// activation.cu: the experts' activation on all rows, and back.

#include "naive_gpu/activation.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::naive {
namespace {

/// One thread per element of a (N, F).
template <typename T>
__global__ void activation_forward_kernel(T* a, const float* h, const float* p,
                                          ExpertActivation activation,
                                          std::int64_t num_rows) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_rows * activation.ffn) return;
    const std::int64_t row = i / activation.ffn, f = i % activation.ffn;
    const float weight = p != nullptr ? p[row] : 1.0f;
    a[i] = gpu::narrow<T>(activation.forward(h + row * activation.width(), f, weight));
}

}  // namespace

template <typename T>
Tensor activation_forward(const ExpertActivation& activation, const Tensor& h,
                          const Tensor& p, cudaStream_t stream) {
    const std::int64_t num_rows = h.dim(0);
    Tensor a = gpu::device_empty<T>({num_rows, activation.ffn});
    gpu::launch("activation_forward_kernel", activation_forward_kernel<T>,
                gpu::one_thread_per(a.numel(), stream), gpu::device_data<T>(a),
                gpu::device_data<float>(h), gpu::device_data<float>(p), activation,
                num_rows);
    return a;
}

namespace {

/// One thread per row, which also adds up the row's dp.
template <typename T>
__global__ void activation_backward_kernel(T* dh, float* dp, const float* h, const T* da,
                                           const float* p, ExpertActivation activation,
                                           std::int64_t num_rows) {
    const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= num_rows) return;
    const std::int64_t at = row * activation.width();
    const T* da_row = da + row * activation.ffn;
    const float weight = p != nullptr ? p[row] : 1.0f;
    float sum = 0.0f;
    for (std::int64_t f = 0; f < activation.ffn; ++f)
        sum += activation.backward(dh + at, h + at, f, gpu::widen(da_row[f]), weight);
    dp[row] = sum;
}

}  // namespace

template <typename T>
ActivationGradients activation_backward(const ExpertActivation& activation,
                                        const Tensor& h, const Tensor& da,
                                        const Tensor& p, cudaStream_t stream) {
    const std::int64_t num_rows = h.dim(0);
    ActivationGradients gradients{gpu::device_empty<T>(h.shape()),
                                  gpu::device_empty<float>({num_rows})};
    gpu::launch("activation_backward_kernel", activation_backward_kernel<T>,
                gpu::one_thread_per(num_rows, stream), gpu::device_data<T>(gradients.dh),
                gpu::device_data<float>(gradients.dp), gpu::device_data<float>(h),
                gpu::device_data<T>(da), gpu::device_data<float>(p), activation,
                num_rows);
    return gradients;
}

#define INSTANTIATE(T)                                                                \
    template Tensor activation_forward<T>(const ExpertActivation&, const Tensor&,     \
                                          const Tensor&, cudaStream_t);               \
    template ActivationGradients activation_backward<T>(const ExpertActivation&,      \
                                                        const Tensor&, const Tensor&, \
                                                        const Tensor&, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
#undef INSTANTIATE

}  // namespace moe::naive
