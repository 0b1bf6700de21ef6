/// @file
/// The all-to-all dispatcher.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"

namespace moe::cpu {

/// Every row travels to the ranks that hold its experts, and back: one exchange over ep,
/// with one copy of a token per expert that it chose. With ETP above 1 the shards of an
/// expert share what they got. Source: token_dispatcher.py, MoEAlltoAllTokenDispatcher.
template <typename Scalar>
class AlltoAllDispatcher : public TokenDispatcher {
  public:
    AlltoAllDispatcher(const MoEConfig& config, const GroupsPtr& groups);

    Dispatched dispatch(const Tensor& hidden, const Tensor& probs,
                        const Tensor& routing_map, const RunContext& context) override;
    Tensor combine(const Tensor& rows, const Tensor& shared_output, const Saved& saved,
                   const RunContext& context) override;
    Rows combine_backward(const Tensor& doutput, const Saved& saved,
                          const RunContext& context) override;
    Gradients dispatch_backward(const Tensor& drows, const Tensor& drow_probs,
                                const Saved& saved, const RunContext& context) override;

  private:
    MoEConfig config_;
    GroupsPtr groups_;
};

}  // namespace moe::cpu
