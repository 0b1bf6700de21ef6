// topk_router.cu: which experts a token visits, and with what weight; forward and
// backward.

#include "optimized_gpu/topk_router.h"

#include "core/given_experts.h"
#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/quantile_balancing.h"
#include "gpu/tensor.h"
#include "optimized_gpu/gating.h"
#include "optimized_gpu/given_experts.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/quantile_balancing.h"
#include "optimized_gpu/sinkhorn.h"
#include "optimized_gpu/token_dropping.h"
#include "optimized_gpu/unfused_routing.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {

struct RouterSaved : Saved {
    Tensor hidden;                           // (T, H), with jitter if there is any
    Tensor jitter;                           // (T, H) f32 or undefined
    Tensor padding_mask;                     // (S, B) u8 or undefined
    Tensor gate_logits;                      // (T, E) in the gate's dtype
    Tensor logits;                           // the same in fp32
    SinkhornRouting balanced;                // with sinkhorn
    Tensor margins, all_margins, quantiles;  // in training, with quantile_balancing
    RoutedTokens routed;                     // weights, ids, statistics of the losses
    UnfusedRouting unfused;                  // without moe_router_fusion
    Tensor ids, weights;                     // (T, K), the choices before dropping
    KeptTokens kept;                         // with a capacity
    PaddedTokens padded;                     // with experts padded to it
    AuxiliaryLosses losses;
};

namespace {

/// The tensor in bf16 as a single group, or undefined where that would round.
Tensor exact_in_bf16(const Tensor& tensor, Shape shape) {
    const Tensor host = transfer(tensor, {MemorySpace::host, DType::f64});
    const Tensor rounded = transfer(host, {MemorySpace::host, DType::bf16});
    if (to_doubles(rounded) != to_doubles(host)) return {};
    return transfer(rounded, {MemorySpace::device, DType::bf16})
        .reshaped(std::move(shape));
}

/// One thread per token and expert.
__global__ void count_tokens_kernel(unsigned long long* counts, const std::uint8_t* map,
                                    const std::uint8_t* padding_mask, std::int64_t count,
                                    std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count || map[i] == 0) return;
    if (padding_mask != nullptr && padding_mask[i / E] != 0) return;
    atomicAdd(&counts[i % E], 1ull);
}

/// dprobs (T, E) at the choices: 0 for a dropped one; what fills an expert up has none.
Tensor choices_of(const Tensor& dprobs, const RouterSaved& saved) {
    const Tensor& ids = saved.kept.ids.defined() ? saved.kept.ids : saved.ids;
    return indices_to_multihot_backward(cast_logits(dprobs, DType::f32), ids);
}

/// The values where the map has a 1, on the host; for observers.
Tensor masked(const Tensor& values, const Tensor& map) {
    std::vector<double> shown = to_doubles(values);
    const std::vector<double> mask = to_doubles(map);
    for (std::size_t i = 0; i < shown.size(); ++i) shown[i] *= mask[i];
    return Tensor::from(values.shape(), shown);
}

/// What only the device knows, once somebody wants to.
LateLosses late_losses(const RouterSaved& saved) {
    const AuxiliaryLosses& computed = saved.losses;
    return std::function<Losses()>([names = computed.names, values = computed.values,
                                    routed = saved.routed, logits = saved.logits,
                                    stream = gpu::current_stream()] {
        const gpu::StreamGuard guard(stream);
        require_finite(routed, logits);
        Losses losses;
        if (names.empty()) return losses;
        const std::vector<double> read = gpu::to_host<double>(values);
        for (std::size_t i = 0; i < names.size(); ++i) losses[names[i]] = read[i];
        return losses;
    });
}

}  // namespace

TopKRouter::TopKRouter(const MoEConfig& config, DType dtype, const TensorMap& parameters,
                       const GroupsPtr& groups)
    : Router({MemorySpace::device, dtype == DType::f64 ? DType::f64 : DType::f32}),
      config_(config),
      groups_(groups),
      rule_(make_routing_rule(config)),
      local_tokens_per_expert_(gpu::device_zeros<std::int64_t>({config.num_experts()})),
      global_counts_(gpu::device_zeros<double>({config.num_experts() + 1})),
      random_logits_(config, groups, {MemorySpace::device, DType::f32}),
      input_jitter_(config, groups, {MemorySpace::device, DType::f32}) {
    const std::int64_t E = config.num_experts();
    rule_.rounds = dtype == DType::bf16;
    weight_ = rounded(transfer(parameters.at("router.weight"), placement()));
    if (config.add_bias_linear)
        bias_ = rounded(transfer(parameters.at("router.bias"), placement()));
    if (placement().dtype == DType::f32) {
        bf16_weight_ = exact_in_bf16(weight_, {1, E, config.hidden_size});
        if (bias_.defined()) bf16_bias_ = exact_in_bf16(bias_, {1, E});
    }
    if (const auto vocab = config.moe_router_hash_vocab_size)
        tid2eid_ = to_device_ids(
            read_experts(kTid2Eid, parameters.at(kTid2Eid), *vocab, config));
    const auto buffer = [&](const char* name) {
        const auto found = parameters.find(name);
        return found == parameters.end()
                   ? gpu::device_zeros<float>({E})
                   : transfer(found->second, {MemorySpace::device, DType::f32});
    };
    if (config.moe_router_enable_expert_bias) expert_bias_ = buffer("router.expert_bias");
    if (config.is_quantile_balancing()) {
        qb_beta_ = buffer("router.qb_beta");
        qb_sums_ = gpu::device_zeros<float>({E + 1});
    }
}

