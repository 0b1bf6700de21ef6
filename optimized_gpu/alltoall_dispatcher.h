/// @file
/// The all-to-all dispatcher: every row travels to its expert's rank and back.
#pragma once

#include "distributed/dispatchers/alltoall.h"

namespace moe::optimized {

/// Permute, exchange, sort chunks; the exchange is every tier's. Choices come as (T, K)
/// ids and stay on the device, and so does where rows lie; rows that arrive are not
/// copied into the order of the experts but found by their ids, with moe_permute_fusion.
/// The host waits once, for the splits of the exchange, after all that comes before it
/// has been launched; in drop-and-pad it knows them. Rows are bf16 or fp32 (the dtype it
/// is made for), probabilities fp32.
class AlltoAllDispatcher : public distributed::AlltoAllDispatcher {
  public:
    AlltoAllDispatcher(const MoEConfig& config, DType dtype, const GroupsPtr& groups)
        : distributed::AlltoAllDispatcher({MemorySpace::device, dtype}, config, groups) {}

    bool takes_topk() const override { return true; }

  private:
    distributed::RowOrderPtr permutation(const Tensor& routing,
                                         const Tensor& probs) const override;
    distributed::RowOrderPtr chunk_sort(const distributed::ExchangePlan& plan,
                                        const Tensor& arrived_probs) const override;
    void end_step(const RunContext& context) const override;
    Tensor dense_dprobs(const Tensor& dprobs, const Tensor& topk_ids) const override;
};

}  // namespace moe::optimized
