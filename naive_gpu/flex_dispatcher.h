/// @file
/// The flex dispatcher: one row per token and rank, through the peers' heaps.
#pragma once

#include "distributed/dispatchers/planned_exchange.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/flex_phases.h"
#include "naive_gpu/row_order.h"

namespace moe::naive {

/// Which rank gets a row of which token, and moving them.
template <typename T>
class FlexLayout : public distributed::FlexLayout {
  public:
    FlexLayout(const Tensor& probs, const Tensor& routing_map, const MoEConfig& config,
               GroupsPtr groups)
        : grid_(distributed::expert_grid(config)),
          num_experts_(config.num_experts()),
          groups_(std::move(groups)),
          layout_(get_dispatch_layout(probs, routing_map, grid_,
                                      grid_.num_shards * config.moe_router_topk)) {}

    distributed::Splits input_splits() const override {
        return layout_.sent.tokens_per_expert;
    }
    Tensor sent_rows(const Tensor& source) const override {
        return permute<T>(source, layout_.sent);
    }
    void push_rows(const distributed::FlexPlan& plan,
                   const Tensor& source) const override {
        naive::push_rows(peers<T>(plan, plan.hidden), source, layout_.sent);
    }
    void push_choices(const distributed::FlexPlan& plan) const override {
        naive::push_choices({peers<std::int32_t>(plan, plan.topk_ids),
                             peers<std::int32_t>(plan, plan.sources),
                             peers<float>(plan, plan.topk_probs)},
                            layout_, grid_, groups_->tp_ep->rank());
    }
    Tensor pull_rows(const distributed::FlexPlan& plan,
                     const Tensor& addend) const override {
        Tensor sums = naive::pull_rows(peers<T>(plan, plan.hidden), layout_.sent);
        if (addend.defined()) add_to<T>(sums, addend);
        return sums;
    }
    Tensor pull_prob_gradients(const distributed::FlexPlan& plan) const override {
        return naive::pull_prob_gradients(peers<float>(plan, plan.topk_probs), layout_,
                                          grid_, num_experts_);
    }

  private:
    template <typename E>
    distributed::PeerRows<E> peers(const distributed::FlexPlan& plan,
                                   const distributed::HeapSection& section) const {
        return distributed::peer_rows<E>(plan, section,
                                         groups_->heap->table(MemorySpace::device));
    }
    distributed::ExpertGrid grid_;
    std::int64_t num_experts_;
    GroupsPtr groups_;
    DispatchLayout layout_;
};

/// Received rows by local expert; probabilities are (N', K').
template <typename T>
class ReceivedPermutation : public Permutation<T> {
  public:
    ReceivedPermutation(const Tensor& topk_ids, const Multihot& local,
                        std::int64_t pad_multiple)
        : Permutation<T>(local.map, pad_multiple),
          topk_ids_(topk_ids),
          row_probs_(Permutation<T>::permute_probs(local.probs)) {}

    Tensor permute_probs(const Tensor& /*topk_probs*/) const override {
        return row_probs_;
    }
    Tensor permute_probs_backward(const Tensor& drow_probs) const override {
        return indices_to_multihot_backward(
            Permutation<T>::permute_probs_backward(drow_probs), topk_ids_);
    }

  private:
    Tensor topk_ids_;  // (N', K') i32
    Tensor row_probs_;
};

/// The phases of flex_phases.h; when each runs, and the barriers between, are every
/// tier's. T is float or __nv_bfloat16; probabilities are fp32.
template <typename T>
class FlexDispatcher : public distributed::PlannedFlexDispatcher {
  public:
    FlexDispatcher(const MoEConfig& config, const GroupsPtr& groups)
        : distributed::PlannedFlexDispatcher({MemorySpace::device, gpu::device_dtype<T>}, config,
                                      groups) {}

  private:
    distributed::FlexLayoutPtr layout(const Tensor& probs,
                                      const Tensor& routing_map) const override {
        return std::make_unique<FlexLayout<T>>(probs, routing_map, config_, groups_);
    }
    distributed::RowOrderPtr local_permutation(const Tensor& topk_ids,
                                               const Tensor& topk_probs) const override {
        const Multihot local =
            indices_to_multihot(topk_ids, topk_probs, config_.num_local_experts());
        using Order = ReceivedPermutation<T>;
        auto order = std::make_unique<Order>(topk_ids, local, 1);
        if (const std::int64_t multiple = pad_multiple();
            multiple > 1 &&
            distributed::enough_tokens_to_pad(order->map().tokens_per_expert,
                                              topk_ids.dim(0), multiple))
            order = std::make_unique<Order>(topk_ids, local, multiple);
        return order;
    }
    void end_step(const RunContext&) const override { gpu::synchronize(); }
    void barrier() const override {
        gpu::synchronize();
        distributed::PlannedFlexDispatcher::barrier();
    }
};

}  // namespace moe::naive
