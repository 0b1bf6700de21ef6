// topk_router.cpp: which experts a token visits, and with what weight; forward and
// backward.

#include "reference_cpu/topk_router.h"

#include <algorithm>
#include <cmath>

#include "core/given_experts.h"
#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "distributed/quantile_balancing.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/given_experts.h"
#include "reference_cpu/linear.h"
#include "reference_cpu/quantile_balancing.h"
#include "reference_cpu/routing.h"
#include "reference_cpu/token_dropping.h"

namespace moe::cpu {
namespace {

struct RouterSaved : Saved {
    TokenGrid grid;
    Tensor padding_mask;  // keeps grid.padding_mask alive
    Tensor hidden;        // (T, H), with jitter if there is any
    Tensor jitter;        // (T, H) or undefined
    Tensor logits;        // (T, E)
    Routing routing;
    Tensor kept_map;  // (T, E) u8 after dropping, undefined without a capacity
    AuxiliaryLossesSaved losses;
};

void require_finite(const Tensor& logits) {
    const std::vector<double> values = to_doubles(logits);
    const std::int64_t E = logits.dim(1);
    for (std::int64_t i = 0; i < std::int64_t(values.size()); ++i)
        if (!std::isfinite(static_cast<float>(values[i])))
            reject(fmt::format("logits[token {}, expert {}]", i / E, i % E), values[i],
                   "every router logit must be finite in fp32, as scores are");
}

/// Element by element.
template <typename Scalar>
Tensor multiply(const Tensor& a, const Tensor& b) {
    Tensor product = Tensor::empty(a.shape(), a.dtype());
    as_matrix<Scalar>(product) = as_matrix<Scalar>(a).cwiseProduct(as_matrix<Scalar>(b));
    return product;
}

/// Adds the tokens that `map` sends to each expert, padding left out.
/// @param counts (E) i64 @param map (T, E) u8
void count_tokens(Tensor& counts, const Tensor& map, const TokenGrid& grid) {
    const std::int64_t E = map.dim(1);
    for (std::int64_t t = 0; t < grid.num_tokens(); ++t)
        if (!grid.is_padding(t))
            for (std::int64_t e = 0; e < E; ++e)
                counts.data<std::int64_t>()[e] += map.data<std::uint8_t>()[t * E + e];
}

}  // namespace

template <typename Scalar>
TopKRouter<Scalar>::TopKRouter(const MoEConfig& config, const TensorMap& parameters,
                               const GroupsPtr& groups, DType dtype)
    : Router({MemorySpace::host, dtype_of<Scalar>}),
      config_(config),
      groups_(groups),
      rounding_(dtype),
      local_tokens_per_expert_(Tensor::zeros({config.num_experts()}, DType::i64)),
      random_logits_(config, groups, placement()),
      input_jitter_(config, groups, placement()) {
    const std::int64_t E = config.num_experts();
    const auto parameter = [&](const char* name, Shape shape) {
        return rounding_.of(transfer(parameters.at(name), placement()))
            .reshaped(std::move(shape));
    };
    weight_ = parameter("router.weight", {1, E, config.hidden_size});
    if (config.add_bias_linear) bias_ = parameter("router.bias", {1, E});
    if (const auto vocab = config.moe_router_hash_vocab_size)
        tid2eid_ = read_experts(kTid2Eid, parameters.at(kTid2Eid), *vocab, config);
    const auto buffer = [&](const char* name) {
        const auto found = parameters.find(name);
        return found == parameters.end()
                   ? Tensor::zeros({E}, DType::f32)
                   : transfer(found->second, {MemorySpace::host, DType::f32});
    };
    if (config.moe_router_enable_expert_bias) expert_bias_ = buffer("router.expert_bias");
    if (config.is_quantile_balancing()) {
        qb_beta_ = buffer("router.qb_beta");
        qb_beta_accum_ = Tensor::zeros({E}, DType::f32);
    }
}

//! [router_forward]
template <typename Scalar>
Router::Output TopKRouter<Scalar>::forward(const Tensor& hidden,
                                           const Tensor& padding_mask,
                                           const RunContext& context) {
    const std::int64_t S = hidden.dim(0), B = hidden.dim(1);
    if (qb_beta_.defined()) distributed::refuse_padding_mask(padding_mask);
    auto saved = std::make_unique<RouterSaved>();
    saved->hidden = hidden.reshaped({S * B, hidden.dim(2)});
    saved->padding_mask = padding_mask;
    saved->grid = {S, B, nullptr};
    if (padding_mask.defined())
        saved->grid.padding_mask = padding_mask.template data<std::uint8_t>();
    Output result;

    // ② logits = X Wᵀ + b
    {
        StepTimer timer(context, Step::gating);
        saved->hidden = rounding_.of(saved->hidden);
        if (config_.moe_input_jitter_eps) {
            saved->jitter = rounding_.of(input_jitter_.of(S, B));
            saved->hidden = rounding_.of(multiply<Scalar>(saved->hidden, saved->jitter));
        }
        saved->logits = rounding_.of(linear_forward<Scalar>(
            saved->hidden, weight_, bias_, {}, make_row_groups({S * B})));
        if (!config_.has_random_logits()) require_finite(saved->logits);
    }
    if (saved->jitter.defined())
        context.value(Step::gating, "jittered_hidden_states", saved->hidden);
    context.value(Step::gating, "logits", saved->logits);
    if (config_.has_random_logits()) {
        saved->logits = rounding_.of(random_logits_.of(S, B));
        context.value(Step::gating, "random_logits", saved->logits);
    }

    // ③ K experts per token, and their weights
    Tensor quantiles;
    {
        StepTimer timer(context, Step::routing);
        Tensor precomputed_idx = given_experts(context, S, B);
        if (qb_beta_.defined())
            precomputed_idx =
                choose_by_quantiles(quantiles, saved->logits, context.training);
        saved->routing =
            config_.is_sinkhorn()
                ? route_sinkhorn<Scalar>(saved->logits, config_, context.training)
                : route<Scalar>(saved->logits, expert_bias_, config_, precomputed_idx);
        saved->routing.probs = rounding_.of(saved->routing.probs);
        result.probs = saved->routing.probs;
        result.routing_map = saved->routing.map;
    }
    context.value(Step::routing, "topk_idx", saved->routing.topk_idx);
    context.value(Step::routing, "topk_probs", saved->routing.probs);
    if (quantiles.defined()) context.value(Step::routing, "qb_beta_local", quantiles);

    // ④ experts over capacity turn tokens away
    if (config_.moe_expert_capacity_factor) {
        StepTimer timer(context, Step::token_dropping);
        const DroppedRouting kept =
            apply_token_dropping<Scalar>(result.probs, result.routing_map, config_);
        result.probs = kept.probs;
        result.routing_map = saved->kept_map = kept.routing_map;
    }
    context.value(Step::token_dropping, "probs", result.probs);
    context.value(Step::token_dropping, "routing_map", result.routing_map);

    // ⑤ losses that keep the experts evenly used, and the counts behind the expert bias
    if (context.training) {
        StepTimer timer(context, Step::auxiliary_losses);
        Losses losses;
        saved->losses =
            auxiliary_losses_forward<Scalar>(losses, global_counts_, saved->logits,
                                             saved->grid, config_, *groups_, context);
        result.losses = losses;
        if (expert_bias_.defined())
            count_tokens(local_tokens_per_expert_, result.routing_map, saved->grid);
    }
    result.saved = std::move(saved);
    return result;
}
//! [router_forward]

//! [router_backward]
template <typename Scalar>
void TopKRouter<Scalar>::backward(Tensor& dhidden, TensorMap& gradients,
                                  const Tensor& dprobs, const Saved& saved_base,
                                  const RunContext& context) {
    const auto& saved = saved_as<RouterSaved>(saved_base);
    const RowGroups all_tokens = make_row_groups({saved.hidden.dim(0)});

    // ⑯ the losses' own gradient
    Tensor dlogits;  // (T, E)
    {
        StepTimer timer(context, Step::auxiliary_losses_backward);
        dlogits = auxiliary_losses_backward<Scalar>(
            saved.losses, saved.logits, saved.grid, config_,
            context.main_loss_backward_scale.value());
    }
    context.value(Step::auxiliary_losses_backward, "d_logits_losses", dlogits);

    // ⑰ a dropped choice has no gradient of its own, but stays in its token's sum
    Tensor dtopk_probs = rounding_.of(dprobs);
    if (saved.kept_map.defined()) {
        StepTimer timer(context, Step::token_dropping_backward);
        dtopk_probs = apply_token_dropping_backward<Scalar>(dtopk_probs, saved.kept_map);
    }
    context.value(Step::token_dropping_backward, "d_topk_probs", dtopk_probs);

    // ⑱ through weights and scores, over the choices before dropping
    {
        StepTimer timer(context, Step::routing_backward);
        const auto through = config_.is_sinkhorn() ? route_sinkhorn_backward<Scalar>
                                                   : route_backward<Scalar>;
        through(dlogits, dtopk_probs, saved.logits, saved.routing, config_);
        dlogits = rounding_.of(dlogits);
    }
    context.value(Step::routing_backward, "d_logits", dlogits);

    // ⑲ dX += dlogits W, times the jitter; dW = dlogitsᵀ X, db = Σ dlogits
    {
        StepTimer timer(context, Step::gating_backward);
        Tensor dx = Tensor::empty(dhidden.shape(), dhidden.dtype());
        as_matrix<Scalar>(dx) =
            as_matrix<Scalar>(dlogits) * matrix_at<Scalar>(weight_, 0);
        if (saved.jitter.defined()) dx = multiply<Scalar>(dx, saved.jitter);
        as_matrix<Scalar>(dhidden) += as_matrix<Scalar>(dx);
        gradients["router.weight"] =
            linear_backward_weight<Scalar>(dlogits, saved.hidden, all_tokens)
                .reshaped({weight_.dim(1), weight_.dim(2)});
        if (bias_.defined())
            gradients["router.bias"] =
                linear_backward_bias<Scalar>(dlogits, {}, all_tokens)
                    .reshaped({weight_.dim(1)});
    }
    context.value(Step::gating_backward, "d_hidden_states_router", dhidden);
}
//! [router_backward]

template <typename Scalar>
Tensor TopKRouter<Scalar>::update_expert_bias() {
    if (!expert_bias_.defined()) return {};
    const Tensor tokens_per_expert =
        distributed::reduce_from_tensor_model_parallel_region(*groups_->tp_dp_cp,
                                                              local_tokens_per_expert_);
    expert_bias_ = get_updated_expert_bias(expert_bias_, tokens_per_expert,
                                           config_.moe_router_bias_update_rate);
    local_tokens_per_expert_ = Tensor::zeros({config_.num_experts()}, DType::i64);
    return expert_bias_;
}

template <typename Scalar>
Tensor TopKRouter<Scalar>::given_experts(const RunContext& context, std::int64_t S,
                                         std::int64_t B) const {
    const Tensor target = read_target_topk_idx(config_, context, S * B);
    if (target.defined() || !tid2eid_.defined()) return target;
    return look_up_experts(tid2eid_, read_token_ids(config_, context, S, B));
}

template <typename Scalar>
Tensor TopKRouter<Scalar>::choose_by_quantiles(Tensor& quantiles, const Tensor& logits,
                                               bool training) {
    const std::int64_t K = config_.moe_router_topk;
    const QuantileChoice choice = cpu::choose_by_quantiles(
        transfer(logits, {MemorySpace::host, DType::f32}), qb_beta_, K);
    if (!training) return choice.topk_idx;
    const Tensor margins = distributed::gather_margins(groups_, choice.margins);
    if (margins.dim(0) == 0) return choice.topk_idx;
    quantiles = margin_quantiles(margins, K);
    for (std::int64_t e = 0; e < quantiles.numel(); ++e)
        qb_beta_accum_.data<float>()[e] += quantiles.data<float>()[e];
    ++qb_beta_count_;
    return choice.topk_idx;
}

template <typename Scalar>
Tensor TopKRouter<Scalar>::update_qb_beta() {
    if (!qb_beta_.defined()) return {};
    Tensor mean = qb_beta_accum_;
    for (std::int64_t e = 0; e < mean.numel(); ++e)
        mean.data<float>()[e] /= float(std::max<std::int64_t>(qb_beta_count_, 1));
    const auto [sum, ranks] = distributed::sum_quantiles(groups_, mean);
    qb_beta_ = get_updated_qb_beta(qb_beta_, sum, ranks,
                                   config_.moe_router_quantile_balancing_ema);
    qb_beta_accum_ = Tensor::zeros({config_.num_experts()}, DType::f32);
    qb_beta_count_ = 0;
    return qb_beta_;
}

template class TopKRouter<float>;
template class TopKRouter<double>;

}  // namespace moe::cpu
