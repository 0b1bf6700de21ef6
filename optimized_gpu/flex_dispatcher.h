/// @file
/// The flex dispatcher: one row per token and rank, through the peers' heaps.
#pragma once

#include "distributed/dispatchers/flex.h"

namespace moe::optimized {

/// Choices come as (T, K) ids; how they and the rows travel is FlexExchange's. No host
/// waits for a device, nor one for another, except where the ranks have to tell each
/// other how many tokens they have: see moe_flex_max_tokens_per_rank. Rows are bf16 or
/// fp32 (the dtype it is made for), probabilities fp32.
class FlexDispatcher : public distributed::FlexDispatcher {
  public:
    FlexDispatcher(const MoEConfig& config, DType dtype, const GroupsPtr& groups)
        : distributed::FlexDispatcher({MemorySpace::device, dtype}, config, groups) {}

    bool takes_topk() const override { return true; }

  private:
    std::unique_ptr<distributed::FlexExchange> exchange(
        const Tensor& probs, const Tensor& routing, const RunContext& context) override;
    void end_step(const RunContext& context) const override;
    Tensor dense_dprobs(const Tensor& dprobs, const Tensor& topk_ids) const override;
};

}  // namespace moe::optimized
