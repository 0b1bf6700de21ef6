// routing.cu: from logits to the chosen experts and their weights, and back.

#include "naive_gpu/routing.h"

#include "core/transfer.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/activation.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/scores.h"
#include "naive_gpu/sinkhorn.h"

namespace moe::naive {
namespace {

template <typename Key>
Tensor select_experts(const Tensor& keys, const MoEConfig& config) {
    const std::int64_t K = config.moe_router_topk;
    if (!config.moe_router_group_topk) return top_k<Key>(keys, K);
    const std::int64_t group_topk = *config.moe_router_group_topk;
    return group_limited_top_k<Key>(
        keys, K, *config.moe_router_num_groups, group_topk,
        config.moe_router_group_score_topk.value_or(K / group_topk));
}

/// One thread per token and choice.
template <typename To, typename From>
__global__ void gather_kernel(To* values, const From* rows, const std::int64_t* chosen,
                              To factor, std::int64_t count, std::int64_t E,
                              std::int64_t K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    values[i] = factor * static_cast<To>(rows[i / K * E + chosen[i]]);
}

/// The chosen entries of every row (T, E), in the order of `chosen` (T, K), times
/// `factor`. @return (T, K)
template <typename To, typename From = To>
Tensor gather(const Tensor& rows, const Tensor& chosen, To factor = To(1)) {
    const std::int64_t K = chosen.dim(1);
    Tensor values = gpu::device_empty<To>(chosen.shape());
    gpu::launch("gather_kernel", gather_kernel<To, From>,
                gpu::one_thread_per(chosen.numel()), gpu::device_data<To>(values),
                gpu::device_data<From>(rows), gpu::device_data<std::int64_t>(chosen),
                factor, chosen.numel(), rows.dim(1), K);
    return values;
}

/// One thread per token and choice.
__global__ void scatter_kernel(float* rows, const float* values,
                               const std::int64_t* chosen, std::int64_t count,
                               std::int64_t E, std::int64_t K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    rows[i / K * E + chosen[i]] = values[i];
}

/// Rows of zeros (T, E) but for the chosen entries, which have these values (T, K).
Tensor scatter(const Tensor& values, const Tensor& chosen, std::int64_t E) {
    const std::int64_t T = chosen.dim(0), K = chosen.dim(1);
    Tensor rows = gpu::device_zeros<float>({T, E});
    gpu::launch("scatter_kernel", scatter_kernel, gpu::one_thread_per(T * K),
                gpu::device_data<float>(rows), gpu::device_data<float>(values),
                gpu::device_data<std::int64_t>(chosen), T * K, E, K);
    return rows;
}

/// One thread per token and expert.
__global__ void add_expert_bias_kernel(float* keys, const float* s,
                                       const float* expert_bias, std::int64_t count,
                                       std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    keys[i] = s[i] + expert_bias[i % E];
}

/// What the experts are chosen by: s (T, E), plus the bias (E) if there is one.
Tensor add_expert_bias(const Tensor& s, const Tensor& expert_bias) {
    if (!expert_bias.defined()) return s;
    Tensor keys = gpu::device_empty<float>(s.shape());
    gpu::launch("add_expert_bias_kernel", add_expert_bias_kernel,
                gpu::one_thread_per(s.numel()), gpu::device_data<float>(keys),
                gpu::device_data<float>(s), gpu::device_data<float>(expert_bias),
                s.numel(), s.dim(1));
    return keys;
}

/// Whether the weights of the chosen are their scores over the sum of these.
bool normalizes(ScoreFunction function, const MoEConfig& config) {
    return function != ScoreFunction::softmax && config.moe_router_topk > 1 &&
           config.moe_router_norm_topk_prob;
}

float scaling_factor(const MoEConfig& config) {
    const double factor = config.moe_router_topk_scaling_factor.value_or(0.0);
    return factor == 0.0 ? 1.0f : static_cast<float>(factor);
}

//! [route_token]
/// ③ for all tokens: x (T, E) are their logits. Fills scores (T, E) and topk_idx (T, K),
/// unless somebody else has done so, and returns the weights of the chosen experts (T,
/// K), all in fp32.
template <typename Scalar>
Tensor route_tokens(Routing& routing, const Tensor& logits, const Tensor& expert_bias,
                    const MoEConfig& config) {
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    const Tensor x = transfer(logits, kScorePlacement);

    // Softmax after top-k: the logits choose, and only the chosen share the softmax
    if (function == ScoreFunction::softmax && !config.moe_router_pre_softmax) {
        if (!routing.topk_idx.defined())
            routing.topk_idx = select_experts<Scalar>(logits, config);
        Tensor p = gpu::device_empty<float>(routing.topk_idx.shape());
        compute_scores(p, function, gather<float>(x, routing.topk_idx));
        routing.scores = scatter(p, routing.topk_idx, logits.dim(1));
        return p;
    }

    // Otherwise scores over all experts choose; a bias moves the choice, not the weight
    routing.scores = gpu::device_empty<float>(logits.shape());
    compute_scores(routing.scores, function, x);
    if (!routing.topk_idx.defined())
        routing.topk_idx =
            select_experts<float>(add_expert_bias(routing.scores, expert_bias), config);

    // Softmax before top-k stays as it is; the others sum to one, unless K is 1
    Tensor p = gather<float>(routing.scores, routing.topk_idx);
    if (normalizes(function, config)) normalize(p);
    return p;
}

/// ⑱ for all tokens: dx (T, E) from dp (T, K), the gradient by the weights of the chosen.
/// Selection and bias have no gradient.
Tensor route_tokens_backward(const Tensor& x, const Routing& routing, Tensor dp,
                             const MoEConfig& config) {
    const std::int64_t E = x.dim(1);
    const Tensor &s = routing.scores, &chosen = routing.topk_idx;
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    if (function == ScoreFunction::softmax && !config.moe_router_pre_softmax) {
        Tensor dx_chosen = gpu::device_empty<float>(chosen.shape());
        compute_scores_backward(dx_chosen, function, gather<float>(x, chosen),
                                gather<float>(s, chosen), dp);
        return scatter(dx_chosen, chosen, E);
    }
    if (normalizes(function, config)) normalize_backward(dp, gather<float>(s, chosen));
    Tensor dx = gpu::device_empty<float>(x.shape());
    compute_scores_backward(dx, function, x, s, scatter(dp, chosen, E));
    return dx;
}
//! [route_token]

/// One thread per token and choice k: its expert gets weight p_k.
template <typename Scalar, typename Weight>
__global__ void choose_kernel(Scalar* probs, std::uint8_t* map,
                              const std::int64_t* chosen, const Weight* p, Weight scale,
                              std::int64_t count, std::int64_t E, std::int64_t K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t at = i / K * E + chosen[i];
    probs[at] = static_cast<Scalar>(scale * p[i]);
    map[at] = 1;
}

/// Enters the choices of topk_idx (T, K) into probs and map, with weights p (T, K).
template <typename Scalar, typename Weight>
void choose(Routing& routing, const Tensor& p, std::int64_t E, Weight scale) {
    const std::int64_t T = p.dim(0), K = p.dim(1);
    routing.probs = gpu::device_zeros<Scalar>({T, E});
    routing.map = gpu::device_zeros<std::uint8_t>({T, E});
    gpu::launch("choose_kernel", choose_kernel<Scalar, Weight>,
                gpu::one_thread_per(T * K), gpu::device_data<Scalar>(routing.probs),
                gpu::device_data<std::uint8_t>(routing.map),
                gpu::device_data<std::int64_t>(routing.topk_idx),
                gpu::device_data<Weight>(p), scale, T * K, E, K);
}

/// dlogits (T, E) += dx (T, E) f32.
template <typename Scalar>
void add_gradient(Tensor& dlogits, const Tensor& dx) {
    add_to<Scalar>(dlogits, transfer(dx, {MemorySpace::device, dtype_of<Scalar>}));
}

/// One thread per token and expert.
template <typename Scalar>
__global__ void sigmoid_kernel(Scalar* s, const Scalar* x, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) s[i] = sigmoid(x[i]);
}

}  // namespace

