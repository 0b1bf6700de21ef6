/// @file
/// A layer in Python's hands, and one forward of it.
#pragma once

#include <memory>
#include <string>

#include "core/moe_layer.h"
#include "python/bindings/objects.h"

namespace moe::python {

/// moe.MoELayer
struct Layer : Runner {
    Layer(const Config& config, TensorMap given, const ModuleSpec& spec,
          const Groups* groups);
    /// Another with these parameters.
    Layer(const Layer& like, TensorMap given);

    GroupsPtr groups;
    TensorMap parameters;  ///< as given: the layer may read this memory
    std::unique_ptr<MoELayer> layer;
};

/// moe.Forward
struct Forward {
    std::shared_ptr<Layer> layer;
    RunContext context;
    Shape shape;  ///< of the hidden states as they came
    Tensor output;
    Losses losses;
    MoELayer::SavedForward saved;
};

/// moe.Gradients
struct Gradients {
    Tensor hidden_states;
    TensorMap parameters;
};

/// (S, B, H) as it is, and (T, H) as (T, 1, H). InputError, naming `field`, otherwise.
Tensor in_three_axes(const std::string& field, const Tensor& tensor);

/// InputError for token ids that the config has no use for.
RunContext context_from(const MoEConfig& config, bool training,
                        double main_loss_backward_scale, nb::handle token_ids,
                        nb::handle target_topk_idx);

/// @param hidden  (S, B, H) or (T, H)
std::shared_ptr<Forward> run_forward(std::shared_ptr<Layer> layer, const Tensor& hidden,
                                     const Tensor& padding_mask,
                                     const RunContext& context);

/// @param grad_output  of the output's shape
/// @param context      the forward's, or one that another observer watches
Gradients run_backward(Forward& forward, const Tensor& grad_output,
                       const RunContext& context);

}  // namespace moe::python
