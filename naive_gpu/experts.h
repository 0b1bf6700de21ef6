/// @file
/// The routed experts.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "gpu/tensor.h"

namespace moe::naive {

/// All local experts' MLPs, y_r = W2 (act(W1 x_r + b1) p_r) + p_r b2, over rows sorted by
/// expert. T is float or __nv_bfloat16; probabilities are fp32. Source: experts.py,
/// SequentialMLP and TEGroupedMLP (the same function). With moe_act among
/// recompute_modules act(h) p is not kept: backward makes it again.
template <typename T>
class ExpertMLPs : public Experts {
  public:
    ExpertMLPs(const MoEConfig& config, const TensorMap& parameters);

    Output forward(const Rows& rows, const Tensor& tokens_per_expert,
                   const Tensor& row_probs, const RunContext& context) override;
    Gradients backward(TensorMap& gradients, const Rows& doutput, const Saved& saved,
                       const RunContext& context) override;

  private:
    /// ⑧: a (N, F) from h (N, 2F or F) f32 and p (N) f32, undefined means 1.
    Tensor activate(const Tensor& h, const Tensor& p, const RunContext& context) const;

    MoEConfig config_;
    Tensor fc1_weight_, fc1_bias_;  // (L, 2F or F, H), (L, 2F or F)
    Tensor fc2_weight_, fc2_bias_;  // (L, H, F), (L, H)
};

}  // namespace moe::naive
