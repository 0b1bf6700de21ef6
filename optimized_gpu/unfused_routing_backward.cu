// unfused_routing_backward.cu: from the gradients of weights and losses to that of the
// logits, one small kernel after another.

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/choice.h"
#include "optimized_gpu/loss_gradients.h"
#include "optimized_gpu/unfused_routing.h"

namespace moe::optimized {
namespace {

/// One warp per token, a lane for each of its choices.
__global__ void __launch_bounds__(kThreads)
    weights_backward_kernel(float* dchosen, const float* dweights, const float* logits,
                            const int* ids, RoutingRule rule, std::int64_t num_tokens) {
    const int E = rule.num_experts, K = rule.topk, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    float value = 0.0f, g = 0.0f;
    if (lane < K) {
        g = rule.scaling_factor * rule.rounded(dweights[t * K + lane]);
        value = logits[t * E + ids[t * K + lane]];
        if (rule.normalizes()) value = score_of(rule.function, value);
    }
    const float gradient = weight_backward(value, g, rule, lane);
    if (lane < K) dchosen[t * K + lane] = gradient;
}

/// One warp per token: gradients of its scores become those of its logits, in place.
template <int N>
__global__ void __launch_bounds__(kThreads)
    scores_backward_kernel(float* gradients, const float* logits, RoutingRule rule,
                           std::int64_t num_tokens) {
    const int E = rule.num_experts, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    const bool softmax = rule.is_pre_softmax();
    float x[N], s[N], g[N];
    load_row(x, logits + t * E, E, lane);
    compute_scores(s, rule.function, x, softmax ? softmax_sums(x) : SoftmaxSums());
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        g[j] = e < E ? gradients[t * E + e] : 0.0f;
        sum += g[j] * s[j];
    }
    const float mean = softmax ? warp_sum(sum) : 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j)
        g[j] = softmax ? s[j] * (g[j] - mean)
                       : g[j] * score_slope(rule.function, x[j], s[j]);
    store_row(gradients + t * E, g, E, lane);
}

struct LossPointers {
    float* dlogits;
    const float* logits;
    const std::uint8_t* padding_mask;  // or null
    const float* gradient;             // of a loss
    KernelScale scale;
};

/// One warp per valid token: adds what z-loss gives. `gradient` is dL/d(lse²).
template <int N>
__global__ void __launch_bounds__(kThreads)
    z_loss_backward_kernel(LossPointers to, int E, std::int64_t num_tokens) {
    const int lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens || (to.padding_mask != nullptr && to.padding_mask[t] != 0))
        return;
    float x[N], dx[N];
    load_row(x, to.logits + t * E, E, lane);
    load_row(dx, to.dlogits + t * E, E, lane);
    z_loss_backward(dx, x, softmax_sums(x).log_sum_exp(),
                    *to.gradient * to.scale.value());
    store_row(to.dlogits + t * E, dx, E, lane);
}

/// One warp per valid token: adds what comes by the losses' scores. `gradient` (P, E) is
/// theirs.
template <int N>
__global__ void __launch_bounds__(kThreads)
    loss_scores_backward_kernel(LossPointers to, RoutingRule rule, int populations,
                                std::int64_t num_tokens) {
    const int E = rule.num_experts, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens || (to.padding_mask != nullptr && to.padding_mask[t] != 0))
        return;
    const bool softmax = rule.function == ScoreFunction::softmax;
    float x[N], dx[N];
    load_row(x, to.logits + t * E, E, lane);
    load_row(dx, to.dlogits + t * E, E, lane);
    loss_scores_backward(dx, x, softmax ? softmax_sums(x) : SoftmaxSums(),
                         to.gradient + t % populations * E, to.scale.value(), rule, lane);
    store_row(to.dlogits + t * E, dx, E, lane);
}

}  // namespace

//! [route_unfused_backward]
UnfusedGradient route_unfused_backward(const RoutingGradientOperands& operands,
                                       const RoutingRule& rule, cudaStream_t stream) {
    const auto& [dweights, logits, ids, padding_mask, losses] = operands;
    const std::int64_t T = logits.dim(0), E = rule.num_experts;
    MOE_CHECK_EQ(logits.dim(1), E);
    MOE_CHECK_EQ(ids.numel(), T * rule.topk);
    MOE_CHECK_EQ(dweights.numel(), T * rule.topk);
    const gpu::LaunchConfig warp_per_token = {dim3(unsigned((T + kWarps - 1) / kWarps)),
                                              dim3(kThreads), 0, stream};
    UnfusedGradient made;

    // ⑱ through weights and choices to the scores, and through them
    made.dchosen = gpu::device_empty<float>({T, rule.topk});
    gpu::launch("weights_backward_kernel", weights_backward_kernel, warp_per_token,
                gpu::device_data<float>(made.dchosen), gpu::device_data<float>(dweights),
                gpu::device_data<float>(logits), gpu::device_data<int>(ids), rule, T);
    made.dscores = indices_to_multihot(ids, made.dchosen, int(E), stream);
    made.dlogits = made.dscores.probs;
    with_slots(E, [&](auto slots) {
        constexpr int N = decltype(slots)::value;
        if (!rule.is_post_softmax())
            gpu::launch("scores_backward_kernel", scores_backward_kernel<N>,
                        warp_per_token, gpu::device_data<float>(made.dlogits),
                        gpu::device_data<float>(logits), rule, T);

        // ⑯ the losses
        LossPointers to = {gpu::device_data<float>(made.dlogits),
                           gpu::device_data<float>(logits),
                           gpu::device_data<std::uint8_t>(padding_mask),
                           gpu::device_data<float>(losses.z_scale),
                           KernelScale(losses.main_loss_backward_scale)};
        if (losses.z_scale.defined())
            gpu::launch("z_loss_backward_kernel", z_loss_backward_kernel<N>,
                        warp_per_token, to, int(E), T);
        to.gradient = gpu::device_data<float>(losses.dscores);
        if (losses.dscores.defined())
            gpu::launch("loss_scores_backward_kernel", loss_scores_backward_kernel<N>,
                        warp_per_token, to, rule, int(losses.dscores.dim(0)), T);
    });
    return made;
}
//! [route_unfused_backward]

}  // namespace moe::optimized
