// routing_backward.cu: from the gradient of the chosen weights to that of the logits.

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/routing.h"
#include "optimized_gpu/scores.h"

namespace moe::optimized {
namespace {

struct BackwardPointers {
    float* dlogits;
    const float *dweights, *logits;
    const int* ids;
    const std::uint8_t* padding_mask;  // or null
    // Of the losses, each null where there is none
    const float *dscores, *z_scale, *main_loss_backward_scale;

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
            rule.scaling_factor * from.dweights[t * K + lane]};
}

/// dx of the chosen, without a softmax over all experts.
///
///     softmax over the chosen  dx_k = p_k (g_k - Σ_j g_j p_j)
///     others                   dx_k = ds_k s'(x_k), ds_k = g_k, or normalised:
///                              ds_k = (g_k - Σ_j g_j s_j / D) / D, D = Σ s + 1e-20
__device__ float chosen_backward(const ChosenGradient& chosen, const RoutingRule& rule,
                                 int lane) {
    const bool mine = lane < rule.topk;
    if (rule.is_post_softmax()) {
        const float largest = warp_max(chosen.x);
        const float e = mine ? expf(chosen.x - largest) : 0.0f;
        const float p = e / warp_sum(e);
        return p * (chosen.g - warp_sum(chosen.g * p));
    }
    const float s = mine ? score_of(rule.function, chosen.x) : 0.0f;
    float ds = chosen.g;
    if (rule.normalizes()) {
        const float normalizer = warp_sum(s) + kNormalizeEpsilon;
        ds = (ds - warp_sum(ds * s) / normalizer) / normalizer;
    }
    return ds * score_slope(rule.function, chosen.x, s);
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

/// ⑯ for one valid token, x its logits: adds to dx. @param dscores  (E) or null
template <int N>
__device__ void losses_backward(float (&dx)[N], const float (&x)[N],
                                const SoftmaxSums& softmax_of_row, const float* dscores,
                                float z_scale, float scale, const RoutingRule& rule,
                                int lane) {
    // d lse² / dx = 2 lse softmax(x)
    const float lse = softmax_of_row.log_sum_exp();
    const float dz = 2.0f * z_scale * scale * lse;
#pragma unroll
    for (int j = 0; j < N; ++j) dx[j] += dz * expf(x[j] - lse);
    if (dscores == nullptr) return;

    float s[N], ds[N];
    compute_scores(s, rule.function, x, softmax_of_row);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        ds[j] = e < rule.num_experts ? scale * dscores[e] : 0.0f;
        sum += ds[j] * s[j];
    }
    const float dot = warp_sum(sum);
    const bool softmax = rule.function == ScoreFunction::softmax;
    const float normalizer = softmax ? 1.0f : normalizer_of(s);
#pragma unroll
    for (int j = 0; j < N; ++j)
        dx[j] += (ds[j] - dot / normalizer) / normalizer *
                 (softmax ? s[j] : score_slope(rule.function, x[j], s[j]));
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
            const auto once = [](const float* value, float none) {
                return value == nullptr ? none : *value;
            };
            const float* dscores =
                to.dscores == nullptr ? nullptr : to.dscores + t % populations * E;
            losses_backward(dx, x, softmax_of_row, dscores, once(to.z_scale, 0.0f),
                            once(to.main_loss_backward_scale, 1.0f), rule, lane);
        }
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
        gpu::device_data<float>(losses.main_loss_backward_scale),
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
