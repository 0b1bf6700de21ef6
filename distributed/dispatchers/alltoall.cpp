// alltoall.cpp: every row travels to its expert's rank and back.

#include "distributed/dispatchers/alltoall.h"

#include "distributed/mappings.h"
#include "distributed/process_groups.h"

namespace moe::distributed {
namespace {

struct AlltoAllSaved : RankSaved {
    RowOrderPtr by_expert;  // what this rank sends; `local` is what it receives
    ExchangePlan plan;
};

}  // namespace

//! [alltoall_dispatch]
Arrived AlltoAllDispatcher::dispatch_rows(const Tensor& hidden, const Tensor& probs,
                                          const Tensor& routing,
                                          const RunContext& context) {
    auto saved = std::make_unique<AlltoAllSaved>();
    const RowOrder& by_expert = *(saved->by_expert = permutation(routing, probs));
    const std::int64_t E = config_.num_experts();
    // ⑥ rows ordered by expert, so that each rank's lie side by side
    const Tensor permuted = by_expert.permute(hidden).plain();
    const Tensor permuted_probs = by_expert.permute_probs(probs);
    saved->plan = config_.moe_pad_expert_input_to_capacity
                      ? plan_padded_exchange(permuted.dim(0) / E, E, *groups_)
                      : plan_exchange(by_expert.tokens_per_expert(), *groups_);
    const ExchangePlan& plan = saved->plan;
    saved->shared_experts = pre_forward_comm(hidden, context);
    if (const auto point = cuda_sync_point(config_, *groups_); point != "no_sync")
        context.host_wait(Step::dispatch, point);

    // ⑥ to the ranks that hold the experts, and to all shards of each expert
    const Tensor sent = permuted.first(plan.num_sent());  // there may be room for more
    const Tensor received =
        all_to_all(*groups_->ep, sent, plan.output_splits, plan.input_splits);
    linear_fc1_forward_and_act(context);
    const Tensor received_probs =
        all_to_all(*groups_->ep, permuted_probs.first(plan.num_sent()),
                   plan.output_splits, plan.input_splits);
    const Tensor rows = gather_from_sequence_parallel_region(*groups_->expt_tp, received,
                                                             plan.output_splits_tp);
    const Tensor row_probs = gather_from_sequence_parallel_region(
        *groups_->expt_tp, received_probs, plan.output_splits_tp);
    saved->local = chunk_sort(plan, row_probs);

    Arrived arrived{nullptr, rows, row_probs};
    arrived.row_token = [&by_expert] { return by_expert.row_token(); };
    arrived.splits = [&plan] {
        return Arrived::NamedSplits{{"input_splits", plan.input_splits},
                                    {"output_splits", plan.output_splits},
                                    {"output_splits_tp", plan.output_splits_tp}};
    };
    arrived.sent = [sent] { return sent; };
    arrived.received = [received] { return received; };
    arrived.saved = std::move(saved);
    return arrived;
}

Tensor AlltoAllDispatcher::combine_rows(const Tensor& rows, const Tensor& shared_output,
                                        const RankSaved& saved_base,
                                        const RunContext& context) {
    const auto& saved = saved_as<AlltoAllSaved>(saved_base);
    const ExchangePlan& plan = saved.plan;
    // ⑩ back by source; the shards of an expert add up; back to the tokens' rank
    const Tensor summed = reduce_scatter_in_probs_dtype(
        *groups_->expt_tp, saved.local->unpermute(rows), plan.output_splits_tp);
    const Tensor returned =
        all_to_all(*groups_->ep, summed, plan.input_splits, plan.output_splits);
    linear_fc2_forward_and_comm(context);

    // ⑩ the rows carry their probabilities already: a plain sum
    return saved.by_expert->unpermute(returned,
                                      get_shared_output(shared_output, context));
}
//! [alltoall_dispatch]

//! [alltoall_dispatch_backward]
Rows AlltoAllDispatcher::combine_rows_backward(const Tensor& doutput,
                                               const RankSaved& saved_base,
                                               const RunContext& context) {
    const auto& saved = saved_as<AlltoAllSaved>(saved_base);
    const ExchangePlan& plan = saved.plan;
    // ⑪ a sum hands its gradient to every term, wherever the term was made
    const Tensor dreturned = saved.by_expert->unpermute_backward(doutput).plain();
    linear_fc2_backward(doutput, saved, context);
    const Tensor dsummed = all_to_all(*groups_->ep, dreturned.first(plan.num_sent()),
                                      plan.output_splits, plan.input_splits);
    return saved.local->unpermute_backward(gather_from_sequence_parallel_region(
        *groups_->expt_tp, dsummed, plan.output_splits_tp));
}

TokenDispatcher::Gradients AlltoAllDispatcher::dispatch_rows_backward(
    const Tensor& drows, const Tensor& drow_probs, const RankSaved& saved_base,
    const RunContext& context) {
    const auto& saved = saved_as<AlltoAllSaved>(saved_base);
    const ExchangePlan& plan = saved.plan;
    const auto return_gradients = [&](const Tensor& arrived) {
        const Tensor summed = reduce_scatter_to_sequence_parallel_region(
            *groups_->expt_tp, arrived, plan.output_splits_tp);
        return all_to_all(*groups_->ep, summed, plan.input_splits, plan.output_splits);
    };
    Gradients gradients;
    // ⑮ back to the tokens' rank, where a token copied to K experts sums their gradients
    gradients.dprobs = saved.by_expert->permute_probs_backward(
        return_gradients(saved.local->permute_probs_backward(drow_probs)));
    linear_fc1_backward(context);
    gradients.dhidden = saved.by_expert->permute_backward(
        return_gradients(saved.local->permute_backward(drows)));
    return gradients;
}
//! [alltoall_dispatch_backward]

}  // namespace moe::distributed
