// allgather_dispatcher.cpp: everybody gets all tokens, and adds up what its experts made.

#include "reference_cpu/allgather_dispatcher.h"

#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/permutation.h"

namespace moe::cpu {
namespace {

using distributed::gather_from_sequence_parallel_region;
using distributed::reduce_scatter_in_probs_dtype;
using distributed::reduce_scatter_to_sequence_parallel_region;

struct DispatcherSaved : Saved {
    RowMap map;  // of all tokens of tp_ep and the local experts
};

/// Columns [first, first + count) of a (T, E) tensor.
template <typename T>
Tensor slice_experts(const Tensor& source, std::int64_t first, std::int64_t count) {
    Tensor result = Tensor::empty({source.dim(0), count}, dtype_of<T>);
    as_matrix<T>(result) = as_matrix<T>(source).middleCols(first, count);
    return result;
}

/// The inverse for gradients: zero outside the slice. @return (T, E)
template <typename T>
Tensor slice_experts_backward(const Tensor& dslice, std::int64_t first, std::int64_t E) {
    Tensor result = Tensor::zeros({dslice.dim(0), E}, dtype_of<T>);
    as_matrix<T>(result).middleCols(first, dslice.dim(1)) = as_matrix<T>(dslice);
    return result;
}

}  // namespace

template <typename Scalar>
AllGatherDispatcher<Scalar>::AllGatherDispatcher(const MoEConfig& config,
                                                 const GroupsPtr& groups)
    : TokenDispatcher({MemorySpace::host, dtype_of<Scalar>}),
      config_(config),
      groups_(groups) {}

//! [allgather_dispatch]
template <typename Scalar>
TokenDispatcher::Dispatched AllGatherDispatcher<Scalar>::dispatch(
    const Tensor& hidden, const Tensor& probs, const Tensor& routing_map,
    const RunContext& context) {
    Dispatched result;
    auto saved = std::make_unique<DispatcherSaved>();
    const std::int64_t L = config_.num_local_experts();
    const std::int64_t first_expert = groups_->ep->rank() * L;
    Tensor all_hidden;  // (T ETP EP, H)
    {
        StepTimer timer(context, Step::dispatch);
        // ⑥ everything of everybody, in the order of tp_ep
        const Tensor all_maps =
            gather_from_sequence_parallel_region(*groups_->tp_ep, routing_map);
        const Tensor all_probs =
            gather_from_sequence_parallel_region(*groups_->tp_ep, probs);
        all_hidden = gather_from_sequence_parallel_region(*groups_->tp_ep, hidden);

        // ⑥ the rows of the local experts, expert by expert
        saved->map = make_row_map(slice_experts<std::uint8_t>(all_maps, first_expert, L));
        context.host_wait(Step::dispatch, "tokens_per_expert");
        result.rows = permute<Scalar>(all_hidden, saved->map);
        result.row_probs = permute_probs<Scalar>(
            slice_experts<Scalar>(all_probs, first_expert, L), saved->map);
        result.tokens_per_expert = counts_tensor(saved->map.tokens_per_expert);
    }
    if (context.observer != nullptr)
        context.value(Step::dispatch, "row_token",
                      Tensor::from({saved->map.num_rows()}, saved->map.row_token));
    context.value(Step::dispatch, "sent_hidden_states", hidden);
    context.value(Step::dispatch, "received_hidden_states", all_hidden);
    context.value(Step::dispatch, "tokens_per_expert", result.tokens_per_expert);
    context.value(Step::dispatch, "dispatched_hidden_states", result.rows.values);
    context.value(Step::dispatch, "dispatched_probs", result.row_probs);
    result.saved = std::move(saved);
    return result;
}

template <typename Scalar>
Tensor AllGatherDispatcher<Scalar>::combine(const Tensor& rows,
                                            const Tensor& shared_output,
                                            const Saved& saved,
                                            const RunContext& context) {
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        // ⑩ what the local experts have to say about every token of tp_ep, added up
        // over the ranks
        const Tensor partial =
            unpermute<Scalar>(rows, saved_as<DispatcherSaved>(saved).map);
        output = reduce_scatter_in_probs_dtype(*groups_->tp_ep, partial);
        if (shared_output.defined())
            as_matrix<Scalar>(output) += as_matrix<Scalar>(shared_output);
    }
    context.value(Step::combine, "output", output);
    return output;
}
//! [allgather_dispatch]

//! [allgather_dispatch_backward]
template <typename Scalar>
Rows AllGatherDispatcher<Scalar>::combine_backward(const Tensor& doutput,
                                                   const Saved& saved,
                                                   const RunContext& context) {
    Tensor drows;
    {
        StepTimer timer(context, Step::combine_backward);
        // ⑪ a sum hands its gradient to every term, on every rank
        const Tensor dpartial =
            gather_from_sequence_parallel_region(*groups_->tp_ep, doutput);
        drows =
            unpermute_backward<Scalar>(dpartial, saved_as<DispatcherSaved>(saved).map);
    }
    context.value(Step::combine_backward, "d_expert_output", drows);
    return drows;
}

template <typename Scalar>
TokenDispatcher::Gradients AllGatherDispatcher<Scalar>::dispatch_backward(
    const Tensor& drows, const Tensor& drow_probs, const Saved& saved,
    const RunContext& context) {
    const RowMap& map = saved_as<DispatcherSaved>(saved).map;
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        // ⑮ each rank's share of every token's gradient, added up over the ranks
        gradients.dhidden = reduce_scatter_to_sequence_parallel_region(
            *groups_->tp_ep, permute_backward<Scalar>(drows, map));
        const Tensor dlocal_probs = permute_probs_backward<Scalar>(drow_probs, map);
        gradients.dprobs = reduce_scatter_to_sequence_parallel_region(
            *groups_->tp_ep, slice_experts_backward<Scalar>(
                                 dlocal_probs, groups_->ep->rank() * map.num_experts,
                                 config_.num_experts()));
    }
    context.value(Step::dispatch_backward, "d_hidden_states_routed", gradients.dhidden);
    context.value(Step::dispatch_backward, "d_probs", gradients.dprobs);
    return gradients;
}
//! [allgather_dispatch_backward]

template class AllGatherDispatcher<float>;
template class AllGatherDispatcher<double>;

}  // namespace moe::cpu
