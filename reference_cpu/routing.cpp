// routing.cpp: from logits to the chosen experts and their weights, and back.

#include "reference_cpu/routing.h"

#include "reference_cpu/activation.h"
#include "reference_cpu/rows.h"
#include "reference_cpu/scores.h"
#include "reference_cpu/sinkhorn.h"

namespace moe::cpu {
namespace {

template <typename Key>
std::vector<std::int64_t> select_experts(std::span<const Key> keys,
                                         const MoEConfig& config) {
    const std::int64_t K = config.moe_router_topk;
    if (!config.moe_router_group_topk) return top_k(keys, K);
    const std::int64_t group_topk = *config.moe_router_group_topk;
    return group_limited_top_k(
        keys, K, *config.moe_router_num_groups, group_topk,
        config.moe_router_group_score_topk.value_or(K / group_topk));
}

/// The chosen entries of a row, in the order of `chosen`, and back.
std::vector<float> gather(std::span<const float> row,
                          std::span<const std::int64_t> chosen) {
    std::vector<float> values;
    for (std::int64_t e : chosen) values.push_back(row[e]);
    return values;
}
void scatter(std::span<float> row, std::span<const std::int64_t> chosen,
             std::span<const float> values) {
    for (std::size_t k = 0; k < chosen.size(); ++k) row[chosen[k]] = values[k];
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
/// ③ for one token: x (E) are its logits. Fills s (E), chosen (K) unless somebody else
/// has done so, and returns the weights of the chosen experts (K), all in fp32.
template <typename Scalar>
std::vector<float> route_token(std::span<float> s, std::vector<std::int64_t>& chosen,
                               std::span<const Scalar> logits, const Tensor& expert_bias,
                               const MoEConfig& config) {
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    const std::vector<float> x(logits.begin(), logits.end());

    // Softmax after top-k: the logits choose, and only the chosen share the softmax
    if (function == ScoreFunction::softmax && !config.moe_router_pre_softmax) {
        if (chosen.empty()) chosen = select_experts(logits, config);
        std::vector<float> p(chosen.size());
        compute_scores(p, function, gather(x, chosen));
        scatter(s, chosen, p);
        return p;
    }

    // Otherwise scores over all experts choose; a bias moves the choice, not the weight
    compute_scores(s, function, x);
    std::vector<float> keys(s.begin(), s.end());
    if (expert_bias.defined())
        for (std::size_t e = 0; e < keys.size(); ++e)
            keys[e] += expert_bias.data<float>()[e];
    if (chosen.empty()) chosen = select_experts(std::span<const float>(keys), config);

    // Softmax before top-k stays as it is; the others sum to one, unless K is 1
    std::vector<float> p = gather(s, chosen);
    if (normalizes(function, config)) normalize(p);
    return p;
}

/// ⑱ for one token: dx (E) from dp (K), the gradient by the weights of the chosen.
/// Selection and bias have no gradient.
void route_token_backward(std::span<float> dx, std::span<const float> x,
                          std::span<const float> s, std::span<const std::int64_t> chosen,
                          std::vector<float> dp, const MoEConfig& config) {
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    if (function == ScoreFunction::softmax && !config.moe_router_pre_softmax) {
        const std::vector<float> x_chosen = gather(x, chosen),
                                 s_chosen = gather(s, chosen);
        std::vector<float> dx_chosen(chosen.size());
        compute_scores_backward(dx_chosen, function, x_chosen, s_chosen, dp);
        return scatter(dx, chosen, dx_chosen);
    }
    if (normalizes(function, config)) normalize_backward(dp, gather(s, chosen));
    std::vector<float> ds(s.size(), 0.0f);
    scatter(ds, chosen, dp);
    compute_scores_backward(dx, function, x, s, ds);
}
//! [route_token]

template <typename Scalar>
Routing make_routing(std::int64_t T, std::int64_t E, std::int64_t K) {
    return {Tensor::empty({T, K}, DType::i64), Tensor::zeros({T, E}, DType::f32),
            Tensor::zeros({T, E}, dtype_of<Scalar>), Tensor::zeros({T, E}, DType::u8)};
}

/// Enters expert e as the k-th choice of token t.
template <typename Scalar>
void choose(Routing& routing, std::int64_t t, std::int64_t k, std::int64_t e, Scalar p) {
    row_of<std::int64_t>(routing.topk_idx, t)[k] = e;
    row_of<Scalar>(routing.probs, t)[e] = p;
    row_of<std::uint8_t>(routing.map, t)[e] = 1;
}

}  // namespace

//! [route_sinkhorn]
template <typename Scalar>
Routing route_sinkhorn(const Tensor& logits, const MoEConfig& config, bool training) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = config.moe_router_topk;
    Routing routing = make_routing<Scalar>(T, E, K);
    const Tensor balanced = training ? sinkhorn<Scalar>(logits) : Tensor();
    for (std::int64_t t = 0; t < T; ++t) {
        const auto x = row_of<Scalar>(logits, t);
        const auto s = row_of<float>(routing.scores, t);
        std::vector<Scalar> activation(E);
        if (K == 1) {
            for (std::int64_t e = 0; e < E; ++e) activation[e] = sigmoid(x[e]);
        } else {
            compute_scores(s, ScoreFunction::softmax,
                           std::vector<float>(x.begin(), x.end()));
            std::copy(s.begin(), s.end(), activation.begin());
        }
        const auto chosen = training ? top_k<float>(row_of<float>(balanced, t), K)
                                     : top_k<Scalar>(activation, K);
        for (std::int64_t k = 0; k < K; ++k)
            choose<Scalar>(routing, t, k, chosen[k], activation[chosen[k]]);
    }
    return routing;
}

template <typename Scalar>
void route_sinkhorn_backward(Tensor& dlogits, const Tensor& dprobs, const Tensor& logits,
                             const Routing& routing, const MoEConfig& config) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    for (std::int64_t t = 0; t < T; ++t) {
        const auto x = row_of<Scalar>(logits, t), dp = row_of<Scalar>(dprobs, t);
        const auto dx = row_of<Scalar>(dlogits, t);
        const auto chosen = row_of<std::int64_t>(routing.topk_idx, t);
        if (config.moe_router_topk == 1) {
            const std::int64_t e = chosen[0];
            const Scalar s = sigmoid(x[e]);
            dx[e] += dp[e] * s * (Scalar(1) - s);
            continue;
        }
        std::vector<float> ds(E, 0.0f), dx_row(E);
        for (std::int64_t e : chosen) ds[e] = static_cast<float>(dp[e]);
        compute_scores_backward(dx_row, ScoreFunction::softmax,
                                std::vector<float>(x.begin(), x.end()),
                                row_of<float>(routing.scores, t), ds);
        for (std::int64_t e = 0; e < E; ++e) dx[e] += dx_row[e];
    }
}
//! [route_sinkhorn]

