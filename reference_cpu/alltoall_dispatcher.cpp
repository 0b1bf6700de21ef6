// alltoall_dispatcher.cpp: token rows to their experts and back, for one rank.

#include "reference_cpu/alltoall_dispatcher.h"

#include "reference_cpu/eigen.h"
#include "reference_cpu/permutation.h"

namespace moe::cpu {
namespace {

struct DispatcherSaved : Saved {
    RowMap map;
};

}  // namespace

//! [alltoall_dispatch]
template <typename Scalar>
TokenDispatcher::Dispatched AlltoAllDispatcher<Scalar>::dispatch(
    const Tensor& hidden, const Tensor& probs, const Tensor& routing_map,
    const RunContext& context) {
    Dispatched result;
    auto saved = std::make_unique<DispatcherSaved>();
    {
        StepTimer timer(context, Step::dispatch);
        // ⑥ rows ordered by expert, so that each expert finds its own side by side
        saved->map = make_row_map(routing_map);
        result.rows = permute<Scalar>(hidden, saved->map);
        result.row_probs = permute_probs<Scalar>(probs, saved->map);
        result.tokens_per_expert =
            Tensor::from({saved->map.num_experts}, saved->map.tokens_per_expert);
    }
    context.value(Step::dispatch, "tokens_per_expert", result.tokens_per_expert);
    if (context.observer != nullptr)
        context.value(Step::dispatch, "row_token",
                      Tensor::from({saved->map.num_rows()}, saved->map.row_token));
    context.value(Step::dispatch, "dispatched_hidden_states", result.rows);
    context.value(Step::dispatch, "dispatched_probs", result.row_probs);
    result.saved = std::move(saved);
    return result;
}

template <typename Scalar>
Tensor AlltoAllDispatcher<Scalar>::combine(const Tensor& rows,
                                           const Tensor& shared_output,
                                           const Saved& saved,
                                           const RunContext& context) {
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        // ⑩ the rows carry their probabilities already: a plain sum
        output = unpermute<Scalar>(rows, saved_as<DispatcherSaved>(saved).map);
        if (shared_output.defined())
            as_matrix<Scalar>(output) += as_matrix<Scalar>(shared_output);
    }
    context.value(Step::combine, "output", output);
    return output;
}
//! [alltoall_dispatch]

//! [alltoall_dispatch_backward]
template <typename Scalar>
Tensor AlltoAllDispatcher<Scalar>::combine_backward(const Tensor& doutput,
                                                    const Saved& saved,
                                                    const RunContext& context) {
    Tensor drows;
    {
        StepTimer timer(context, Step::combine_backward);
        // ⑪ a sum hands its gradient to every term
        drows = unpermute_backward<Scalar>(doutput, saved_as<DispatcherSaved>(saved).map);
    }
    context.value(Step::combine_backward, "d_expert_output", drows);
    return drows;
}

template <typename Scalar>
TokenDispatcher::Gradients AlltoAllDispatcher<Scalar>::dispatch_backward(
    const Tensor& drows, const Tensor& drow_probs, const Saved& saved,
    const RunContext& context) {
    const RowMap& map = saved_as<DispatcherSaved>(saved).map;
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        // ⑮ a token copied to K experts sums their gradients
        gradients.dhidden = permute_backward<Scalar>(drows, map);
        gradients.dprobs = permute_probs_backward<Scalar>(drow_probs, map);
    }
    context.value(Step::dispatch_backward, "d_hidden_states_routed", gradients.dhidden);
    context.value(Step::dispatch_backward, "d_probs", gradients.dprobs);
    return gradients;
}
//! [alltoall_dispatch_backward]

template class AlltoAllDispatcher<float>;
template class AlltoAllDispatcher<double>;

}  // namespace moe::cpu
