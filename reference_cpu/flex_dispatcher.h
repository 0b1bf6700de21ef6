/// @file
/// The flex dispatcher.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"

namespace moe::cpu {

/// A token travels once to every rank that holds one of its experts, straight into that
/// rank's heap, and what those ranks made of it is summed out of their heaps. One group
/// tp_ep: shards of an expert are ranks like all others. Source: token_dispatcher.py,
/// MoEFlexTokenDispatcher with _DeepepManager; DeepEP, intranode normal mode.
///
/// | phase | what | barrier after it |
/// |---|---|---|
/// | layout | rows of mine for each rank | |
/// | notify | all counts to all; room in the heaps | the exchange of counts is one |
/// | dispatch | push rows, choices, sources | all have pushed |
/// | local | take them, order them by local expert | |
/// | combine | offer partial sums | all have offered |
/// | | pull them, sum by rank | all have pulled |
///
/// Combine backward pushes, dispatch backward pulls, both by the saved plan.
template <typename Scalar>
class FlexDispatcher : public TokenDispatcher {
  public:
    FlexDispatcher(const MoEConfig& config, const GroupsPtr& groups);

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
