#include "optimized_gpu/given_experts.h"

#include <vector>

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::optimized {

Tensor to_device_ids(const Tensor& given) {
    const auto* ids = given.data<std::int64_t>();
    return gpu::to_device(std::vector<std::int32_t>(ids, ids + given.numel()))
        .reshaped(given.shape());
}

//! [look_up_experts]
namespace {

/// One thread per choice: neighbours read neighbours of a row.
__global__ void look_up_experts_kernel(int* ids, const int* tid2eid, const int* token_ids,
                                       std::int64_t count, int K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) ids[i] = tid2eid[std::int64_t(token_ids[i / K]) * K + i % K];
}

}  // namespace

void look_up_experts(Tensor& ids, const Tensor& tid2eid, const Tensor& token_ids,
                     cudaStream_t stream) {
    const std::int64_t T = token_ids.numel(), K = tid2eid.dim(1);
    MOE_CHECK_EQ(ids.numel(), T * K);
    gpu::launch("look_up_experts_kernel", look_up_experts_kernel,
                gpu::one_thread_per(T * K, stream), gpu::device_data<int>(ids),
                gpu::device_data<int>(tid2eid), gpu::device_data<int>(token_ids), T * K,
                int(K));
}
//! [look_up_experts]

}  // namespace moe::optimized
