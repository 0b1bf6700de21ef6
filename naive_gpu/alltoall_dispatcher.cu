// alltoall_dispatcher.cu: every row travels to its expert's rank and back.

#include "naive_gpu/alltoall_dispatcher.h"

#include "core/transfer.h"
#include "distributed/exchange_plan.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/permutation.h"

namespace moe::naive {
namespace {

using distributed::all_to_all;
using distributed::cuda_sync_point;
using distributed::ExchangePlan;
using distributed::gather_from_sequence_parallel_region;
using distributed::plan_exchange;
using distributed::reduce_scatter_in_probs_dtype;
using distributed::reduce_scatter_to_sequence_parallel_region;

struct DispatcherSaved : Saved {
    Tensor unpadded_map;  // (T, E) u8, with moe_router_padding_for_quantization
    RowMap map;
    ExchangePlan plan;
    SavedPtr shared_experts;  // with moe_shared_expert_overlap
};

/// Chunks as they arrive, by source, into the order of the local experts, …
template <typename Element>
Tensor sort_chunks(const Tensor& rows, const ExchangePlan& plan) {
    if (plan.arrives_sorted()) return rows;
    return sort_chunks_by_idxs<Element>(rows, plan.chunk_sizes, plan.chunk_order);
}

/// … and back.
template <typename Element>
Tensor restore_chunks(const Tensor& rows, const ExchangePlan& plan) {
    if (plan.arrives_sorted()) return rows;
    return sort_chunks_by_idxs<Element>(rows, plan.sorted_sizes, plan.restored_order);
}

/// Gradients of what was dispatched here become gradients of what this rank sent.
template <typename Element>
Tensor return_gradients(const Tensor& gradients, const ExchangePlan& plan,
                        const distributed::ProcessGroups& groups) {
    const Tensor summed = reduce_scatter_to_sequence_parallel_region(
        *groups.expt_tp, restore_chunks<Element>(gradients, plan), plan.output_splits_tp);
    return all_to_all(*groups.ep, summed, plan.input_splits, plan.output_splits);
}

}  // namespace

template <typename T>
AlltoAllDispatcher<T>::AlltoAllDispatcher(const MoEConfig& config,
                                          const GroupsPtr& groups)
    : TokenDispatcher({MemorySpace::device, gpu::device_dtype<T>}),
      config_(config),
      groups_(groups) {}

//! [alltoall_dispatch]
template <typename T>
TokenDispatcher::Dispatched AlltoAllDispatcher<T>::dispatch(const Tensor& hidden,
                                                            const Tensor& probs,
                                                            const Tensor& routing_map,
                                                            const RunContext& context) {
    Dispatched result;
    auto saved = std::make_unique<DispatcherSaved>();
    Tensor sent, received;  // (N0, H), (N1, H)
    {
        StepTimer timer(context, Step::dispatch);
        // ⑥ rows ordered by expert, so that each rank's lie side by side
        Tensor routed = routing_map;
        if (config_.moe_router_padding_for_quantization) {
            saved->unpadded_map = routing_map;
            routed =
                pad_routing_map(routing_map, get_align_size_for_quantization(config_));
        }
        saved->map = make_row_map(routed);
        saved->plan = plan_exchange(saved->map.tokens_per_expert, config_, *groups_);
        const ExchangePlan& plan = saved->plan;
        if (shared_experts_ != nullptr)
            saved->shared_experts = shared_experts_->pre_forward_comm(
                transfer(hidden, shared_experts_->placement()), context);
        sent = permute<T>(hidden, saved->map);
        const Tensor sent_probs = permute_probs<float>(probs, saved->map);
        if (const auto point = cuda_sync_point(config_, *groups_); point != "no_sync")
            context.host_wait(Step::dispatch, point);

        // ⑥ to the ranks that hold the experts, and to all shards of each expert
        received = all_to_all(*groups_->ep, sent, plan.output_splits, plan.input_splits);
        if (shared_experts_ != nullptr)
            shared_experts_->linear_fc1_forward_and_act(context);
        const Tensor received_probs =
            all_to_all(*groups_->ep, sent_probs, plan.output_splits, plan.input_splits);
        const Tensor rows = gather_from_sequence_parallel_region(
            *groups_->expt_tp, received, plan.output_splits_tp);
        const Tensor row_probs = gather_from_sequence_parallel_region(
            *groups_->expt_tp, received_probs, plan.output_splits_tp);

        // ⑥ what came from many ranks, expert by expert
        result.rows = sort_chunks<T>(rows, plan);
        result.row_probs = sort_chunks<float>(row_probs, plan);
        result.tokens_per_expert = counts_tensor(plan.tokens_per_expert);
        gpu::synchronize();
    }
    context.value(Step::dispatch, "row_token", saved->map.row_token);
    if (context.observer != nullptr) {
        const ExchangePlan& plan = saved->plan;
        const auto show = [&](const char* name, const std::vector<std::int64_t>& values) {
            context.value(Step::dispatch, name,
                          Tensor::from({std::int64_t(values.size())}, values));
        };
        show("input_splits", plan.input_splits);
        show("output_splits", plan.output_splits);
        show("output_splits_tp", plan.output_splits_tp);
    }
    context.value(Step::dispatch, "sent_hidden_states", sent);
    context.value(Step::dispatch, "received_hidden_states", received);
    context.value(Step::dispatch, "tokens_per_expert", result.tokens_per_expert);
    context.value(Step::dispatch, "dispatched_hidden_states", result.rows.values);
    context.value(Step::dispatch, "dispatched_probs", result.row_probs);
    result.saved = std::move(saved);
    return result;
}

template <typename T>
Tensor AlltoAllDispatcher<T>::combine(const Tensor& rows, const Tensor& shared_output,
                                      const Saved& saved_base,
                                      const RunContext& context) {
    const auto& [unpadded_map, map, plan, _] = saved_as<DispatcherSaved>(saved_base);
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        // ⑩ back by source; the shards of an expert add up; back to the tokens' rank
        const Tensor restored = restore_chunks<T>(rows, plan);
        const Tensor summed = reduce_scatter_in_probs_dtype(*groups_->expt_tp, restored,
                                                            plan.output_splits_tp);
        const Tensor returned =
            all_to_all(*groups_->ep, summed, plan.input_splits, plan.output_splits);
        if (shared_experts_ != nullptr) {
            shared_experts_->linear_fc2_forward(context);
            shared_experts_->post_forward_comm(context);
        }

        // ⑩ the rows carry their probabilities already: a plain sum
        output = unpermute<T>(returned, map);
        const Tensor shared =
            shared_experts_ != nullptr
                ? transfer(shared_experts_->get_output(context), placement())
                : shared_output;
        if (shared.defined()) add_to<T>(output, shared);
        gpu::synchronize();
    }
    context.value(Step::combine, "output", output);
    return output;
}
//! [alltoall_dispatch]

