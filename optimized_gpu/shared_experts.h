/// @file
/// The shared experts.
#pragma once

#include <memory>

#include "core/buffer_pool.h"
#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"
#include "gpu/stream.h"
#include "optimized_gpu/activation.h"
#include "optimized_gpu/grouped_gemm/all_tokens.h"

namespace moe::optimized {

struct SharedExpertsSaved;  // what a forward keeps

/// An MLP over all tokens, u = W2 act(W1 x), optionally times a gate q = σ(<x, g>): the
/// routed experts' products with a single group. Tensor-parallel over tp: a rank has
/// F_s / TP columns of the MLP, for the tokens of all. bf16; the gate is fp32.
/// Source: shared_experts.py, SharedExpertMLP.
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
    /// Where the products run: with overlap beside the current stream.
    cudaStream_t stream() const {
        return side_stream_ ? side_stream_->get() : gpu::current_stream();
    }

    // TUTORIAL: between two waits the host frees tensors of the current stream whose
    // kernels still run; to the side stream their memory must not be given.
    BufferPool::Lane lane() const { return BufferPool::Lane(side_stream_.get()); }

    MoEConfig config_;
    GroupsPtr groups_;
    ExpertActivation activation_;
    Tensor fc1_weight_, fc2_weight_;            // (1, 2F_s or F_s, H), (1, H, F_s)
    Tensor gate_weight_;                        // (1, H), undefined without a gate
    AllTokens all_tokens_, own_tokens_;         // of all tp ranks, of this one
    std::unique_ptr<gpu::Stream> side_stream_;  // with moe_shared_expert_overlap

    // Under way between the stages of a forward, …
    SharedExpertsSaved* forward_ = nullptr;
    Tensor a_, partial_;  // (R, F_s), (R, H), of the tokens of all tp ranks
    // … and of a backward. All of it stays until the streams have met again.
    struct Backward {
        const SharedExpertsSaved* saved = nullptr;
        Tensor dscores;  // (T) f32, by <x, g>, undefined without a gate
        Tensor du;       // (T, H)
        ActivationGradients through;
        Tensor dx;  // (T, H)
        Tensor dgate, dw1, dw2;
    } backward_;
};

}  // namespace moe::optimized
