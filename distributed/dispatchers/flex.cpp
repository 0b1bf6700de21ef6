// flex.cpp: one row per token and rank, through the peers' heaps.

#include "distributed/dispatchers/flex.h"

namespace moe::distributed {
namespace {

struct FlexSaved : RankSaved {
    FlexLayoutPtr layout;
    FlexPlan plan;
};

}  // namespace

//! [flex_dispatch]
Arrived FlexDispatcher::dispatch_rows(const Tensor& hidden, const Tensor& probs,
                                      const Tensor& routing, const RunContext& context) {
    auto saved = std::make_unique<FlexSaved>();
    const FlexLayout& sent = *(saved->layout = layout(probs, routing));
    // ⑥ layout, notify: how many rows go where is known to all before any moves
    saved->plan =
        notify_dispatch(sent.input_splits(), config_, placement().dtype, *groups_);
    const FlexPlan& plan = saved->plan;
    context.host_wait(Step::dispatch, "flex_dispatch_counts");
    reserve_heap(plan, config_, placement().space, *groups_);

    // ⑥ dispatch: into the peers' heaps. Nobody reads his own any more: he took his rows
    // before he came to notify.
    sent.push_rows(plan, hidden);
    sent.push_choices(plan);
    count_rows(*groups_->tp_ep, "flex_dispatch", plan.input_splits,
               plan.hidden.row_bytes() + plan.topk_ids.row_bytes() +
                   plan.topk_probs.row_bytes() + plan.sources.row_bytes());
    saved->shared_experts = pre_forward_comm(hidden, context);
    linear_fc1_forward_and_act(context);
    barrier();

    // ⑥ local: what came
    Arrived arrived{nullptr, take(plan, plan.hidden)};
    arrived.received = arrived.rows;
    arrived.sources = take(plan, plan.sources);
    arrived.probs = take(plan, plan.topk_probs);
    saved->local = local_permutation(take(plan, plan.topk_ids), arrived.probs);
    arrived.row_token = [&local = *saved->local] { return local.row_token(); };
    arrived.splits = {{"input_splits", plan.input_splits},
                      {"output_splits", plan.output_splits}};
    arrived.sent = [&sent, hidden] { return sent.sent_rows(hidden); };
    arrived.saved = std::move(saved);
    return arrived;
}

Tensor FlexDispatcher::combine_rows(const Tensor& rows, const Tensor& shared_output,
                                    const RankSaved& saved_base,
                                    const RunContext& context) {
    const auto& saved = saved_as<FlexSaved>(saved_base);
    const FlexPlan& plan = saved.plan;
    // ⑩ what the local experts made of each row received, for its owner to pull
    offer_rows(plan, plan.hidden, saved.local->unpermute(rows), *groups_);
    count_rows(*groups_->tp_ep, "flex_combine", plan.output_splits,
               plan.hidden.row_bytes());
    linear_fc2_forward_and_comm(context);
    barrier();

    // ⑩ combine: a plain sum over the ranks, and what shared experts made. The last
    // barrier keeps the heap as it is until all have pulled.
    const Tensor output =
        saved.layout->pull_rows(plan, get_shared_output(shared_output, context));
    barrier();
    return output;
}
//! [flex_dispatch]

//! [flex_dispatch_backward]
Rows FlexDispatcher::combine_rows_backward(const Tensor& doutput,
                                           const RankSaved& saved_base,
                                           const RunContext& context) {
    const auto& saved = saved_as<FlexSaved>(saved_base);
    const FlexPlan& plan = saved.plan;
    linear_fc2_backward(doutput, saved, context);
    // ⑪ dispatch of the gradients. The counts are known, and with them goes notify's
    // barrier: without this one a peer may still be taking an earlier push.
    barrier();
    saved.layout->push_rows(plan, doutput);
    count_rows(*groups_->tp_ep, "flex_combine_backward", plan.input_splits,
               plan.hidden.row_bytes());
    barrier();

    // ⑪ a sum hands its gradient to every term
    return saved.local->unpermute_backward(take(plan, plan.hidden));
}

TokenDispatcher::Gradients FlexDispatcher::dispatch_rows_backward(
    const Tensor& drows, const Tensor& drow_probs, const RankSaved& saved_base,
    const RunContext& context) {
    const auto& saved = saved_as<FlexSaved>(saved_base);
    const FlexPlan& plan = saved.plan;
    linear_fc1_backward(context);
    // ⑮ each received row's gradient, and those of its choices
    offer_rows(plan, plan.hidden, saved.local->permute_backward(drows), *groups_);
    offer_rows(plan, plan.topk_probs, saved.local->permute_probs_backward(drow_probs),
               *groups_);
    count_rows(*groups_->tp_ep, "flex_dispatch_backward", plan.output_splits,
               plan.hidden.row_bytes() + plan.topk_probs.row_bytes());
    barrier();

    // ⑮ combine of the gradients: the token's owner sums them over the ranks
    const Gradients gradients{saved.layout->pull_rows(plan, {}),
                              saved.layout->pull_prob_gradients(plan)};
    barrier();
    return gradients;
}
//! [flex_dispatch_backward]

}  // namespace moe::distributed
