/// @file
/// The flex dispatcher: one row per token and rank, through the peers' heaps.
#pragma once

#include "distributed/dispatchers/flex.h"

namespace moe::optimized {

/// The phases of flex_phases.h; when each runs, and the barriers between, are every
/// tier's. Choices come as (T, K) ids; a warp reads a token once and writes it to all its
/// ranks; with moe_permute_fusion the experts find the rows that came by their ids, and
/// none is copied into their order. The host waits for the counts, and at the barriers.
/// Rows are bf16 or fp32 (the dtype it is made for), probabilities fp32.
class FlexDispatcher : public distributed::FlexDispatcher {
  public:
    FlexDispatcher(const MoEConfig& config, DType dtype, const GroupsPtr& groups)
        : distributed::FlexDispatcher({MemorySpace::device, dtype}, config, groups) {}

    bool takes_topk() const override { return true; }

  private:
    distributed::FlexLayoutPtr layout(const Tensor& probs,
                                      const Tensor& routing) const override;
    distributed::RowOrderPtr local_permutation(const Tensor& topk_ids,
                                               const Tensor& topk_probs) const override;
    void barrier() const override;
    void end_step(const RunContext& context) const override;
    Tensor dense_dprobs(const Tensor& dprobs, const Tensor& topk_ids) const override;
};

}  // namespace moe::optimized
