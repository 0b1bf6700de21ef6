/// @file
/// FC1's rows where gates and ups alternate, in blocks of b rows: gates of the first b
/// columns, their ups, gates of the next b, and so on. Kernels that take an activation of
/// the sums in their registers like to find both halves in one tile. Here no kernel knows
/// of it: MoELayer hands gates, then ups to all components, and gives gradients back as
/// the weights came. Source: experts.py, TEGroupedMLP._remove_glu_interleaving.
#pragma once

#include "core/config.h"
#include "core/tensor.h"

namespace moe {

/// True when any of a layer's weights is interleaved.
bool has_glu_interleaving(const MoEConfig& config);

/// Tensors by their parameters' names, FC1's with all gates before all ups. Others, and
/// those that are not interleaved, are the same tensors.
TensorMap remove_glu_interleaving(const MoEConfig& config, const TensorMap& tensors);

/// And back, for gradients.
TensorMap restore_glu_interleaving(const MoEConfig& config, const TensorMap& tensors);

}  // namespace moe
