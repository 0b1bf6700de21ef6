// routing_backward.cu: from the gradient of the chosen weights to that of the logits.

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/choice.h"
#include "optimized_gpu/loss_gradients.h"
#include "optimized_gpu/routing.h"

namespace moe::optimized {
namespace {

struct BackwardPointers {
    float* dlogits;
    const float *dweights, *logits;
    const int* ids;
    const std::uint8_t* padding_mask;  // or null
    // Of the losses, each null where there is none
    const float *dscores, *z_scale;
    KernelScale scale;

    __device__ bool is_padding(std::int64_t t) const {
        return padding_mask != nullptr && padding_mask[t] != 0;
    }
};

/// A chosen expert, its logit x, and the gradient g by its weight before scaling; lane k
/// has the k-th, and lanes past K have no gradient.
struct ChosenGradient {
    int id;
    float x, g;
};

__device__ ChosenGradient load_chosen(const BackwardPointers& from,
                                      const RoutingRule& rule, std::int64_t t, int lane) {
    const int E = rule.num_experts, K = rule.topk;
    if (lane >= K) return {-1, -INFINITY, 0.0f};
    const int id = from.ids[t * K + lane];
    return {id, from.logits[t * E + id],
            rule.scaling_factor * rule.rounded(from.dweights[t * K + lane])};
}

/// dx of the chosen, without a softmax over all experts.
__device__ float chosen_backward(const ChosenGradient& chosen, const RoutingRule& rule,
                                 int lane) {
    const bool mine = lane < rule.topk;
    if (rule.is_post_softmax()) return weight_backward(chosen.x, chosen.g, rule, lane);
    const float s = mine ? score_of(rule.function, chosen.x) : 0.0f;
    return weight_backward(s, chosen.g, rule, lane) *
           score_slope(rule.function, chosen.x, s);
}

/// ⑱ for one token: fills dx. @param softmax_of_row  of x; used before top-k alone
template <int N>
__device__ void routing_backward(float (&dx)[N], const float (&x)[N],
                                 const SoftmaxSums& softmax_of_row,
                                 const ChosenGradient& chosen, const RoutingRule& rule,
                                 int lane) {
    float dx_chosen;
    if (rule.is_pre_softmax()) {
        // dx_e = s_e (g_e - Σ_j g_j s_j), g 0 where not chosen
        const float s = lane < rule.topk ? softmax_of_row.softmax(chosen.x) : 0.0f;
        const float mean = warp_sum(chosen.g * s);
        dx_chosen = s * (chosen.g - mean);
#pragma unroll
        for (int j = 0; j < N; ++j) dx[j] = -mean * softmax_of_row.softmax(x[j]);
    } else {
        dx_chosen = chosen_backward(chosen, rule, lane);
#pragma unroll
        for (int j = 0; j < N; ++j) dx[j] = 0.0f;
    }
    for (int k = 0; k < rule.topk; ++k)
        set_value(dx, __shfl_sync(kAllLanes, chosen.id, k),
                  __shfl_sync(kAllLanes, dx_chosen, k), lane);
}

//! [route_backward_kernel]
/// One warp per token. With kLosses tokens t = s P + b belong to population b.
template <int N, bool kLosses>
__global__ void __launch_bounds__(kThreads)
    route_backward_kernel(BackwardPointers to, RoutingRule rule, std::int64_t num_tokens,
                          int populations) {
    const int E = rule.num_experts, lane = lane_index();
    const int warp = int(threadIdx.x) / kLanes;
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp;
    if (t >= num_tokens) return;

    float x[N] = {}, dx[N];
    SoftmaxSums softmax_of_row = {};
    // Otherwise the chosen logits are all that is read
    if (kLosses || rule.is_pre_softmax()) {
        load_row(x, to.logits + t * E, E, lane);
        softmax_of_row = softmax_sums(x);
    }
    routing_backward(dx, x, softmax_of_row, load_chosen(to, rule, t, lane), rule, lane);
    if constexpr (kLosses)
        if (!to.is_padding(t)) {
            // ⑯ the losses, for a valid token
            const float scale = to.scale.value();
            z_loss_backward(dx, x, softmax_of_row.log_sum_exp(),
                            value_or(to.z_scale, 0.0f) * scale);
            if (to.dscores != nullptr)
                loss_scores_backward(dx, x, softmax_of_row,
                                     to.dscores + t % populations * E, scale, rule, lane);
        }
#pragma unroll
    for (int j = 0; j < N; ++j) dx[j] = rule.rounded(dx[j]);
    store_row(to.dlogits + t * E, dx, E, lane);
}
//! [route_backward_kernel]

}  // namespace

//! [route_backward]
void route_backward(Tensor& dlogits, const RoutingGradientOperands& operands,
                    const RoutingRule& rule, cudaStream_t stream) {
    const std::int64_t T = operands.logits.dim(0), E = rule.num_experts;
    const LossGradients& losses = operands.losses;
    const bool has_losses = losses.dscores.defined() || losses.z_scale.defined();
    const std::int64_t P = losses.dscores.defined() ? losses.dscores.dim(0) : 1;
    MOE_CHECK_EQ(operands.logits.dim(1), E);
    MOE_CHECK_EQ(dlogits.numel(), T * E);
    MOE_CHECK_EQ(operands.ids.numel(), T * rule.topk);
    MOE_CHECK_EQ(operands.dweights.numel(), T * rule.topk);
    const BackwardPointers to = {
        gpu::device_data<float>(dlogits),
        gpu::device_data<float>(operands.dweights),
        gpu::device_data<float>(operands.logits),
        gpu::device_data<int>(operands.ids),
        gpu::device_data<std::uint8_t>(operands.padding_mask),
        gpu::device_data<float>(losses.dscores),
        gpu::device_data<float>(losses.z_scale),
        KernelScale(losses.main_loss_backward_scale),
    };
    const unsigned blocks = unsigned((T + kWarps - 1) / kWarps);
    with_slots(E, [&](auto slots) {
        constexpr int N = decltype(slots)::value;
        const auto kernel =
            has_losses ? route_backward_kernel<N, true> : route_backward_kernel<N, false>;
        gpu::launch("route_backward_kernel", kernel,
                    {dim3(blocks), dim3(kThreads), 0, stream}, to, rule, T, int(P));
    });
}
//! [route_backward]

}  // namespace moe::optimized