/// ② Products of bf16 factors are exact in fp32, on tensor cores as well; all others are
/// made where fp32 is.
Tensor TopKRouter::gate(const Tensor& hidden) {
    const bool exact = hidden.dtype() == DType::bf16 && bf16_weight_.defined() &&
                       bias_.defined() == bf16_bias_.defined();
    if (!exact) return gating_forward(hidden, weight_, bias_);
    return linear_forward(hidden, bf16_weight_, {bf16_bias_}, {},
                          all_tokens_.of(hidden.dim(0)), DType::f32);
}

/// As a router of bf16 has it, see core/router_rounding.h; any other's as it is. What is
/// not rounded here, the kernels of the routing round: RoutingRule::rounds.
Tensor TopKRouter::rounded(const Tensor& values) const {
    if (!rule_.rounds || values.dtype() == DType::bf16) return values;
    Tensor result = Tensor::empty(values.shape(), values.dtype(), values.space());
    round_to_bf16(result, values);
    return result;
}

/// The same for what nobody else has, in place.
void TopKRouter::round(Tensor& values) const {
    if (rule_.rounds) round_to_bf16(values, values);
}

//! [router_forward]
Router::Output TopKRouter::forward(const Tensor& hidden, const Tensor& padding_mask,
                                   const RunContext& context) {
    const std::int64_t S = hidden.dim(0), B = hidden.dim(1), T = S * B;
    if (qb_beta_.defined()) distributed::refuse_padding_mask(padding_mask);
    auto saved = std::make_unique<RouterSaved>();
    saved->hidden = hidden.reshaped({T, hidden.dim(2)});
    saved->padding_mask = padding_mask;
    Output result;

    // ② logits = X Wᵀ + b
    {
        StepTimer timer(context, Step::gating);
        saved->hidden = rounded(saved->hidden);
        if (config_.moe_input_jitter_eps) {
            saved->jitter = rounded(input_jitter_.of(S, B));
            saved->hidden =
                rounded(jitter_tokens(saved->hidden, saved->jitter, weight_.dtype()));
        }
        saved->gate_logits = gate(saved->hidden);
        round(saved->gate_logits);
        saved->logits = cast_logits(saved->gate_logits, DType::f32);
        synchronize_if_watched(context);
    }
    if (saved->jitter.defined())
        context.value(Step::gating, "jittered_hidden_states", saved->hidden);
    context.value(Step::gating, "logits", saved->gate_logits);
    if (config_.has_random_logits()) {
        saved->logits = rounded(random_logits_.of(S, B));
        context.value(Step::gating, "random_logits", saved->logits);
    }

    // ③ K experts per token, and their weights; ⑤ what the losses sum up
    const std::int64_t populations = context.training ? count_populations(config_, B) : 0;
    const bool counts_choices =
        context.training && expert_bias_.defined() && !config_.moe_expert_capacity_factor;
    {
        StepTimer timer(context, Step::routing);
        saved->routed = make_routed_tokens(rule_, T, populations);
        const bool given = give_experts(saved->routed.ids, context, S, B);
        const RoutingOperands operands = {
            saved->logits, expert_bias_, padding_mask,
            counts_choices ? local_tokens_per_expert_ : Tensor(),
            given || qb_beta_.defined()};
        if (qb_beta_.defined()) choose_by_quantiles(*saved, context.training);
        if (config_.moe_router_fusion)
            route(saved->routed, operands, rule_);
        else
            saved->unfused = route_unfused(saved->routed, operands, rule_);
        saved->ids = saved->routed.ids;
        saved->weights = saved->routed.weights;
        if (config_.is_sinkhorn()) {
            if (context.training) require_finite(saved->routed, saved->logits);
            saved->balanced = route_sinkhorn(saved->logits, config_, context.training);
            saved->ids = saved->balanced.ids;
            saved->weights = rounded(saved->balanced.weights);
        }
        synchronize_if_watched(context);
    }
    const auto dense = [&](const Tensor& ids) {
        return indices_to_multihot(ids, saved->weights, rule_.num_experts);
    };
    context.value(Step::routing, "topk_idx", saved->ids);
    context.value_beside(Step::routing, "topk_probs",
                         [&] { return dense(saved->ids).probs; });
    if (saved->quantiles.defined())
        context.value(Step::routing, "qb_beta_local", saved->quantiles);

    // ④ experts over capacity turn tokens away
    result.topk_ids = saved->ids;
    result.topk_probs = saved->weights;
    if (config_.moe_expert_capacity_factor) {
        StepTimer timer(context, Step::token_dropping);
        apply_capacity(result, *saved);
        synchronize_if_watched(context);
    }
    context.value_beside(Step::token_dropping, "probs", [&] {
        return result.probs.defined() ? result.probs : dense(result.topk_ids).probs;
    });
    context.value_beside(Step::token_dropping, "routing_map", [&] {
        return result.probs.defined() ? result.routing_map : dense(result.topk_ids).map;
    });

    // ⑤ losses that keep the experts evenly used, and the counts behind the expert bias
    if (context.training) {
        StepTimer timer(context, Step::auxiliary_losses);
        if (groups_ != nullptr) reduce_loss_counts(saved->routed, config_, *groups_);
        saved->losses = auxiliary_losses(
            saved->routed.losses, global_counts_,
            make_loss_rule(config_, B, groups_ != nullptr ? groups_->tp_cp->size() : 1,
                           padding_mask.defined()));
        if (expert_bias_.defined() && !counts_choices)
            count_for_expert_bias(result, padding_mask);
        synchronize_if_watched(context);
    }
    if (saved->losses.dscores.defined())
        context.value_beside(Step::auxiliary_losses, "aux_scores",
                             [&] { return compute_aux_scores(saved->logits, rule_); });
    result.losses = late_losses(*saved);
    result.saved = std::move(saved);
    return result;
}
//! [router_forward]

