/// @file
/// The routed experts.
#pragma once

#include <memory>

#include "core/components.h"
#include "core/config.h"
#include "gpu/stream.h"
#include "optimized_gpu/activation.h"
#include "optimized_gpu/expert_products.h"

namespace moe::optimized {

/// All local experts' MLPs, y_r = W2 (act(W1 x_r + b1) p_r) + p_r b2, over rows sorted by
/// expert, as products that find their rows by ids and their experts by counts on the
/// device: grouped, or, without moe_grouped_gemm, one per expert. bf16; probabilities are
/// fp32. Source: experts.py, TEGroupedMLP and SequentialMLP.
///
/// The backward keeps x (or what it was gathered from), h and the probabilities; act(h)
/// is taken once more, as moe_act among recompute_modules wants it: that changes nothing
/// here. With overlap_dispatch_backward_with_experts_wgrad the gradients of
/// the parameters, which nobody waits for, are made in a stream of their own.
class ExpertMLPs : public Experts {
  public:
    ExpertMLPs(const MoEConfig& config, const TensorMap& parameters);

    bool takes_row_ids() const override { return true; }
    Output forward(const Rows& rows, const Tensor& tokens_per_expert,
                   const Tensor& row_probs, const RunContext& context) override;
    Gradients backward(TensorMap& gradients, const Rows& doutput, const Saved& saved,
                       const RunContext& context) override;
    void finish_wgrad(const RunContext& context) override;

  private:
    MoEConfig config_;
    ExpertProducts products_;
    ExpertActivation activation_;
    Tensor fc1_weight_, fc1_bias_;  // (L, 2F or F, H), (L, 2F or F)
    Tensor fc2_weight_, fc2_bias_;  // (L, H, F), (L, H)

    std::unique_ptr<gpu::Stream> wgrad_stream_;  // with the overlap
    // What its kernels read, from backward() to finish_wgrad().
    struct UnderWay {
        Rows doutput;
        ActivationGradients through;
    } under_way_;
};

}  // namespace moe::optimized
