/// @file
/// The part of the layer that other implementations have too: tokens to their experts and
/// back, with the routing given.
#pragma once

#include <memory>

#include "core/components.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/tensor.h"

namespace moe::bench {

/// Steps ⑥ to ⑩ and ⑪ to ⑮ of the layer: dispatch, experts and combine, on one rank,
/// without router and shared experts. Megatron's and everybody else's layer agree in
/// these; how tokens are routed differs from model to model.
class RoutedExperts {
  public:
    /// @param config      finalized, for one rank
    /// @param parameters  those named "experts.…"; others are ignored
    RoutedExperts(const MoEConfig& config, const ModuleSpec& spec,
                  const TensorMap& parameters);

    struct Forward {
        Tensor output;  ///< (T, H), in the dispatcher's placement
        SavedPtr dispatcher, experts;
    };
    /// @param hidden       (T, H); H is ℓ here with moe_latent_size
    /// @param probs        (T, E), 0 where not routed
    /// @param routing_map  (T, E) u8, 1 where routed
    Forward forward(const Tensor& hidden, const Tensor& probs, const Tensor& routing_map,
                    const RunContext& context);

    /// Gradients of sum(output * doutput): "hidden_states" (T, H), "probs" (T, E), 0
    /// where not routed, and those of the experts' parameters, each in its component's
    /// placement.
    /// @param doutput (T, H)
    TensorMap backward(const Tensor& doutput, const Forward& saved,
                       const RunContext& context);

  private:
    MoEConfig config_;
    std::unique_ptr<TokenDispatcher> dispatcher_;
    std::unique_ptr<Experts> experts_;
};

}  // namespace moe::bench
