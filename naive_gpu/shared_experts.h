/// @file
/// The shared experts.
#pragma once

#include <memory>

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"
#include "gpu/stream.h"
#include "gpu/tensor.h"
#include "naive_gpu/activation.h"

namespace moe::naive {

struct SharedExpertsSaved;  // what a forward keeps

/// An MLP over all tokens, u = W2 act(W1 x), optionally times a gate q = σ(<x, g>). With
/// TP above 1 a rank holds F_s / TP of its columns and T tokens of the R = TP T that they
/// work on: tokens are gathered over tp, partial outputs reduce-scattered, in the dtype
/// of the activations. The gate works on the rank's own tokens. T is float or
/// __nv_bfloat16; the gate is fp32. Source: shared_experts.py, SharedExpertMLP.
template <typename T>
class SharedExpertMLP : public SharedExperts {
  public:
    SharedExpertMLP(const MoEConfig& config, const TensorMap& parameters,
                    const GroupsPtr& groups);

    SavedPtr pre_forward_comm(const Tensor& hidden, const RunContext& context) override;
    void linear_fc1_forward_and_act(const RunContext& context) override;
    void linear_fc2_forward(const RunContext& context) override;
    void post_forward_comm(const RunContext& context) override;
    Tensor get_output(const RunContext& context) override;

    void linear_fc2_backward(const Tensor& doutput, const Saved& saved,
                             const RunContext& context) override;
    void linear_fc1_backward(const RunContext& context) override;
    void pre_forward_comm_backward(Tensor& dhidden, TensorMap& gradients,
                                   const RunContext& context) override;

  private:
    /// Where FC1 and FC2 run: with overlap beside the current stream, on which the
    /// exchanges are; else on it.
    cudaStream_t stream() const {
        return side_stream_ ? side_stream_->get() : gpu::current_stream();
    }

    MoEConfig config_;
    GroupsPtr groups_;
    Tensor fc1_weight_, fc2_weight_;            // (1, 2F_s or F_s, H), (1, H, F_s)
    Tensor gate_weight_;                        // (1, H), undefined without a gate
    std::unique_ptr<gpu::Stream> side_stream_;  // with moe_shared_expert_overlap

    // Under way between the stages of a forward, …
    SharedExpertsSaved* forward_ = nullptr;
    Tensor partial_;  // (R, H)
    // … and of a backward. All of it stays until the streams have met again.
    struct Backward {
        const SharedExpertsSaved* saved = nullptr;
        Tensor dscores;                  // (T) f32, by <x, g>, undefined without a gate
        Tensor du;                       // (R, H)
        Tensor da;                       // (R, F_s)
        ActivationGradients activation;  // (R, 2F_s or F_s)
        Tensor dpartial;                 // (R, H)
        Tensor dgate, dw1, dw2;
    } backward_;
};

}  // namespace moe::naive