bool TopKRouter::give_experts(Tensor& ids, const RunContext& context, std::int64_t S,
                              std::int64_t B) const {
    const Tensor target = read_target_topk_idx(config_, context, S * B);
    if (target.defined())
        ids = to_device_ids(target);
    else if (tid2eid_.defined())
        look_up_experts(ids, tid2eid_,
                        to_device_ids(read_token_ids(config_, context, S, B)));
    return target.defined() || tid2eid_.defined();
}

void TopKRouter::choose_by_quantiles(RouterSaved& saved, bool training) {
    if (training) saved.margins = gpu::device_empty<float>(saved.logits.shape());
    optimized::choose_by_quantiles(saved.routed.ids, saved.margins, saved.logits,
                                   qb_beta_);
    if (!training) return;
    saved.all_margins = distributed::gather_margins(groups_, saved.margins);
    if (saved.all_margins.dim(0) == 0) return;
    saved.quantiles = gpu::device_empty<float>(qb_beta_.shape());
    add_margin_quantiles(saved.quantiles, qb_sums_, saved.all_margins,
                         config_.moe_router_topk);
}

void TopKRouter::apply_capacity(Output& output, RouterSaved& saved) const {
    const std::int64_t capacity = capacity_of_experts(config_, saved.ids.dim(0));
    const bool by_probs = config_.moe_token_drop_policy == "probs";
    saved.kept =
        drop_tokens(saved.ids, saved.weights, rule_.num_experts, capacity, by_probs);
    output.topk_ids = saved.kept.ids;
    if (!config_.moe_pad_expert_input_to_capacity) return;
    // Experts that are filled up may give a token more than K of them.
    saved.padded =
        pad_to_capacity(saved.ids, saved.weights, rule_.num_experts, capacity, by_probs);
    output.probs = saved.padded.probs;
    output.routing_map = saved.padded.map;
    output.topk_ids = output.topk_probs = {};
}

void TopKRouter::count_for_expert_bias(const Output& output, const Tensor& padding_mask) {
    const Tensor map =
        output.routing_map.defined()
            ? output.routing_map
            : indices_to_multihot(output.topk_ids, output.topk_probs, rule_.num_experts)
                  .map;
    gpu::launch(
        "count_tokens_kernel", count_tokens_kernel, gpu::one_thread_per(map.numel()),
        gpu::device_counts(local_tokens_per_expert_), gpu::device_data<std::uint8_t>(map),
        gpu::device_data<std::uint8_t>(padding_mask), map.numel(), map.dim(1));
}

void TopKRouter::make_dense(Output& output) const {
    const Multihot dense =
        indices_to_multihot(output.topk_ids, output.topk_probs, rule_.num_experts);
    output.probs = dense.probs;
    output.routing_map = dense.map;
}

