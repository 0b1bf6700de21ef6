// alltoall_dispatcher.cu: token rows to their experts and back, for one rank.

#include "naive_gpu/alltoall_dispatcher.h"

#include "gpu/launch.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/permutation.h"

namespace moe::naive {
namespace {

struct DispatcherSaved : Saved {
    RowMap map;
};

}  // namespace

//! [alltoall_dispatch]
template <typename T>
TokenDispatcher::Dispatched AlltoAllDispatcher<T>::dispatch(const Tensor& hidden,
                                                            const Tensor& probs,
                                                            const Tensor& routing_map,
                                                            const RunContext& context) {
    Dispatched result;
    auto saved = std::make_unique<DispatcherSaved>();
    {
        StepTimer timer(context, Step::dispatch);
        // ⑥ rows ordered by expert, so that each expert finds its own side by side
        saved->map = make_row_map(routing_map);
        result.rows = permute<T>(hidden, saved->map);
        result.row_probs = permute_probs<float>(probs, saved->map);
        result.tokens_per_expert =
            Tensor::from({saved->map.num_experts}, saved->map.tokens_per_expert);
        gpu::synchronize();
    }
    context.value(Step::dispatch, "tokens_per_expert", result.tokens_per_expert);
    context.value(Step::dispatch, "row_token", saved->map.row_token);
    context.value(Step::dispatch, "dispatched_hidden_states", result.rows);
    context.value(Step::dispatch, "dispatched_probs", result.row_probs);
    result.saved = std::move(saved);
    return result;
}

template <typename T>
Tensor AlltoAllDispatcher<T>::combine(const Tensor& rows, const Tensor& shared_output,
                                      const Saved& saved, const RunContext& context) {
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        // ⑩ the rows carry their probabilities already: a plain sum
        output = unpermute<T>(rows, saved_as<DispatcherSaved>(saved).map);
        if (shared_output.defined()) add_to<T>(output, shared_output);
        gpu::synchronize();
    }
    context.value(Step::combine, "output", output);
    return output;
}
//! [alltoall_dispatch]

//! [alltoall_dispatch_backward]
template <typename T>
Tensor AlltoAllDispatcher<T>::combine_backward(const Tensor& doutput, const Saved& saved,
                                               const RunContext& context) {
    Tensor drows;
    {
        StepTimer timer(context, Step::combine_backward);
        // ⑪ a sum hands its gradient to every term
        drows = unpermute_backward<T>(doutput, saved_as<DispatcherSaved>(saved).map);
        gpu::synchronize();
    }
    context.value(Step::combine_backward, "d_expert_output", drows);
    return drows;
}

template <typename T>
TokenDispatcher::Gradients AlltoAllDispatcher<T>::dispatch_backward(
    const Tensor& drows, const Tensor& drow_probs, const Saved& saved,
    const RunContext& context) {
    const RowMap& map = saved_as<DispatcherSaved>(saved).map;
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        // ⑮ a token copied to K experts sums their gradients
        gradients.dhidden = permute_backward<T>(drows, map);
        gradients.dprobs = permute_probs_backward<float>(drow_probs, map);
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
