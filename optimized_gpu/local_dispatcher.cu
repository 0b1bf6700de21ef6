// local_dispatcher.cu: token rows into expert order and back, on one rank.

#include "optimized_gpu/local_dispatcher.h"

#include "core/latent_projection.h"
#include "core/transfer.h"
#include "gpu/tensor.h"
#include "optimized_gpu/dispatched_values.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/permutation.h"
#include "optimized_gpu/row_order.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {
namespace {

struct DispatcherSaved : Saved {
    Tensor routing;  // (T, K) i32 or (T, E) u8, as it came
    RowMap map;
    SavedPtr shared_experts;  // with moe_shared_expert_overlap
};

}  // namespace

LocalDispatcher::LocalDispatcher(const MoEConfig& config, DType dtype)
    : TokenDispatcher({MemorySpace::device, dtype}), config_(config) {}

//! [local_dispatch]
TokenDispatcher::Dispatched LocalDispatcher::dispatch(const Tensor& hidden,
                                                      const Tensor& probs,
                                                      const Tensor& routing,
                                                      const RunContext& context) {
    Dispatched result;
    auto saved = std::make_unique<DispatcherSaved>();
    const RowMap& map = saved->map;
    {
        StepTimer timer(context, Step::dispatch);
        if (shared_experts_ != nullptr) {
            saved->shared_experts = shared_experts_->pre_forward_comm(
                transfer(hidden, shared_experts_->placement()), context);
            shared_experts_->linear_fc1_forward_and_act(context);
        }
        // ⑥ which token stands in which row: experts find it by this, or a copy is made
        saved->routing = routing;
        saved->map = map_of_choices(routing, probs, config_);
        result.row_probs = map.row_probs;
        result.tokens_per_expert = map.rows_per_expert;
        if (config_.moe_permute_fusion)
            result.rows = {hidden, map.row_token, [=] { return permute(hidden, map); }};
        else
            result.rows = permute(hidden, map);
        result.rows.offsets = map.offsets;
        synchronize_if_watched(context);
    }
    show_dispatched(context, config_, map, hidden, result.row_probs);
    result.saved = std::move(saved);
    return result;
}

Tensor LocalDispatcher::combine(const Tensor& rows, const Tensor& shared_output,
                                const Saved& saved, const RunContext& context) {
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        Tensor shared = shared_output;
        if (shared_experts_ != nullptr) {
            shared_experts_->linear_fc2_forward(context);
            shared_experts_->post_forward_comm(context);
            shared = transfer(shared_experts_->get_output(context), placement());
        }
        // ⑩ the rows carry their probabilities already: a plain sum
        output = optimized::combine(rows, saved_as<DispatcherSaved>(saved).map, shared);
        synchronize_if_watched(context);
    }
    context.value(Step::combine, name_of_output(config_), output);
    return output;
}
//! [local_dispatch]

//! [local_dispatch_backward]
Rows LocalDispatcher::combine_backward(const Tensor& doutput, const Saved& saved_base,
                                       const RunContext& context) {
    const auto& saved = saved_as<DispatcherSaved>(saved_base);
    const RowMap& map = saved.map;
    const auto gather = [=] { return optimized::combine_backward(doutput, map); };
    Rows drows;
    {
        StepTimer timer(context, Step::combine_backward);
        if (shared_experts_ != nullptr)
            shared_experts_->linear_fc2_backward(
                transfer(doutput, shared_experts_->placement()), *saved.shared_experts,
                context);
        // ⑪ a sum hands its gradient to every term
        drows = config_.moe_permute_fusion ? Rows{doutput, map.row_token, gather}
                                           : Rows{gather()};
        synchronize_if_watched(context);
    }
    context.value_beside(Step::combine_backward, "d_expert_output", [&] {
        return drows.plain().first(gpu::to_host<std::int32_t>(map.offsets).back());
    });
    return drows;
}

TokenDispatcher::Gradients LocalDispatcher::dispatch_backward(const Tensor& drows,
                                                              const Tensor& drow_probs,
                                                              const Saved& saved,
                                                              const RunContext& context) {
    const auto& [routing, map, _] = saved_as<DispatcherSaved>(saved);
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        // ⑮ a token copied to K experts sums their gradients
        gradients.dprobs = permute_probs_backward(drow_probs, map);
        if (shared_experts_ != nullptr) shared_experts_->linear_fc1_backward(context);
        gradients.dhidden = permute_backward(drows, map);
        synchronize_if_watched(context);
    }
    context.value(Step::dispatch_backward, name_of_dhidden(config_), gradients.dhidden);
    context.value_beside(Step::dispatch_backward, "d_probs", [&] {
        if (routing.dtype() == DType::u8) return gradients.dprobs;
        return indices_to_multihot(routing, gradients.dprobs, map.num_experts).probs;
    });
    return gradients;
}
//! [local_dispatch_backward]

}  // namespace moe::optimized
