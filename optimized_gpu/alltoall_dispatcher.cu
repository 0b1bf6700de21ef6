// alltoall_dispatcher.cu: every row travels to its expert's rank and back.

#include "optimized_gpu/alltoall_dispatcher.h"

#include "distributed/process_groups.h"
#include "optimized_gpu/chunk_map.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/row_order.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {

distributed::RowOrderPtr AlltoAllDispatcher::permutation(const Tensor& routing,
                                                         const Tensor& probs) const {
    return std::make_unique<MappedRows>(map_of_choices(routing, probs, config_),
                                        config_.moe_permute_fusion);
}

distributed::RowOrderPtr AlltoAllDispatcher::chunk_sort(
    const distributed::ExchangePlan& plan, const Tensor& arrived_probs) const {
    const auto first_expert = groups_->ep->rank() * config_.num_local_experts();
    return std::make_unique<MappedRows>(
        make_chunk_map(plan, groups_->ep->size(), groups_->expt_tp->size(),
                       int(first_expert), arrived_probs),
        config_.moe_permute_fusion, MappedRows::Of::arrivals);
}

void AlltoAllDispatcher::end_step(const RunContext& context) const {
    synchronize_if_watched(context);
}

Tensor AlltoAllDispatcher::dense_dprobs(const Tensor& dprobs,
                                        const Tensor& topk_ids) const {
    return indices_to_multihot(topk_ids, dprobs, int(config_.num_experts())).probs;
}

}  // namespace moe::optimized
