#include "bench/routed_experts.h"

#include "core/glu_interleaving.h"
#include "core/last_backward.h"
#include "core/moe_layer.h"
#include "core/tier.h"
#include "core/transfer.h"

namespace moe::bench {

RoutedExperts::RoutedExperts(const MoEConfig& config, const ModuleSpec& spec,
                             const TensorMap& parameters)
    : config_(config),
      dispatcher_(find_tier("spec", spec.dispatcher.tier)
                      .make_dispatcher(config, spec.dispatcher.dtype)),
      experts_(find_tier("spec", spec.experts.tier)
                   .make_experts(config, spec.experts.dtype,
                                 remove_glu_interleaving(config, parameters))) {}

RoutedExperts::Forward RoutedExperts::forward(const Tensor& hidden, const Tensor& probs,
                                              const Tensor& routing_map,
                                              const RunContext& context) {
    const Placement dispatcher = dispatcher_->placement();
    const Placement experts = experts_->placement();
    // ⑥
    auto dispatched = dispatcher_->dispatch(transfer(hidden, dispatcher),
                                            transfer(probs, probs_placement(dispatcher)),
                                            transfer(routing_map, dispatcher), context);
    // ⑦ to ⑨
    auto expert_output = experts_->forward(
        to_experts(dispatched.rows, *experts_), dispatched.tokens_per_expert,
        transfer(dispatched.row_probs, probs_placement(experts)), context);
    // ⑩
    Forward result;
    result.output = dispatcher_->combine(transfer(expert_output.rows, dispatcher), {},
                                         *dispatched.saved, context);
    result.dispatcher = std::move(dispatched.saved);
    result.experts = std::move(expert_output.saved);
    return result;
}

TensorMap RoutedExperts::backward(const Tensor& doutput, const Forward& saved,
                                  const RunContext& context) {
    const Placement dispatcher = dispatcher_->placement();
    TensorMap gradients;
    // ⑪
    Rows dexpert_output =
        to_experts(dispatcher_->combine_backward(transfer(doutput, dispatcher),
                                                 *saved.dispatcher, context),
                   *experts_);
    const LastBackward::Given given(dexpert_output.values);
    // ⑫ to ⑭
    auto expert_gradients =
        experts_->backward(gradients, dexpert_output, *saved.experts, context);
    // ⑮
    auto dispatch_gradients = dispatcher_->dispatch_backward(
        transfer(expert_gradients.drows, dispatcher),
        transfer(expert_gradients.drow_probs, probs_placement(dispatcher)),
        *saved.dispatcher, context);
    gradients = restore_glu_interleaving(config_, gradients);
    gradients["hidden_states"] = dispatch_gradients.dhidden;
    gradients["probs"] = dispatch_gradients.dprobs;
    return gradients;
}

}  // namespace moe::bench