//! [route_sinkhorn]
template <typename Scalar>
Routing route_sinkhorn(const Tensor& logits, const MoEConfig& config, bool training) {
    const std::int64_t K = config.moe_router_topk;
    Routing routing;
    routing.scores = gpu::device_zeros<float>(logits.shape());
    Tensor activation = gpu::device_empty<Scalar>(logits.shape());
    if (K == 1) {
        gpu::launch("sigmoid_kernel", sigmoid_kernel<Scalar>,
                    gpu::one_thread_per(logits.numel()),
                    gpu::device_data<Scalar>(activation),
                    gpu::device_data<Scalar>(logits), logits.numel());
    } else {
        compute_scores(routing.scores, ScoreFunction::softmax,
                       transfer(logits, kScorePlacement));
        activation = transfer(routing.scores, {MemorySpace::device, dtype_of<Scalar>});
    }
    routing.topk_idx = training ? top_k<float>(sinkhorn<Scalar>(logits), K)
                                : top_k<Scalar>(activation, K);
    choose<Scalar>(routing, gather<Scalar>(activation, routing.topk_idx), logits.dim(1),
                   Scalar(1));
    return routing;
}

namespace {

/// K = 1, one thread per token: only the chosen logit has a gradient.
template <typename Scalar>
__global__ void route_sinkhorn_backward_kernel(Scalar* dx, const Scalar* dp,
                                               const Scalar* x,
                                               const std::int64_t* chosen, std::int64_t T,
                                               std::int64_t E) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const std::int64_t at = t * E + chosen[t];
    const Scalar s = sigmoid(x[at]);
    dx[at] += dp[at] * s * (Scalar(1) - s);
}

}  // namespace

