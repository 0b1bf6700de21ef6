/// @file
/// The routed experts.
#pragma once

#include "core/components.h"
#include "core/config.h"

namespace moe::cpu {

/// All local experts' MLPs, y_r = W2 (act(W1 x_r + b1) p_r) + p_r b2, over rows sorted by
/// expert. Source: experts.py, SequentialMLP and TEGroupedMLP (the same function).
/// With moe_act among recompute_modules act(h) p is not kept: backward makes it again.
template <typename Scalar>
class ExpertMLPs : public Experts {
  public:
    ExpertMLPs(const MoEConfig& config, const TensorMap& parameters);

    Output forward(const Rows& rows, const Tensor& tokens_per_expert,
                   const Tensor& row_probs, const RunContext& context) override;
    Gradients backward(TensorMap& gradients, const Rows& doutput, const Saved& saved,
                       const RunContext& context) override;

  private:
    /// ⑧: a (N, F) from h (N, 2F or F) and p (N).
    Tensor activate(const Tensor& h, const Tensor& p, const RunContext& context) const;

    MoEConfig config_;
    Tensor fc1_weight_, fc1_bias_;  // (L, 2F or F, H), (L, 2F or F)
    Tensor fc2_weight_, fc2_bias_;  // (L, H, F), (L, H)
};

}  // namespace moe::cpu
