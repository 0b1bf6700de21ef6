#include "naive_gpu/given_experts.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::naive {

//! [look_up_experts]
namespace {

/// One thread per token and choice.
__global__ void look_up_experts_kernel(std::int64_t* topk_idx,
                                       const std::int64_t* tid2eid,
                                       const std::int64_t* token_ids, std::int64_t count,
                                       std::int64_t K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) topk_idx[i] = tid2eid[token_ids[i / K] * K + i % K];
}

}  // namespace

Tensor look_up_experts(const Tensor& tid2eid, const Tensor& token_ids) {
    const std::int64_t T = token_ids.numel(), K = tid2eid.dim(1);
    Tensor topk_idx = gpu::device_empty<std::int64_t>({T, K});
    gpu::launch("look_up_experts_kernel", look_up_experts_kernel,
                gpu::one_thread_per(T * K), gpu::device_data<std::int64_t>(topk_idx),
                gpu::device_data<std::int64_t>(tid2eid),
                gpu::device_data<std::int64_t>(token_ids), T * K, K);
    return topk_idx;
}
//! [look_up_experts]

}  // namespace moe::naive
