/// @file
/// The all-to-all way of every tier: rows by expert, an exchange, rows by expert again.
#pragma once

#include "distributed/dispatchers/rank_dispatcher.h"

namespace moe::distributed {

/// Every row travels to the ranks that hold its experts, and back: one exchange over ep,
/// with one copy of a token per expert that it chose. With ETP above 1 the shards of an
/// expert share what they got. Source: token_dispatcher.py, MoEAlltoAllTokenDispatcher.
class AlltoAllDispatcher : public RankDispatcher {
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

    /// My tokens' rows in the order of all experts, so that each rank's lie side by side.
    virtual RowOrderPtr permutation(const Tensor& routing, const Tensor& probs) const = 0;
    /// Chunks of rows as they arrive, by source, into the order of the local experts.
    /// @param arrived_probs (N)
    virtual RowOrderPtr chunk_sort(const ExchangePlan& plan,
                                   const Tensor& arrived_probs) const = 0;
};

}  // namespace moe::distributed
