/// @file
/// The all-gather dispatcher: everybody gets all tokens, and adds up what its experts
/// made.
#pragma once

#include "distributed/dispatchers/allgather.h"

namespace moe::optimized {

/// Gather, select and permute in one row map; the gathering is every tier's. Ids and
/// weights of K choices travel, not maps of all experts, and what is not a local expert's
/// gets no row. The host waits for nothing: there is room for as many rows as there may
/// be, min(K, L) for each token of tp_ep. Rows are bf16 or fp32 (the dtype it is made
/// for), probabilities fp32.
class AllGatherDispatcher : public distributed::AllGatherDispatcher {
  public:
    AllGatherDispatcher(const MoEConfig& config, DType dtype, const GroupsPtr& groups)
        : distributed::AllGatherDispatcher({MemorySpace::device, dtype}, config, groups) {
    }

    bool takes_topk() const override { return true; }

  private:
    distributed::RowOrderPtr local_permutation(const Tensor& routing, const Tensor& probs,
                                               std::int64_t first) const override;
    void add(Tensor& sum, const Tensor& term) const override;
    bool waits_for_counts() const override { return false; }
    void end_step(const RunContext& context) const override;
    Tensor dense_dprobs(const Tensor& dprobs, const Tensor& topk_ids) const override;
};

}  // namespace moe::optimized
