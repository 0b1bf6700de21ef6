#include "core/moe_layer.h"

#include "core/glu_interleaving.h"
#include "core/parameters.h"
#include "core/recompute.h"
#include "core/transfer.h"

namespace moe {
namespace {

/// Megatron's layer takes the mask as (B, S) and transposes it to the order of the
/// tokens.
Tensor transpose_mask(const Tensor& mask, std::int64_t seq_len,
                      std::int64_t micro_batch) {
    if (!mask.defined()) return {};
    if (mask.shape() != Shape{micro_batch, seq_len} || mask.dtype() != DType::u8)
        reject("padding_mask", to_string(mask.dtype()) + " " + to_string(mask.shape()),
               "must be uint8 (B, S) = " + to_string(Shape{micro_batch, seq_len}));
    return transpose(mask);
}

void require_one_rank(const MoEConfig& config) {
    const auto only_one = [](const std::string& field, std::int64_t size) {
        if (size != 1) reject(field, size, "must be 1 without ranks (see --ranks)");
    };
    only_one("tensor_model_parallel_size", config.tensor_model_parallel_size);
    only_one("context_parallel_size", config.context_parallel_size);
    only_one("expert_model_parallel_size", config.expert_model_parallel_size);
    only_one("expert_tensor_parallel_size", *config.expert_tensor_parallel_size);
}

void check_hidden(const std::string& field, const Tensor& tensor, const Shape& expected) {
    if (!is_floating(tensor.dtype()) || tensor.shape() != expected)
        reject(field, to_string(tensor.dtype()) + " " + to_string(tensor.shape()),
               "must be floating-point (S, B, H) = " + to_string(expected));
}

/// Hidden states, or their gradient, as the router takes them.
Tensor to_router(const Tensor& tensor, const Router& router) {
    Placement target = router.placement();
    if (router.takes(tensor.dtype())) target.dtype = tensor.dtype();
    return transfer(tensor, target);
}

}  // namespace

Rows to_experts(const Rows& rows, const Experts& experts) {
    const Placement& target = experts.placement();
    Rows placed;
    if (!rows.ids.defined() || !experts.takes_row_ids())
        placed = transfer(rows.plain(), target);
    else
        placed = {transfer(rows.values, target), transfer(rows.ids, target),
                  [rows, target] { return transfer(rows.plain(), target); }};
    // Elsewhere the counts are enough
    if (rows.offsets.defined() && rows.offsets.space() == target.space)
        placed.offsets = rows.offsets;
    return placed;
}

MoELayer::MoELayer(const MoEConfig& config, ModuleSpec spec, const TensorMap& stored,
                   const GroupsPtr& groups)
    : config_(config), spec_(std::move(spec)) {
    if (groups == nullptr) require_one_rank(config_);
    check_parameters(config_, stored, "");
    const TensorMap parameters = remove_glu_interleaving(config_, stored);
    spec_.check_dtypes();
    spec_.raise_router_dtype(config_);
    const auto tier = [](const ComponentSpec& supplier) -> const Tier& {
        return find_tier("spec", supplier.tier);
    };
    router_ =
        tier(spec_.router).make_router(config_, spec_.router.dtype, parameters, groups);
    dispatcher_ =
        tier(spec_.dispatcher).make_dispatcher(config_, spec_.dispatcher.dtype, groups);
    experts_ = tier(spec_.experts).make_experts(config_, spec_.experts.dtype, parameters);
    if (config_.moe_latent_size) {
        const auto make = [&](LatentProj which) {
            return tier(spec_.experts)
                .make_latent_projection(which, spec_.experts.dtype, parameters);
        };
        fc1_latent_proj_ = make(LatentProj::fc1_latent_proj);
        fc2_latent_proj_ = make(LatentProj::fc2_latent_proj);
    }
    if (config_.shared_ffn() > 0)
        shared_experts_ = tier(spec_.shared_experts)
                              .make_shared_experts(config_, spec_.shared_experts.dtype,
                                                   parameters, groups);
    if (overlaps_shared_experts()) dispatcher_->set_shared_experts(shared_experts_.get());
}

MoELayer::Forward MoELayer::forward(const Tensor& hidden, const Tensor& padding_mask,
                                    const RunContext& context) {
    if (hidden.shape().size() != 3)
        reject("hidden_states", to_string(hidden.shape()), "must be (S, B, H)");
    const std::int64_t S = hidden.dim(0), B = hidden.dim(1), H = config_.hidden_size;
    check_hidden("hidden_states", hidden, {S, B, H});
    const Tensor mask = transpose_mask(padding_mask, S, B);
    const Tensor tokens = hidden.reshaped({S * B, H});  // token t = s B + b

    Forward result;
    SavedForward saved;
    // ① first, as Megatron does: it needs nothing from the router
    const Tensor shared_output = shared_experts_forward(saved, tokens, context);

    // ② to ⑤
    auto routed = router_->forward(to_router(hidden, *router_),
                                   transfer(mask, router_->placement()), context);
    const bool dense = !dispatcher_->takes_topk() || !routed.topk_ids.defined();
    if (dense && !routed.probs.defined()) router_->make_dense(routed);
    const Tensor& probs = dense ? routed.probs : routed.topk_probs;
    const Tensor& routing = dense ? routed.routing_map : routed.topk_ids;

    // ⑥ to ⑩
    const Tensor output =
        routed_experts_forward(saved, tokens, probs, routing, shared_output, context);
    // What the router chose is kept, also where all else runs again: so counts and losses
    // are taken once. (Megatron routes twice, and takes them the second time alone.)
    if (recomputes(config_, "moe")) {
        saved = {};
        saved.tokens = tokens;
        saved.probs = probs;
        saved.routing = routing;
    }
    saved.shape = {S, B, H};
    saved.dense = dense;
    saved.router = std::move(routed.saved);
    result.output = output.reshaped({S, B, H});
    result.losses = std::move(routed.losses);
    result.saved = std::move(saved);
    return result;
}

Tensor MoELayer::shared_experts_forward(SavedForward& saved, const Tensor& tokens,
                                        const RunContext& context) {
    if (!shared_experts_ || overlaps_shared_experts()) return {};
    auto shared =
        shared_experts_->forward(transfer(tokens, shared_experts_->placement()), context);
    if (recomputes(config_, "shared_experts"))
        saved.tokens = tokens;
    else
        saved.shared_experts = std::move(shared.saved);
    return transfer(shared.output, fc2_latent_proj_ ? fc2_latent_proj_->placement()
                                                    : dispatcher_->placement());
}

Tensor MoELayer::routed_experts_forward(SavedForward& saved, const Tensor& tokens,
                                        const Tensor& probs, const Tensor& routing,
                                        const Tensor& shared_output,
                                        const RunContext& context) {
    // ⑥, in ℓ dimensions with moe_latent_size
    Tensor sent = tokens;  // (T, ℓ)
    if (fc1_latent_proj_) {
        sent = transfer(tokens, fc1_latent_proj_->placement());
        saved.fc1_latent_input = sent;
        sent = transfer(fc1_latent_proj_->forward(sent, {}, context),
                        dispatcher_->placement());
        context.value(Step::dispatch, "latent_hidden_states", sent);
    }
    auto dispatched =
        dispatcher_->dispatch(transfer(sent, dispatcher_->placement()),
                              transfer(probs, probs_placement(dispatcher_->placement())),
                              transfer(routing, dispatcher_->placement()), context);

    // ⑦ to ⑨
    auto expert_output = experts_->forward(
        to_experts(dispatched.rows, *experts_), dispatched.tokens_per_expert,
        transfer(dispatched.row_probs, probs_placement(experts_->placement())), context);

    // ⑩
    Tensor output = dispatcher_->combine(
        transfer(expert_output.rows, dispatcher_->placement()),
        fc2_latent_proj_ ? Tensor() : shared_output, *dispatched.saved, context);
    if (fc2_latent_proj_) {
        output = transfer(output, fc2_latent_proj_->placement());
        saved.fc2_latent_input = output;
        output = transfer(fc2_latent_proj_->forward(output, shared_output, context),
                          dispatcher_->placement());
        context.value(Step::combine, "output", output);
    }
    saved.dispatcher = std::move(dispatched.saved);
    saved.experts = std::move(expert_output.saved);
    return output;
}

MoELayer::Gradients MoELayer::backward(const Tensor& doutput, const SavedForward& kept,
                                       const RunContext& context) {
    check_hidden("grad_output", doutput, kept.shape);
    const std::int64_t T = kept.shape[0] * kept.shape[1], H = kept.shape[2];
    const Tensor dtokens = doutput.reshaped({T, H});
    Gradients gradients;

    // With "moe": ① and ⑥ to ⑩ once more. ⑩ leaves nothing that is needed, but ranks meet
    // in it, and it may end what ⑥ began.
    SecondRun again(context);
    SavedForward made;
    if (kept.dispatcher == nullptr) {
        const Tensor shared_output =
            shared_experts_forward(made, kept.tokens, again.context());
        routed_experts_forward(made, kept.tokens, kept.probs, kept.routing, shared_output,
                               again.context());
    }
    const SavedForward& saved = kept.dispatcher == nullptr ? made : kept;

    // ⑪
    Tensor dcombined = dtokens;  // (T, ℓ)
    if (fc2_latent_proj_) {
        dcombined = transfer(
            fc2_latent_proj_->backward(gradients.parameters,
                                       transfer(dtokens, fc2_latent_proj_->placement()),
                                       saved.fc2_latent_input, context),
            dispatcher_->placement());
        context.value(Step::combine_backward, "d_latent_output", dcombined);
    }
    const Rows dexpert_output = dispatcher_->combine_backward(
        transfer(dcombined, dispatcher_->placement()), *saved.dispatcher, context);

    // ⑫ to ⑭
    auto expert_gradients =
        experts_->backward(gradients.parameters, to_experts(dexpert_output, *experts_),
                           *saved.experts, context);

    // ⑮
    auto dispatch_gradients = dispatcher_->dispatch_backward(
        transfer(expert_gradients.drows, dispatcher_->placement()),
        transfer(expert_gradients.drow_probs, probs_placement(dispatcher_->placement())),
        *saved.dispatcher, context);
    experts_->finish_wgrad(context);
    Tensor dsent = dispatch_gradients.dhidden;
    if (fc1_latent_proj_) {
        dsent = fc1_latent_proj_->backward(gradients.parameters,
                                           transfer(dsent, fc1_latent_proj_->placement()),
                                           saved.fc1_latent_input, context);
        context.value(Step::dispatch_backward, "d_hidden_states_routed", dsent);
    }

    // ⑯ to ⑲, adding to the hidden states' gradient on the way
    Tensor dhidden = to_router(dsent, *router_);
    Tensor dprobs = transfer(dispatch_gradients.dprobs, router_->placement());
    if (kept.dense) dprobs = router_->make_dense_backward(dprobs, *kept.router);
    router_->backward(dhidden, gradients.parameters, dprobs, *kept.router, context);

    // ⑳
    if (shared_experts_) {
        const Placement& placement = shared_experts_->placement();
        dhidden = transfer(dhidden, placement);
        if (overlaps_shared_experts()) {
            shared_experts_->pre_forward_comm_backward(dhidden, gradients.parameters,
                                                       context);
        } else {
            SharedExperts::Output run;  // ① once more, with "shared_experts"
            if (saved.shared_experts == nullptr)
                run = shared_experts_->forward(transfer(saved.tokens, placement),
                                               again.context());
            shared_experts_->backward(
                dhidden, gradients.parameters, transfer(dtokens, placement),
                *(run.saved ? run.saved : saved.shared_experts), context);
        }
    }

    gradients.parameters = restore_glu_interleaving(config_, gradients.parameters);
    gradients.hidden_states =
        transfer(dhidden, dispatcher_->placement()).reshaped(kept.shape);
    return gradients;
}

}  // namespace moe
