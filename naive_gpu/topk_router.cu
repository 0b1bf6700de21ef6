// topk_router.cu: which experts a token visits, and with what weight; forward and
// backward.

#include "naive_gpu/topk_router.h"

#include <algorithm>
#include <cmath>

#include "core/given_experts.h"
#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "distributed/quantile_balancing.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/given_experts.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/quantile_balancing.h"
#include "naive_gpu/routing.h"
#include "naive_gpu/token_dropping.h"

namespace moe::naive {
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

/// One thread per logit; notes the first that is not finite.
template <typename Scalar>
__global__ void require_finite_kernel(unsigned long long* first, const Scalar* logits,
                                      std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    if (!isfinite(static_cast<float>(logits[i])))
        atomicMin(first, static_cast<unsigned long long>(i));
}

template <typename Scalar>
void require_finite(const Tensor& logits) {
    const std::int64_t E = logits.dim(1), count = logits.numel();
    Tensor first = gpu::to_device(std::vector<std::int64_t>{count});
    gpu::launch("require_finite_kernel", require_finite_kernel<Scalar>,
                gpu::one_thread_per(count), gpu::device_counts(first),
                gpu::device_data<Scalar>(logits), count);
    const std::int64_t i = gpu::to_host<std::int64_t>(first)[0];
    if (i < count)
        reject(fmt::format("logits[token {}, expert {}]", i / E, i % E),
               to_doubles(logits)[i],
               "every router logit must be finite in fp32, as scores are");
}

/// One thread per token and expert.
__global__ void count_tokens_kernel(unsigned long long* counts, const std::uint8_t* map,
                                    TokenGrid grid, std::int64_t count, std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    if (map[i] != 0 && !grid.is_padding(i / E)) atomicAdd(&counts[i % E], 1ull);
}

/// Adds the tokens that `map` sends to each expert, padding left out.
/// @param counts (E) i64 @param map (T, E) u8
void count_tokens(Tensor& counts, const Tensor& map, const TokenGrid& grid) {
    gpu::launch("count_tokens_kernel", count_tokens_kernel,
                gpu::one_thread_per(map.numel()), gpu::device_counts(counts),
                gpu::device_data<std::uint8_t>(map), grid, map.numel(), map.dim(1));
}

}  // namespace

template <typename Scalar>
TopKRouter<Scalar>::TopKRouter(const MoEConfig& config, const TensorMap& parameters,
                               const GroupsPtr& groups, DType dtype)
    : Router({MemorySpace::device, dtype_of<Scalar>}),
      config_(config),
      groups_(groups),
      rounding_(dtype),
      local_tokens_per_expert_(gpu::device_zeros<std::int64_t>({config.num_experts()})),
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
        tid2eid_ = transfer(
            read_experts(kTid2Eid, parameters.at(kTid2Eid), *vocab, config), placement());
    const auto buffer = [&](const char* name) {
        const auto found = parameters.find(name);
        return found == parameters.end()
                   ? gpu::device_zeros<float>({E})
                   : transfer(found->second, {MemorySpace::device, DType::f32});
    };
    if (config.moe_router_enable_expert_bias) expert_bias_ = buffer("router.expert_bias");
    if (config.is_quantile_balancing()) {
        qb_beta_ = buffer("router.qb_beta");
        qb_beta_accum_ = gpu::device_zeros<float>({E});
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
    saved->grid = make_token_grid(S, B, padding_mask);
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
        if (!config_.has_random_logits()) require_finite<Scalar>(saved->logits);
        gpu::synchronize();
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
        gpu::synchronize();
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
        gpu::synchronize();
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
        gpu::synchronize();
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
        gpu::synchronize();
    }
    context.value(Step::auxiliary_losses_backward, "d_logits_losses", dlogits);

    // ⑰ a dropped choice has no gradient of its own, but stays in its token's sum
    Tensor dtopk_probs = rounding_.of(dprobs);
    if (saved.kept_map.defined()) {
        StepTimer timer(context, Step::token_dropping_backward);
        dtopk_probs = apply_token_dropping_backward<Scalar>(dtopk_probs, saved.kept_map);
        gpu::synchronize();
    }
    context.value(Step::token_dropping_backward, "d_topk_probs", dtopk_probs);

    // ⑱ through weights and scores, over the choices before dropping
    {
        StepTimer timer(context, Step::routing_backward);
        const auto through = config_.is_sinkhorn() ? route_sinkhorn_backward<Scalar>
                                                   : route_backward<Scalar>;
        through(dlogits, dtopk_probs, saved.logits, saved.routing, config_);
        dlogits = rounding_.of(dlogits);
        gpu::synchronize();
    }
    context.value(Step::routing_backward, "d_logits", dlogits);

    // ⑲ dX += dlogits W, times the jitter; dW = dlogitsᵀ X, db = Σ dlogits
    {
        StepTimer timer(context, Step::gating_backward);
        Tensor dx = linear_backward_input<Scalar>(dlogits, weight_, all_tokens);
        if (saved.jitter.defined()) dx = multiply<Scalar>(dx, saved.jitter);
        add_to<Scalar>(dhidden, dx);
        gradients["router.weight"] =
            linear_backward_weight<Scalar>(dlogits, saved.hidden, all_tokens)
                .reshaped({weight_.dim(1), weight_.dim(2)});
        if (bias_.defined())
            gradients["router.bias"] =
                linear_backward_bias<Scalar>(dlogits, {}, all_tokens)
                    .reshaped({weight_.dim(1)});
        gpu::synchronize();
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
    local_tokens_per_expert_ = gpu::device_zeros<std::int64_t>({config_.num_experts()});
    return expert_bias_;
}

template <typename Scalar>
Tensor TopKRouter<Scalar>::given_experts(const RunContext& context, std::int64_t S,
                                         std::int64_t B) const {
    const Tensor target = read_target_topk_idx(config_, context, S * B);
    if (target.defined() || !tid2eid_.defined()) return transfer(target, placement());
    return look_up_experts(tid2eid_,
                           transfer(read_token_ids(config_, context, S, B), placement()));
}

template <typename Scalar>
Tensor TopKRouter<Scalar>::choose_by_quantiles(Tensor& quantiles, const Tensor& logits,
                                               bool training) {
    const std::int64_t K = config_.moe_router_topk;
    const QuantileChoice choice = naive::choose_by_quantiles(
        transfer(logits, {MemorySpace::device, DType::f32}), qb_beta_, K);
    if (!training) return choice.topk_idx;
    const Tensor margins = distributed::gather_margins(groups_, choice.margins);
    if (margins.dim(0) == 0) return choice.topk_idx;
    quantiles = margin_quantiles(margins, K);
    add_to<float>(qb_beta_accum_, quantiles);
    ++qb_beta_count_;
    return choice.topk_idx;
}

template <typename Scalar>
Tensor TopKRouter<Scalar>::update_qb_beta() {
    if (!qb_beta_.defined()) return {};
    const Tensor mean =
        mean_quantiles(qb_beta_accum_, std::max<std::int64_t>(qb_beta_count_, 1));
    const auto [sum, ranks] = distributed::sum_quantiles(groups_, mean);
    qb_beta_ = get_updated_qb_beta(qb_beta_, sum, ranks,
                                   config_.moe_router_quantile_balancing_ema);
    qb_beta_accum_ = gpu::device_zeros<float>({config_.num_experts()});
    qb_beta_count_ = 0;
    return qb_beta_;
}

template class TopKRouter<float>;
template class TopKRouter<double>;

}  // namespace moe::naive
