/// @file
/// The flex dispatcher: one row per token and rank, through the peers' heaps.
#pragma once

#include "distributed/dispatchers/planned_exchange.h"
#include "reference_cpu/flex_phases.h"
#include "reference_cpu/row_order.h"

namespace moe::cpu {

/// Which rank gets a row of which token, and moving them.
template <typename Scalar>
class FlexLayout : public distributed::FlexLayout {
  public:
    FlexLayout(const Tensor& probs, const Tensor& routing_map, const MoEConfig& config,
               GroupsPtr groups)
        : grid_(distributed::expert_grid(config)),
          num_experts_(config.num_experts()),
          groups_(std::move(groups)),
          layout_(get_dispatch_layout<Scalar>(
              probs, routing_map, grid_, grid_.num_shards * config.moe_router_topk)) {}

    distributed::Splits input_splits() const override {
        return layout_.sent.tokens_per_expert;
    }
    Tensor sent_rows(const Tensor& source) const override {
        return permute<Scalar>(source, layout_.sent);
    }
    void push_rows(const distributed::FlexPlan& plan,
                   const Tensor& source) const override {
        cpu::push_rows(peers<Scalar>(plan, plan.hidden), source, layout_.sent);
    }
    void push_choices(const distributed::FlexPlan& plan) const override {
        cpu::push_choices<Scalar>({peers<std::int32_t>(plan, plan.topk_ids),
                                   peers<std::int32_t>(plan, plan.sources),
                                   peers<Scalar>(plan, plan.topk_probs)},
                                  layout_, grid_, groups_->tp_ep->rank());
    }
    Tensor pull_rows(const distributed::FlexPlan& plan,
                     const Tensor& addend) const override {
        Tensor sums = cpu::pull_rows(peers<Scalar>(plan, plan.hidden), layout_.sent);
        if (addend.defined()) as_matrix<Scalar>(sums) += as_matrix<Scalar>(addend);
        return sums;
    }
    Tensor pull_prob_gradients(const distributed::FlexPlan& plan) const override {
        return cpu::pull_prob_gradients(peers<Scalar>(plan, plan.topk_probs), layout_,
                                        grid_, num_experts_);
    }

  private:
    template <typename T>
    distributed::PeerRows<T> peers(const distributed::FlexPlan& plan,
                                   const distributed::HeapSection& section) const {
        return distributed::peer_rows<T>(plan, section,
                                         groups_->heap->table(MemorySpace::host));
    }
    distributed::ExpertGrid grid_;
    std::int64_t num_experts_;
    GroupsPtr groups_;
    DispatchLayout layout_;
};

/// Received rows by local expert; probabilities are (N', K').
template <typename Scalar>
class ReceivedPermutation : public Permutation<Scalar> {
  public:
    ReceivedPermutation(const Tensor& topk_ids, const Multihot& local,
                        std::int64_t pad_multiple)
        : Permutation<Scalar>(local.map, pad_multiple),
          topk_ids_(topk_ids),
          row_probs_(Permutation<Scalar>::permute_probs(local.probs)) {}

    Tensor permute_probs(const Tensor& /*topk_probs*/) const override {
        return row_probs_;
    }
    Tensor permute_probs_backward(const Tensor& drow_probs) const override {
        return indices_to_multihot_backward<Scalar>(
            Permutation<Scalar>::permute_probs_backward(drow_probs), topk_ids_);
    }

  private:
    Tensor topk_ids_;  // (N', K') i32
    Tensor row_probs_;
};

/// The phases of flex_phases.h; when each runs, and the barriers between, are every
/// tier's.
template <typename Scalar>
class FlexDispatcher : public distributed::PlannedFlexDispatcher {
  public:
    FlexDispatcher(const MoEConfig& config, const GroupsPtr& groups)
        : distributed::PlannedFlexDispatcher({MemorySpace::host, dtype_of<Scalar>}, config,
                                      groups) {}

  private:
    distributed::FlexLayoutPtr layout(const Tensor& probs,
                                      const Tensor& routing_map) const override {
        return std::make_unique<FlexLayout<Scalar>>(probs, routing_map, config_, groups_);
    }
    distributed::RowOrderPtr local_permutation(const Tensor& topk_ids,
                                               const Tensor& topk_probs) const override {
        const Multihot local = indices_to_multihot<Scalar>(topk_ids, topk_probs,
                                                           config_.num_local_experts());
        using Order = ReceivedPermutation<Scalar>;
        auto order = std::make_unique<Order>(topk_ids, local, 1);
        if (const std::int64_t multiple = pad_multiple();
            multiple > 1 &&
            distributed::enough_tokens_to_pad(order->map().tokens_per_expert,
                                              topk_ids.dim(0), multiple))
            order = std::make_unique<Order>(topk_ids, local, multiple);
        return order;
    }
};

}  // namespace moe::cpu
