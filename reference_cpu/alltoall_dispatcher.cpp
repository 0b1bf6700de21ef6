// alltoall_dispatcher.cpp: every row travels to its expert's rank and back.

#include "reference_cpu/alltoall_dispatcher.h"

#include "core/transfer.h"
#include "distributed/exchange_plan.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/permutation.h"

namespace moe::cpu {
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

template <typename Scalar>
AlltoAllDispatcher<Scalar>::AlltoAllDispatcher(const MoEConfig& config,
                                               const GroupsPtr& groups)
    : TokenDispatcher({MemorySpace::host, dtype_of<Scalar>}),
      config_(config),
      groups_(groups) {}

//! [alltoall_dispatch]
template <typename Scalar>
TokenDispatcher::Dispatched AlltoAllDispatcher<Scalar>::dispatch(
    const Tensor& hidden, const Tensor& probs, const Tensor& routing_map,
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
        sent = permute<Scalar>(hidden, saved->map);
        const Tensor sent_probs = permute_probs<Scalar>(probs, saved->map);
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
        result.rows = sort_chunks<Scalar>(rows, plan);
        result.row_probs = sort_chunks<Scalar>(row_probs, plan);
        result.tokens_per_expert = counts_tensor(plan.tokens_per_expert);
    }
    if (context.observer != nullptr) {
        const ExchangePlan& plan = saved->plan;
        const auto show = [&](const char* name, const std::vector<std::int64_t>& values) {
            context.value(Step::dispatch, name,
                          Tensor::from({std::int64_t(values.size())}, values));
        };
        show("row_token", saved->map.row_token);
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

template <typename Scalar>
Tensor AlltoAllDispatcher<Scalar>::combine(const Tensor& rows,
                                           const Tensor& shared_output,
                                           const Saved& saved_base,
                                           const RunContext& context) {
    const auto& [unpadded_map, map, plan, _] = saved_as<DispatcherSaved>(saved_base);
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        // ⑩ back by source; the shards of an expert add up; back to the tokens' rank
        const Tensor restored = restore_chunks<Scalar>(rows, plan);
        const Tensor summed = reduce_scatter_in_probs_dtype(*groups_->expt_tp, restored,
                                                            plan.output_splits_tp);
        const Tensor returned =
            all_to_all(*groups_->ep, summed, plan.input_splits, plan.output_splits);
        if (shared_experts_ != nullptr) {
            shared_experts_->linear_fc2_forward(context);
            shared_experts_->post_forward_comm(context);
        }

        // ⑩ the rows carry their probabilities already: a plain sum
        output = unpermute<Scalar>(returned, map);
        const Tensor shared =
            shared_experts_ != nullptr
                ? transfer(shared_experts_->get_output(context), placement())
                : shared_output;
        if (shared.defined()) as_matrix<Scalar>(output) += as_matrix<Scalar>(shared);
    }
    context.value(Step::combine, "output", output);
    return output;
}
//! [alltoall_dispatch]

//! [alltoall_dispatch_backward]
template <typename Scalar>
Rows AlltoAllDispatcher<Scalar>::combine_backward(const Tensor& doutput,
                                                  const Saved& saved_base,
                                                  const RunContext& context) {
    const auto& [unpadded_map, map, plan, shared_saved] =
        saved_as<DispatcherSaved>(saved_base);
    Tensor drows;
    {
        StepTimer timer(context, Step::combine_backward);
        // ⑪ a sum hands its gradient to every term, wherever the term was made
        const Tensor dreturned = unpermute_backward<Scalar>(doutput, map);
        if (shared_experts_ != nullptr)
            shared_experts_->linear_fc2_backward(
                transfer(doutput, shared_experts_->placement()), *shared_saved, context);
        const Tensor dsummed =
            all_to_all(*groups_->ep, dreturned, plan.output_splits, plan.input_splits);
        const Tensor drestored = gather_from_sequence_parallel_region(
            *groups_->expt_tp, dsummed, plan.output_splits_tp);
        drows = sort_chunks<Scalar>(drestored, plan);
    }
    context.value(Step::combine_backward, "d_expert_output", drows);
    return drows;
}

template <typename Scalar>
TokenDispatcher::Gradients AlltoAllDispatcher<Scalar>::dispatch_backward(
    const Tensor& drows, const Tensor& drow_probs, const Saved& saved_base,
    const RunContext& context) {
    const auto& [unpadded_map, map, plan, _] = saved_as<DispatcherSaved>(saved_base);
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        // ⑮ back to the tokens' rank, where a token copied to K experts sums their
        // gradients
        gradients.dprobs = permute_probs_backward<Scalar>(
            return_gradients<Scalar>(drow_probs, plan, *groups_), map);
        if (unpadded_map.defined())
            pad_routing_map_backward<Scalar>(gradients.dprobs, unpadded_map);
        if (shared_experts_ != nullptr) shared_experts_->linear_fc1_backward(context);
        gradients.dhidden = permute_backward<Scalar>(
            return_gradients<Scalar>(drows, plan, *groups_), map);
    }
    context.value(Step::dispatch_backward, "d_hidden_states_routed", gradients.dhidden);
    context.value(Step::dispatch_backward, "d_probs", gradients.dprobs);
    return gradients;
}
//! [alltoall_dispatch_backward]

template class AlltoAllDispatcher<float>;
template class AlltoAllDispatcher<double>;

}  // namespace moe::cpu
