/// @file
/// What a layer keeps from its forward for its backward, counted and by formula.
#pragma once

#include <cstdint>

#include "core/floors.h"
#include "core/moe_layer.h"

namespace moe {

/// Bytes of tensors that a forward leaves for its backward. The hidden states are among
/// them where the layer keeps them as they are: they are copied to where the layer before
/// would leave them, and nobody else has the copy. The layer's counts of experts move on.
/// @param hidden   (S, B, H), anywhere
/// @param context  what the forward is given besides
std::int64_t count_kept_bytes(MoELayer& layer, const Tensor& hidden,
                              const RunContext& context = {});

/// What the tier says of itself, see Tier::kept(); off where components are of several
/// suppliers.
Floor kept_by_formula(const MoEConfig& config, const StepSizes& sizes,
                      const ModuleSpec& spec);

}  // namespace moe
