/// @file
/// The shared experts.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"

namespace moe::cpu {

/// An MLP over all tokens, u = W2 act(W1 x), optionally times a gate q = σ(<x, g>). With
/// TP above 1 a rank holds F_s / TP of its columns and T tokens of the R = TP T that they
/// work on: tokens are gathered over tp, partial outputs reduce-scattered, in the dtype
/// of the activations. The gate works on the rank's own tokens. Source:
/// shared_experts.py, SharedExpertMLP.
template <typename Scalar>
class SharedExpertMLP : public SharedExperts {
  public:
    SharedExpertMLP(const MoEConfig& config, const TensorMap& parameters,
                    const GroupsPtr& groups);

    Output forward(const Tensor& hidden, const RunContext& context) override;
    void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& doutput,
                  const Saved& saved, const RunContext& context) override;

  private:
    MoEConfig config_;
    GroupsPtr groups_;
    Tensor fc1_weight_, fc2_weight_;  // (1, 2F_s or F_s, H), (1, H, F_s)
    Tensor gate_weight_;              // (1, H), undefined without a gate
};

}  // namespace moe::cpu