//! [alltoall_dispatch_backward]
template <typename T>
Rows AlltoAllDispatcher<T>::combine_backward(const Tensor& doutput,
                                             const Saved& saved_base,
                                             const RunContext& context) {
    const auto& [unpadded_map, map, plan, shared_saved] =
        saved_as<DispatcherSaved>(saved_base);
    Tensor drows;
    {
        StepTimer timer(context, Step::combine_backward);
        // ⑪ a sum hands its gradient to every term, wherever the term was made
        const Tensor dreturned = unpermute_backward<T>(doutput, map);
        if (shared_experts_ != nullptr)
            shared_experts_->linear_fc2_backward(
                transfer(doutput, shared_experts_->placement()), *shared_saved, context);
        const Tensor dsummed =
            all_to_all(*groups_->ep, dreturned, plan.output_splits, plan.input_splits);
        const Tensor drestored = gather_from_sequence_parallel_region(
            *groups_->expt_tp, dsummed, plan.output_splits_tp);
        drows = sort_chunks<T>(drestored, plan);
        gpu::synchronize();
    }
    context.value(Step::combine_backward, "d_expert_output", drows);
    return drows;
}

template <typename T>
TokenDispatcher::Gradients AlltoAllDispatcher<T>::dispatch_backward(
    const Tensor& drows, const Tensor& drow_probs, const Saved& saved_base,
    const RunContext& context) {
    const auto& [unpadded_map, map, plan, _] = saved_as<DispatcherSaved>(saved_base);
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        // ⑮ back to the tokens' rank, where a token copied to K experts sums their
        // gradients
        gradients.dprobs = permute_probs_backward<float>(
            return_gradients<float>(drow_probs, plan, *groups_), map);
        if (unpadded_map.defined())
            pad_routing_map_backward(gradients.dprobs, unpadded_map);
        if (shared_experts_ != nullptr) shared_experts_->linear_fc1_backward(context);
        gradients.dhidden =
            permute_backward<T>(return_gradients<T>(drows, plan, *groups_), map);
        gpu::synchronize();
    }
    context.value(Step::dispatch_backward, "d_hidden_states_routed", gradients.dhidden);
    context.value(Step::dispatch_backward, "d_probs", gradients.dprobs);
    return gradients;
}
//! [alltoall_dispatch_backward]

template class AlltoAllDispatcher<float>;
template class AlltoAllDispatcher<__nv_bfloat16>;

}  // namespace moe::naive
