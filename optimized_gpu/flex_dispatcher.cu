// flex_dispatcher.cu: who gets a row of which token, and rows of the local experts.

#include "optimized_gpu/flex_dispatcher.h"

#include <numeric>

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/flex_phases.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/permutation.h"
#include "optimized_gpu/row_order.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {
namespace {

using distributed::FlexPlan;
using distributed::HeapSection;

/// Which rank gets a row of which token, and moving them.
class FlexLayout : public distributed::FlexLayout {
  public:
    FlexLayout(const Tensor& probs, const Tensor& routing, const MoEConfig& config,
               DType dtype, const GroupsPtr& groups)
        : grid_(distributed::expert_grid(config)),
          dtype_(dtype),
          groups_(groups),
          topk_ids_(routing),
          topk_probs_(probs) {
        if (routing.dtype() == DType::u8) {  // another tier's router
            num_experts_ = int(config.num_experts());
            topk_ids_ = multihot_to_indices(routing, int(config.moe_router_topk));
            topk_probs_ = indices_to_multihot_backward(probs, topk_ids_);
        }
        sent_ = make_rank_map(topk_ids_, grid_);
        for (const int rows : gpu::to_host<std::int32_t>(sent_.tokens_per_expert))
            input_splits_.push_back(rows);
    }

    distributed::Splits input_splits() const override { return input_splits_; }
    Tensor sent_rows(const Tensor& source) const override {
        return permute(source, sent_).first(num_rows());
    }
    void push_rows(const FlexPlan& plan, const Tensor& source) const override {
        optimized::push_rows(rows_of_peers(plan), source, sent_);
    }
    void push_choices(const FlexPlan& plan) const override {
        optimized::push_choices({peers<std::int32_t>(plan, plan.topk_ids),
                                 peers<std::int32_t>(plan, plan.sources),
                                 peers<float>(plan, plan.topk_probs)},
                                topk_ids_, topk_probs_, sent_, grid_, num_rows(),
                                groups_->tp_ep->rank());
    }
    Tensor pull_rows(const FlexPlan& plan, const Tensor& addend) const override {
        return optimized::pull_rows(rows_of_peers(plan), dtype_, sent_, addend);
    }
    Tensor pull_prob_gradients(const FlexPlan& plan) const override {
        const Tensor dprobs = optimized::pull_prob_gradients(
            peers<float>(plan, plan.topk_probs), topk_ids_, sent_, grid_);
        return num_experts_ == 0
                   ? dprobs
                   : indices_to_multihot(topk_ids_, dprobs, num_experts_).probs;
    }

  private:
    std::int64_t num_rows() const {
        return std::accumulate(input_splits_.begin(), input_splits_.end(),
                               std::int64_t{0});
    }
    template <typename E>
    PeerRows<E> peers(const FlexPlan& plan, const HeapSection& section) const {
        return distributed::peer_rows<E>(plan, section,
                                         groups_->heap->table(MemorySpace::device));
    }
    PeerRows<std::byte> rows_of_peers(const FlexPlan& plan) const {
        auto rows = peers<std::byte>(plan, plan.hidden);
        rows.width = plan.hidden.row_bytes();
        return rows;
    }

    ExpertGrid grid_;
    DType dtype_;
    GroupsPtr groups_;
    int num_experts_ = 0;  // of a dense map
    Tensor topk_ids_, topk_probs_;
    RowMap sent_;
    distributed::Splits input_splits_;
};

}  // namespace

distributed::FlexLayoutPtr FlexDispatcher::layout(const Tensor& probs,
                                                  const Tensor& routing) const {
    return std::make_unique<FlexLayout>(probs, routing, config_, placement().dtype,
                                        groups_);
}

distributed::RowOrderPtr FlexDispatcher::local_permutation(
    const Tensor& topk_ids, const Tensor& topk_probs) const {
    const int L = int(config_.num_local_experts()), multiple = int(pad_multiple());
    RowMap map = make_row_map(topk_ids, L, multiple, topk_probs);
    if (multiple > 1 &&  // the one thing here that takes a wait
        !distributed::enough_tokens_to_pad(
            distributed::read_counts(map.tokens_per_expert), topk_ids.dim(0), multiple))
        map = make_row_map(topk_ids, L, 1, topk_probs);
    return std::make_unique<MappedRows>(map, config_.moe_permute_fusion);
}

void FlexDispatcher::barrier() const {
    gpu::synchronize();
    distributed::FlexDispatcher::barrier();
}

void FlexDispatcher::end_step(const RunContext& context) const {
    synchronize_if_watched(context);
}

Tensor FlexDispatcher::dense_dprobs(const Tensor& dprobs, const Tensor& topk_ids) const {
    return indices_to_multihot(topk_ids, dprobs, int(config_.num_experts())).probs;
}

}  // namespace moe::optimized
