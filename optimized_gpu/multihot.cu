// multihot.cu: the experts of each token, as a list and as columns.

#include "optimized_gpu/multihot.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

//! [multihot]
namespace {

/// A warp for each token.
__global__ void __launch_bounds__(kThreads)
    indices_to_multihot_kernel(std::uint8_t* map, float* probs, const int* ids,
                               const float* weights, std::int64_t num_tokens, int K,
                               int E) {
    const int lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    map += t * E;
    probs += t * E;
    for (int e = lane; e < E; e += kLanes) {
        map[e] = 0;
        probs[e] = 0.0f;
    }
    // TUTORIAL: another lane wrote the zero where this one writes its choice, and stores
    // of two lanes have an order only once the warp has met. Both end up in the cache,
    // and memory sees one of them.
    __syncwarp();
    for (int k = lane; k < K; k += kLanes) {
        const int e = ids[t * K + k];
        if (e >= E) __trap();  // rather than a column of another token
        if (e < 0) continue;
        map[e] = 1;
        probs[e] = weights[t * K + k];
    }
}

/// One thread per choice.
__global__ void indices_to_multihot_backward_kernel(float* dweights, const float* dprobs,
                                                    const int* ids, std::int64_t count,
                                                    int K, int E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int e = ids[i];
    if (e >= E) __trap();
    dweights[i] = e < 0 ? 0.0f : dprobs[i / K * E + e];
}

/// A warp for each token.
__global__ void __launch_bounds__(kThreads)
    multihot_to_indices_kernel(int* ids, const std::uint8_t* map, std::int64_t num_tokens,
                               int K, int E) {
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    int found = 0;  // in the columns before, by all lanes
    for (int first = 0; first < E; first += kLanes) {
        const int e = first + lane_index();
        const bool chosen = e < E && map[t * E + e] != 0;
        const unsigned all = __ballot_sync(kAllLanes, chosen);
        const int k = found + __popc(all & lanes_before());
        if (chosen && k >= K) __trap();  // rather than another token's choice
        if (chosen) ids[t * K + k] = e;
        found += __popc(all);
    }
    for (int k = found + lane_index(); k < K; k += kLanes) ids[t * K + k] = -1;
}

}  // namespace

Multihot indices_to_multihot(const Tensor& ids, const Tensor& weights, int num_experts,
                             cudaStream_t stream) {
    const std::int64_t T = ids.dim(0), K = ids.dim(1), E = num_experts;
    MOE_CHECK(weights.shape() == ids.shape());
    Multihot result{gpu::device_empty<std::uint8_t>({T, E}),
                    gpu::device_empty<float>({T, E})};
    gpu::launch("indices_to_multihot_kernel", indices_to_multihot_kernel,
                {dim3(unsigned((T + kWarps - 1) / kWarps)), kThreads, 0, stream},
                gpu::device_data<std::uint8_t>(result.map),
                gpu::device_data<float>(result.probs), gpu::device_data<int>(ids),
                gpu::device_data<float>(weights), T, int(K), num_experts);
    return result;
}

Tensor indices_to_multihot_backward(const Tensor& dprobs, const Tensor& ids,
                                    cudaStream_t stream) {
    MOE_CHECK_EQ(dprobs.dim(0), ids.dim(0));
    Tensor dweights = gpu::device_empty<float>(ids.shape());
    gpu::launch(
        "indices_to_multihot_backward_kernel", indices_to_multihot_backward_kernel,
        gpu::one_thread_per(ids.numel(), stream), gpu::device_data<float>(dweights),
        gpu::device_data<float>(dprobs), gpu::device_data<int>(ids), ids.numel(),
        int(ids.dim(1)), int(dprobs.dim(1)));
    return dweights;
}

Tensor multihot_to_indices(const Tensor& map, int topk, cudaStream_t stream) {
    const std::int64_t T = map.dim(0);
    Tensor ids = gpu::device_empty<int>({T, topk});
    gpu::launch("multihot_to_indices_kernel", multihot_to_indices_kernel,
                {dim3(unsigned((T + kWarps - 1) / kWarps)), kThreads, 0, stream},
                gpu::device_data<int>(ids), gpu::device_data<std::uint8_t>(map), T, topk,
                int(map.dim(1)));
    return ids;
}
//! [multihot]

}  // namespace moe::optimized