Tensor TopKRouter::make_dense_backward(const Tensor& dprobs,
                                       const Saved& saved_base) const {
    const auto& saved = saved_as<RouterSaved>(saved_base);
    return saved.padded.map.defined() ? dprobs : choices_of(dprobs, saved);
}

//! [router_backward]
void TopKRouter::backward(Tensor& dhidden, TensorMap& gradients, const Tensor& dprobs,
                          const Saved& saved_base, const RunContext& context) {
    const auto& saved = saved_as<RouterSaved>(saved_base);

    // ⑰ What was dropped comes back as 0: it has no gradient of its own, but stays in its
    // token's sum.
    const Tensor dweights = saved.padded.map.defined()
                                ? choices_of(dprobs, saved)
                                : cast_logits(dprobs, DType::f32);  // (T, K)
    const LossGradients losses = {saved.losses.dscores, saved.losses.z_scale,
                                  context.main_loss_backward_scale};
    const bool has_losses = losses.dscores.defined() || losses.z_scale.defined();
    UnfusedGradient unfused;
    const auto through = [&](const Tensor& from, const RoutingRule& rule) {
        const RoutingGradientOperands operands = {from, saved.logits, saved.routed.ids,
                                                  saved.padding_mask, losses};
        if (!config_.moe_router_fusion) {
            unfused = route_unfused_backward(operands, rule);
            if (rule.rounds) round(unfused.dlogits);
            return unfused.dlogits;
        }
        Tensor dlogits = gpu::device_empty<float>(saved.logits.shape());
        route_backward(dlogits, operands, rule);
        return dlogits;
    };
    const auto of_losses = [&] {
        RoutingRule rule = rule_;
        rule.rounds = false;  // but with the main loss's, once
        return through(gpu::device_zeros<float>(saved.weights.shape()), rule);
    };

    // ⑯ the losses' own gradient, ⑱ through weights and scores
    Tensor dlogits;  // (T, E)
    {
        StepTimer timer(context,
                        {Step::auxiliary_losses_backward, Step::routing_backward});
        if (config_.is_sinkhorn()) {
            dlogits =
                has_losses ? of_losses() : gpu::device_zeros<float>(saved.logits.shape());
            route_sinkhorn_backward(dlogits, rounded(dweights), saved.ids, saved.logits,
                                    config_);
            round(dlogits);
        } else {
            dlogits = through(dweights, rule_);
        }
        dlogits = cast_logits(dlogits, weight_.dtype());
        synchronize_if_watched(context);
    }
    context.value_beside(Step::auxiliary_losses_backward, "d_logits_losses",
                         [&] { return cast_logits(of_losses(), weight_.dtype()); });
    context.value_beside(Step::token_dropping_backward, "d_topk_probs", [&] {
        if (saved.padded.map.defined()) return masked(dprobs, saved.padded.map);
        return indices_to_multihot(saved.ids, dweights, rule_.num_experts).probs;
    });
    context.value(Step::routing_backward, "d_logits", dlogits);

    // ⑲ dX += dlogits W, times the jitter; dW = dlogitsᵀ X, db = Σ dlogits
    {
        StepTimer timer(context, Step::gating_backward);
        // The same values in half the bytes, where they are exact
        const Tensor weight =
            bf16_weight_.defined() ? bf16_weight_.reshaped(weight_.shape()) : weight_;
        gating_backward_input(dhidden, dlogits, weight, saved.jitter);
        gradients["router.weight"] = gating_backward_weight(dlogits, saved.hidden);
        if (bias_.defined()) gradients["router.bias"] = gating_backward_bias(dlogits);
        synchronize_if_watched(context);
    }
    context.value(Step::gating_backward, "d_hidden_states_router", dhidden);
}
//! [router_backward]

Tensor TopKRouter::update_expert_bias() {
    if (!expert_bias_.defined()) return {};
    Tensor counts = local_tokens_per_expert_;
    if (groups_ != nullptr)
        counts = distributed::reduce_from_tensor_model_parallel_region(*groups_->tp_dp_cp,
                                                                       counts);
    // In place: a CUDA graph reads it where it was at the capture.
    copy(expert_bias_, get_updated_expert_bias(expert_bias_, counts,
                                               config_.moe_router_bias_update_rate));
    reset_counts(local_tokens_per_expert_);
    return expert_bias_;
}

Tensor TopKRouter::update_qb_beta() {
    if (!qb_beta_.defined()) return {};
    const auto [sum, ranks] =
        distributed::sum_quantiles(groups_, mean_quantiles(qb_sums_));
    // In place, as above
    copy(qb_beta_, get_updated_qb_beta(qb_beta_, sum, ranks,
                                       config_.moe_router_quantile_balancing_ema));
    reset_counts(qb_sums_);
    return qb_beta_;
}

}  // namespace moe::optimized
