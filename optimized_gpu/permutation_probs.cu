// permutation_probs.cu: gradients of routing weights, back from the order of rows.

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/permutation.h"

namespace moe::optimized {

//! [permute_probs_backward]
namespace {

/// One thread per row, of as many as there may be; each choice has at most one row.
__global__ void permute_probs_backward_kernel(float* dweights, const float* drow_probs,
                                              const int* row_slot, const int* num_rows) {
    const std::int64_t r = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (r >= *num_rows) return;
    const int slot = row_slot[r];
    if (slot >= 0) dweights[slot] = drow_probs[r];
}

const int* num_rows_of(const RowMap& map) {
    return gpu::device_data<int>(map.offsets) + map.num_experts;
}

}  // namespace

Tensor permute_probs_backward(const Tensor& drow_probs, const RowMap& map,
                              cudaStream_t stream) {
    Tensor dweights = gpu::device_empty<float>({map.num_tokens, map.num_choices});
    permute_probs_backward_into(dweights, drow_probs, map, stream);
    return dweights;
}

void permute_probs_backward_into(const TensorView& dweights, const Tensor& drow_probs,
                                 const RowMap& map, cudaStream_t stream) {
    MOE_CHECK(drow_probs.numel() <= map.capacity);
    MOE_CHECK_EQ(dweights.numel(), std::int64_t(map.num_tokens) * map.num_choices);
    if (map.num_tokens == 0) return;
    gpu::check(cudaMemsetAsync(dweights.bytes, 0, dweights.size_bytes(), stream),
               "cudaMemsetAsync");
    gpu::launch("permute_probs_backward_kernel", permute_probs_backward_kernel,
                gpu::one_thread_per(drow_probs.numel(), stream),
                static_cast<float*>(dweights.bytes), gpu::device_data<float>(drow_probs),
                gpu::device_data<int>(map.row_slot), num_rows_of(map));
}
//! [permute_probs_backward]

}  // namespace moe::optimized
