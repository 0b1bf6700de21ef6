// allgather_dispatcher.cu: everybody gets all tokens, and adds up what its experts made.

#include "naive_gpu/allgather_dispatcher.h"

#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/permutation.h"

namespace moe::naive {
namespace {

using distributed::gather_from_sequence_parallel_region;
using distributed::reduce_scatter_in_probs_dtype;
using distributed::reduce_scatter_to_sequence_parallel_region;

struct DispatcherSaved : Saved {
    RowMap map;  // of all tokens of tp_ep and the local experts
};

/// One thread per token and local expert.
template <typename E>
__global__ void slice_experts_kernel(E* slice, const E* source, std::int64_t first,
                                     std::int64_t num_experts, std::int64_t count,
                                     std::int64_t num_local) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / num_local, l = i % num_local;
    slice[i] = source[t * num_experts + first + l];
}

/// Columns [first, first + num_local) of a (T, E) tensor.
template <typename E>
Tensor slice_experts(const Tensor& source, std::int64_t first, std::int64_t num_local) {
    Tensor slice = gpu::device_empty<E>({source.dim(0), num_local});
    gpu::launch("slice_experts_kernel", slice_experts_kernel<E>,
                gpu::one_thread_per(slice.numel()), gpu::device_data<E>(slice),
                gpu::device_data<E>(source), first, source.dim(1), slice.numel(),
                num_local);
    return slice;
}

/// One thread per token and local expert.
__global__ void slice_experts_backward_kernel(float* dsource, const float* dslice,
                                              std::int64_t first,
                                              std::int64_t num_experts,
                                              std::int64_t count,
                                              std::int64_t num_local) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / num_local, l = i % num_local;
    dsource[t * num_experts + first + l] = dslice[i];
}

/// The inverse for gradients: zero outside the slice. @return (T, E)
Tensor slice_experts_backward(const Tensor& dslice, std::int64_t first,
                              std::int64_t num_experts) {
    Tensor dsource = gpu::device_zeros<float>({dslice.dim(0), num_experts});
    gpu::launch("slice_experts_backward_kernel", slice_experts_backward_kernel,
                gpu::one_thread_per(dslice.numel()), gpu::device_data<float>(dsource),
                gpu::device_data<float>(dslice), first, num_experts, dslice.numel(),
                dslice.dim(1));
    return dsource;
}

}  // namespace

template <typename T>
AllGatherDispatcher<T>::AllGatherDispatcher(const MoEConfig& config,
                                            const GroupsPtr& groups)
    : TokenDispatcher({MemorySpace::device, gpu::device_dtype<T>}),
      config_(config),
      groups_(groups) {}

//! [allgather_dispatch]
template <typename T>
TokenDispatcher::Dispatched AllGatherDispatcher<T>::dispatch(const Tensor& hidden,
                                                             const Tensor& probs,
                                                             const Tensor& routing_map,
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
        result.rows = permute<T>(all_hidden, saved->map);
        result.row_probs = permute_probs<float>(
            slice_experts<float>(all_probs, first_expert, L), saved->map);
        result.tokens_per_expert = counts_tensor(saved->map.tokens_per_expert);
        gpu::synchronize();
    }
    context.value(Step::dispatch, "row_token", saved->map.row_token);
    context.value(Step::dispatch, "sent_hidden_states", hidden);
    context.value(Step::dispatch, "received_hidden_states", all_hidden);
    context.value(Step::dispatch, "tokens_per_expert", result.tokens_per_expert);
    context.value(Step::dispatch, "dispatched_hidden_states", result.rows.values);
    context.value(Step::dispatch, "dispatched_probs", result.row_probs);
    result.saved = std::move(saved);
    return result;
}

template <typename T>
Tensor AllGatherDispatcher<T>::combine(const Tensor& rows, const Tensor& shared_output,
                                       const Saved& saved, const RunContext& context) {
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        // ⑩ what the local experts have to say about every token of tp_ep, added up
        // over the ranks
        const Tensor partial = unpermute<T>(rows, saved_as<DispatcherSaved>(saved).map);
        output = reduce_scatter_in_probs_dtype(*groups_->tp_ep, partial);
        if (shared_output.defined()) add_to<T>(output, shared_output);
        gpu::synchronize();
    }
    context.value(Step::combine, "output", output);
    return output;
}
//! [allgather_dispatch]

//! [allgather_dispatch_backward]
template <typename T>
Rows AllGatherDispatcher<T>::combine_backward(const Tensor& doutput, const Saved& saved,
                                              const RunContext& context) {
    Tensor drows;
    {
        StepTimer timer(context, Step::combine_backward);
        // ⑪ a sum hands its gradient to every term, on every rank
        const Tensor dpartial =
            gather_from_sequence_parallel_region(*groups_->tp_ep, doutput);
        drows = unpermute_backward<T>(dpartial, saved_as<DispatcherSaved>(saved).map);
        gpu::synchronize();
    }
    context.value(Step::combine_backward, "d_expert_output", drows);
    return drows;
}

template <typename T>
TokenDispatcher::Gradients AllGatherDispatcher<T>::dispatch_backward(
    const Tensor& drows, const Tensor& drow_probs, const Saved& saved,
    const RunContext& context) {
    const RowMap& map = saved_as<DispatcherSaved>(saved).map;
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        // ⑮ each rank's share of every token's gradient, added up over the ranks
        gradients.dhidden = reduce_scatter_to_sequence_parallel_region(
            *groups_->tp_ep, permute_backward<T>(drows, map));
        const Tensor dlocal_probs = permute_probs_backward<float>(drow_probs, map);
        gradients.dprobs = reduce_scatter_to_sequence_parallel_region(
            *groups_->tp_ep,
            slice_experts_backward(dlocal_probs, groups_->ep->rank() * map.num_experts,
                                   config_.num_experts()));
        gpu::synchronize();
    }
    context.value(Step::dispatch_backward, "d_hidden_states_routed", gradients.dhidden);
    context.value(Step::dispatch_backward, "d_probs", gradients.dprobs);
    return gradients;
}
//! [allgather_dispatch_backward]

template class AllGatherDispatcher<float>;
template class AllGatherDispatcher<__nv_bfloat16>;

}  // namespace moe::naive