//! [route]
template <typename Scalar>
Routing route(const Tensor& logits, const Tensor& expert_bias, const MoEConfig& config,
              const Tensor& precomputed_idx) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = config.moe_router_topk;
    const float scale = scaling_factor(config);
    Routing routing = make_routing<Scalar>(T, E, K);
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < T; ++t) {
        std::vector<std::int64_t> chosen;
        if (precomputed_idx.defined()) {
            const auto given = row_of<std::int64_t>(precomputed_idx, t);
            chosen.assign(given.begin(), given.end());
        }
        const std::vector<float> p =
            route_token<Scalar>(row_of<float>(routing.scores, t), chosen,
                                row_of<Scalar>(logits, t), expert_bias, config);
        for (std::int64_t k = 0; k < K; ++k)
            choose<Scalar>(routing, t, k, chosen[k], scale * p[k]);
    }
    return routing;
}

template <typename Scalar>
void route_backward(Tensor& dlogits, const Tensor& dprobs, const Tensor& logits,
                    const Routing& routing, const MoEConfig& config) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    const float scale = scaling_factor(config);
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < T; ++t) {
        const auto x = row_of<Scalar>(logits, t), dp_row = row_of<Scalar>(dprobs, t);
        const auto dx_row = row_of<Scalar>(dlogits, t);
        const auto chosen = row_of<std::int64_t>(routing.topk_idx, t);
        std::vector<float> dp, dx(E, 0.0f);
        for (std::int64_t e : chosen) dp.push_back(scale * static_cast<float>(dp_row[e]));
        route_token_backward(dx, std::vector<float>(x.begin(), x.end()),
                             row_of<float>(routing.scores, t), chosen, std::move(dp),
                             config);
        for (std::int64_t e = 0; e < E; ++e) dx_row[e] += dx[e];
    }
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

}  // namespace moe::cpu