template <typename Scalar>
void route_sinkhorn_backward(Tensor& dlogits, const Tensor& dprobs, const Tensor& logits,
                             const Routing& routing, const MoEConfig& config) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    const Tensor& chosen = routing.topk_idx;
    if (config.moe_router_topk == 1) {
        gpu::launch("route_sinkhorn_backward_kernel",
                    route_sinkhorn_backward_kernel<Scalar>, gpu::one_thread_per(T),
                    gpu::device_data<Scalar>(dlogits), gpu::device_data<Scalar>(dprobs),
                    gpu::device_data<Scalar>(logits),
                    gpu::device_data<std::int64_t>(chosen), T, E);
        return;
    }
    const Tensor ds = scatter(gather<float, Scalar>(dprobs, chosen), chosen, E);
    Tensor dx = gpu::device_empty<float>(logits.shape());
    compute_scores_backward(dx, ScoreFunction::softmax, transfer(logits, kScorePlacement),
                            routing.scores, ds);
    add_gradient<Scalar>(dlogits, dx);
}
//! [route_sinkhorn]

//! [route]
template <typename Scalar>
Routing route(const Tensor& logits, const Tensor& expert_bias, const MoEConfig& config,
              const Tensor& precomputed_idx) {
    Routing routing;
    routing.topk_idx = precomputed_idx;
    const Tensor p = route_tokens<Scalar>(routing, logits, expert_bias, config);
    choose<Scalar>(routing, p, logits.dim(1), scaling_factor(config));
    return routing;
}

template <typename Scalar>
void route_backward(Tensor& dlogits, const Tensor& dprobs, const Tensor& logits,
                    const Routing& routing, const MoEConfig& config) {
    const Tensor x = transfer(logits, kScorePlacement);
    const Tensor dp =
        gather<float, Scalar>(dprobs, routing.topk_idx, scaling_factor(config));
    add_gradient<Scalar>(dlogits, route_tokens_backward(x, routing, dp, config));
}
//! [route]

#define INSTANTIATE(Scalar)                                                              \
    template Routing route<Scalar>(const Tensor&, const Tensor&, const MoEConfig&,       \
                                   const Tensor&);                                       \
    template void route_backward<Scalar>(Tensor&, const Tensor&, const Tensor&,          \
                                         const Routing&, const MoEConfig&);              \
    template Routing route_sinkhorn<Scalar>(const Tensor&, const MoEConfig&, bool);      \
    template void route_sinkhorn_backward<Scalar>(Tensor&, const Tensor&, const Tensor&, \
                                                  const Routing&, const MoEConfig&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::naive
