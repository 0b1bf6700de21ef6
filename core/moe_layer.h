/// @file
/// MoELayer: Megatron's MoE layer. It only orchestrates, and is the same for every tier.
#pragma once

#include <memory>

#include "core/components.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/tensor.h"
#include "core/tier.h"

namespace moe {

/// Rows in the experts' placement: by their ids where the experts take those.
Rows to_experts(const Rows& rows, const Experts& experts);

/// Router, dispatcher, experts and shared experts, wired as in Megatron's moe_layer.py
/// (MoELayer.forward): hidden states (S, B, H) in, hidden states out, and back.
/// The residual addition is outside the layer.
class MoELayer {
  public:
    /// @param config      finalized
    /// @param spec        who supplies which component, in dtypes that its tier has; the
    ///                    router is raised to moe_router_dtype, if that is set
    /// @param stored      this rank's parameters, see core/parameters.h; checked here
    /// @param groups      of this rank; null for a layer on one rank (InputError when the
    ///                    config needs more)
    MoELayer(const MoEConfig& config, ModuleSpec spec, const TensorMap& stored,
             const GroupsPtr& groups = nullptr);

    /// What one forward leaves for its backward. Of recompute_modules "shared_experts" it
    /// leaves the tokens alone, and of "moe" these and what the router chose.
    struct SavedForward {
        Shape shape;         ///< (S, B, H)
        bool dense = false;  ///< the dispatcher took dense maps
        SavedPtr router, dispatcher, experts, shared_experts;
        Tensor fc1_latent_input;  ///< (T, H), with moe_latent_size
        Tensor fc2_latent_input;  ///< (T, ℓ)
        Tensor tokens;            ///< (T, H) as they came, for what runs once more
        Tensor probs, routing;    ///< as the dispatcher took them, with "moe"
    };
    struct Forward {
        Tensor output;  ///< (S, B, H), in the dispatcher's placement
        LateLosses losses;
        SavedForward saved;
    };
    /// @param hidden        (S, B, H), any floating dtype and memory space
    /// @param padding_mask  (B, S) u8, any memory space, 1 = padding; or undefined
    /// Throws InputError on wrong shapes and, here or in losses.read(), on NaN or
    /// infinite logits.
    Forward forward(const Tensor& hidden, const Tensor& padding_mask,
                    const RunContext& context);

    struct Gradients {
        Tensor hidden_states;  ///< (S, B, H)
        TensorMap parameters;  ///< by name; each in its component's placement
    };
    /// Gradients of sum(output * doutput) plus the attached auxiliary losses.
    /// @param doutput  (S, B, H)
    Gradients backward(const Tensor& doutput, const SavedForward& saved,
                       const RunContext& context);

    /// Once per optimizer step; see Router.
    Tensor update_expert_bias() { return router_->update_expert_bias(); }
    Tensor update_qb_beta() { return router_->update_qb_beta(); }
    void reset_global_aux_loss_tracker() { router_->reset_global_aux_loss_tracker(); }

    const MoEConfig& config() const { return config_; }
    const ModuleSpec& spec() const { return spec_; }

  private:
    /// ①, where it is not the dispatcher's. @param tokens (T, H)
    /// @return (T, H), where it is added; or undefined
    Tensor shared_experts_forward(SavedForward& saved, const Tensor& tokens,
                                  const RunContext& context);
    /// ⑥ to ⑩. @param probs, routing  see TokenDispatcher @return (T, H)
    Tensor routed_experts_forward(SavedForward& saved, const Tensor& tokens,
                                  const Tensor& probs, const Tensor& routing,
                                  const Tensor& shared_output, const RunContext& context);
    /// The dispatcher runs the shared experts, and saves for them.
    bool overlaps_shared_experts() const {
        return shared_experts_ != nullptr && config_.moe_shared_expert_overlap;
    }

    MoEConfig config_;
    ModuleSpec spec_;
    std::unique_ptr<Router> router_;
    std::unique_ptr<TokenDispatcher> dispatcher_;
    // null without moe_latent_size
    std::unique_ptr<LatentProjection> fc1_latent_proj_, fc2_latent_proj_;
    std::unique_ptr<Experts> experts_;
    std::unique_ptr<SharedExperts> shared_experts_;  // null without shared experts
};

}  // namespace moe
