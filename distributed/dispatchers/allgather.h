/// @file
/// The all-gather way of every tier: all tokens to everybody, partial sums back.
#pragma once

#include "distributed/dispatchers/rank_dispatcher.h"

namespace moe::distributed {

/// Every rank gets every token of tp_ep, keeps what its own experts were chosen for, and
/// hands back partial sums. Volume does not depend on K; all ranks must have equally many
/// tokens. Source: token_dispatcher.py, MoEAllGatherTokenDispatcher.
class AllGatherDispatcher : public RankDispatcher {
  protected:
    using RankDispatcher::RankDispatcher;

    Arrived dispatch_rows(const Tensor& hidden, const Tensor& probs,
                          const Tensor& routing, const RunContext& context) override;
    Tensor combine_rows(const Tensor& rows, const Tensor& shared_output,
                        const RankSaved& saved, const RunContext& context) override;
    Rows combine_rows_backward(const Tensor& doutput, const RankSaved& saved,
                               const RunContext& context) override;
    Gradients dispatch_rows_backward(const Tensor& drows, const Tensor& drow_probs,
                                     const RankSaved& saved,
                                     const RunContext& context) override;

    /// Everybody's tokens' rows in the order of the local experts, of which `first` is
    /// the first. @param routing, probs  of all tokens of tp_ep and all experts
    virtual RowOrderPtr local_permutation(const Tensor& routing, const Tensor& probs,
                                          std::int64_t first) const = 0;
    /// sum += term, (T, H).
    virtual void add(Tensor& sum, const Tensor& term) const = 0;
    /// True where the host has to know how many rows there are.
    virtual bool waits_for_counts() const { return true; }
};

}  // namespace moe::distributed
