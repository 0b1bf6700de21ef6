/// @file
/// The all-gather dispatcher.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"

namespace moe::cpu {

/// Every rank gets every token of tp_ep, keeps what its own experts were chosen for, and
/// hands back partial sums. Volume does not depend on K; all ranks must have equally many
/// tokens. Source: token_dispatcher.py, MoEAllGatherTokenDispatcher.
template <typename Scalar>
class AllGatherDispatcher : public TokenDispatcher {
  public:
    AllGatherDispatcher(const MoEConfig& config, const GroupsPtr& groups);

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
