// planned_exchange.cpp: everybody's counts to everybody, then each row to its place.

#include "distributed/dispatchers/planned_exchange.h"

#include "core/transfer.h"
#include "distributed/peer_memory/flagged_heap.h"
#include "distributed/process_groups.h"

namespace moe::distributed {

//! [PlannedExchange]
/// | phase | barrier after it |
/// |---|---|
/// | layout, notify: all counts to all; room in the heaps | the exchange of counts is one
/// | | push | all have pushed | | offer | all have offered | | pull | all have pulled |
class PlannedExchange : public FlexExchange {
  public:
    PlannedExchange(const PlannedFlexDispatcher& tier, FlexLayoutPtr layout,
                    std::int64_t num_tokens, const RunContext& context)
        : tier_(tier),
          layout_(std::move(layout)),
          plan_(notify_dispatch(layout_->input_splits(), tier.config_,
                                tier.placement().dtype, groups())) {
        context.host_wait(Step::dispatch, "flex_dispatch_counts");
        reserve_heap(plan_, tier.config_, tier.placement().space, groups());
        if (tier.config_.moe_expert_rank_capacity_factor)
            capacity_ = expert_rank_capacity(
                tier.config_,
                max_tokens_per_rank(num_tokens, tier.config_, *groups().tp_ep));
    }

    void push(const Tensor& hidden) override {
        // Nobody reads his own any more: he took his rows before he came to notify.
        layout_->push_rows(plan_, hidden);
        layout_->push_choices(plan_);
        count("flex_dispatch", plan_.input_splits,
              plan_.hidden.row_bytes() + plan_.topk_ids.row_bytes() +
                  plan_.topk_probs.row_bytes() + plan_.sources.row_bytes());
    }
    Received receive() override {
        tier_.barrier();
        sources_ = take(plan_.sources);
        Tensor topk_ids = take(plan_.topk_ids);
        if (capacity_ >= 0) {
            const KeptChoices kept = drop_over_capacity(topk_ids, capacity_);
            topk_ids = kept.topk_ids;
            groups().flagged_heap->note_dropped_rows(kept.num_dropped);
        }
        Received received{take(plan_.hidden), take(plan_.topk_probs), nullptr};
        received.local = tier_.local_permutation(topk_ids, received.probs);
        return received;
    }

    void offer(const Tensor& rows, const RowOrder& local) override {
        offer_rows(plan_, plan_.hidden, local.unpermute(rows), groups());
        count("flex_combine", plan_.output_splits, plan_.hidden.row_bytes());
    }
    Tensor pull(const Tensor& addend) override {
        tier_.barrier();
        const Tensor output = layout_->pull_rows(plan_, addend);
        tier_.barrier();  // the heap stays as it is until all have pulled
        return output;
    }

    void push_gradients(const Tensor& doutput) override {
        // The counts are known, and with them goes notify's barrier: without this one a
        // peer may still be taking an earlier push.
        tier_.barrier();
        layout_->push_rows(plan_, doutput);
        count("flex_combine_backward", plan_.input_splits, plan_.hidden.row_bytes());
    }
    Tensor receive_gradients() override {
        tier_.barrier();
        return take(plan_.hidden);
    }

    void offer_gradients(const Tensor& drows, const Tensor& drow_probs,
                         const RowOrder& local) override {
        offer_rows(plan_, plan_.hidden, local.permute_backward(drows), groups());
        offer_rows(plan_, plan_.topk_probs, local.permute_probs_backward(drow_probs),
                   groups());
        count("flex_dispatch_backward", plan_.output_splits,
              plan_.hidden.row_bytes() + plan_.topk_probs.row_bytes());
    }
    TokenDispatcher::Gradients pull_gradients() override {
        tier_.barrier();
        const TokenDispatcher::Gradients gradients{layout_->pull_rows(plan_, {}),
                                                   layout_->pull_prob_gradients(plan_)};
        tier_.barrier();
        return gradients;
    }

    Splits input_splits() const override { return plan_.input_splits; }
    Splits output_splits() const override { return plan_.output_splits; }
    Tensor sent_rows(const Tensor& hidden) const override {
        return layout_->sent_rows(hidden);
    }
    Tensor sources() const override { return sources_; }

  private:
    const ProcessGroups& groups() const { return *tier_.groups_; }
    Tensor take(const HeapSection& section) const {
        return take_rows(plan_, section, groups(), tier_.placement().space);
    }
    void count(const char* name, const Splits& rows, std::int64_t row_bytes) const {
        count_rows(*groups().tp_ep, name, rows, row_bytes);
    }

    const PlannedFlexDispatcher& tier_;
    FlexLayoutPtr layout_;
    FlexPlan plan_;
    std::int64_t capacity_ = -1;  // rows of the local experts; -1: any number
    Tensor sources_;
};
//! [PlannedExchange]

std::unique_ptr<FlexExchange> PlannedFlexDispatcher::exchange(const Tensor& probs,
                                                              const Tensor& routing,
                                                              const RunContext& context) {
    return std::make_unique<PlannedExchange>(*this, layout(probs, routing),
                                             routing.dim(0), context);
}

}  // namespace moe::distributed
