// allgather.cpp: everybody gets all tokens, and adds up what its experts made.

#include "distributed/dispatchers/allgather.h"

#include "distributed/mappings.h"
#include "distributed/process_groups.h"

namespace moe::distributed {

//! [allgather_dispatch]
Arrived AllGatherDispatcher::dispatch_rows(const Tensor& hidden, const Tensor& probs,
                                           const Tensor& routing,
                                           const RunContext& context) {
    // ⑥ everything of everybody, in the order of tp_ep
    const Tensor all_routing =
        gather_from_sequence_parallel_region(*groups_->tp_ep, routing);
    const Tensor all_probs = gather_from_sequence_parallel_region(*groups_->tp_ep, probs);
    const Tensor all_hidden =
        gather_from_sequence_parallel_region(*groups_->tp_ep, hidden);

    // ⑥ of which the rows of the local experts stay
    auto saved = std::make_unique<RankSaved>();
    saved->local = local_permutation(all_routing, all_probs,
                                     groups_->ep->rank() * config_.num_local_experts());
    if (waits_for_counts()) context.host_wait(Step::dispatch, "tokens_per_expert");

    Arrived arrived{std::move(saved), all_hidden, all_probs};
    arrived.row_token = [&local = *arrived.saved->local] { return local.row_token(); };
    arrived.sent = [hidden] { return hidden; };
    arrived.received = [all_hidden] { return all_hidden; };
    return arrived;
}

Tensor AllGatherDispatcher::combine_rows(const Tensor& rows, const Tensor& shared_output,
                                         const RankSaved& saved, const RunContext&) {
    // ⑩ what the local experts have to say about every token of tp_ep, added up over the
    // ranks
    Tensor output =
        reduce_scatter_in_probs_dtype(*groups_->tp_ep, saved.local->unpermute(rows));
    if (shared_output.defined()) add(output, shared_output);
    return output;
}
//! [allgather_dispatch]

//! [allgather_dispatch_backward]
Rows AllGatherDispatcher::combine_rows_backward(const Tensor& doutput,
                                                const RankSaved& saved,
                                                const RunContext&) {
    // ⑪ a sum hands its gradient to every term, on every rank
    return saved.local->unpermute_backward(
        gather_from_sequence_parallel_region(*groups_->tp_ep, doutput));
}

TokenDispatcher::Gradients AllGatherDispatcher::dispatch_rows_backward(
    const Tensor& drows, const Tensor& drow_probs, const RankSaved& saved,
    const RunContext&) {
    // ⑮ each rank's share of every token's gradient, added up over the ranks
    return {reduce_scatter_to_sequence_parallel_region(
                *groups_->tp_ep, saved.local->permute_backward(drows)),
            reduce_scatter_to_sequence_parallel_region(
                *groups_->tp_ep, saved.local->permute_probs_backward(drow_probs))};
}
//! [allgather_dispatch_backward]

}  // namespace moe::distributed
