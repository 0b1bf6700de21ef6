// load_balancing.cu: the scores of the losses to look at, and the expert bias.

#include "optimized_gpu/load_balancing.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/scores.h"

namespace moe::optimized {

namespace {

/// One warp per token.
template <int N>
__global__ void __launch_bounds__(kThreads)
    aux_scores_kernel(float* scores, const float* logits, RoutingRule rule,
                      std::int64_t num_tokens) {
    const int E = rule.num_experts, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    const bool softmax = rule.function == ScoreFunction::softmax;
    float x[N], s[N];
    load_row(x, logits + t * E, E, lane);
    compute_scores(s, rule.function, x, softmax ? softmax_sums(x) : SoftmaxSums());
    const float normalizer = softmax ? 1.0f : normalizer_of(s);
#pragma unroll
    for (int j = 0; j < N; ++j) s[j] /= normalizer;
    store_row(scores + t * E, s, E, lane);
}

}  // namespace

Tensor compute_aux_scores(const Tensor& logits, const RoutingRule& rule,
                          cudaStream_t stream) {
    const std::int64_t T = logits.dim(0), E = rule.num_experts;
    MOE_CHECK_EQ(logits.dim(1), E);
    Tensor scores = gpu::device_empty<float>({T, E});
    const unsigned blocks = unsigned((T + kWarps - 1) / kWarps);
    with_slots(E, [&](auto slots) {
        gpu::launch("aux_scores_kernel", aux_scores_kernel<decltype(slots)::value>,
                    {dim3(blocks), dim3(kThreads), 0, stream},
                    gpu::device_data<float>(scores), gpu::device_data<float>(logits),
                    rule, T);
    });
    return scores;
}

//! [get_updated_expert_bias]
namespace {

/// One block. Each warp adds up all the counts for itself: they are integers, so that the
/// order does not show, and a sum of its own needs no barrier.
__global__ void __launch_bounds__(kThreads)
    get_updated_expert_bias_kernel(float* updated, const float* expert_bias,
                                   const std::int64_t* tokens_per_expert,
                                   float update_rate, int E) {
    std::int64_t total = 0;
    for (int e = lane_index(); e < E; e += kLanes) total += tokens_per_expert[e];
    const float mean = float(warp_sum(total)) / float(E);
    for (int e = int(threadIdx.x); e < E; e += kThreads) {
        const float missing = mean - float(tokens_per_expert[e]);
        const float sign = missing > 0.0f ? 1.0f : missing < 0.0f ? -1.0f : 0.0f;
        updated[e] = expert_bias[e] + update_rate * sign;
    }
}

}  // namespace

Tensor get_updated_expert_bias(const Tensor& expert_bias, const Tensor& tokens_per_expert,
                               double update_rate, cudaStream_t stream) {
    const std::int64_t E = expert_bias.numel();
    MOE_CHECK_EQ(tokens_per_expert.numel(), E);
    Tensor updated = gpu::device_empty<float>({E});
    gpu::launch("get_updated_expert_bias_kernel", get_updated_expert_bias_kernel,
                {dim3(1), dim3(kThreads), 0, stream}, gpu::device_data<float>(updated),
                gpu::device_data<float>(expert_bias),
                gpu::device_data<std::int64_t>(tokens_per_expert),
                static_cast<float>(update_rate), int(E));
    return updated;
}
//! [get_updated_expert_bias]

void reset_counts(Tensor& counts, cudaStream_t stream) {
    MOE_CHECK(counts.space() == MemorySpace::device);
    gpu::check(cudaMemsetAsync(counts.view().bytes, 0, counts.size_bytes(), stream),
               "cudaMemsetAsync");
}

}  // namespace moe::optimized
