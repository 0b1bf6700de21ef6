/// @file
/// Sinkhorn's balanced affinities between tokens and experts. Source: moe_utils.py,
/// sinkhorn.
#pragma once

#include "core/tensor.h"

namespace moe::naive {

/// Balanced affinities d0_i c_ij d1_j, c = exp(fp32 logits), whose rows and columns sum
/// to 1/T and 1/E up to where the loop ends (core/sinkhorn_rounds.h).
/// @return (T, E) f32
/// InputError for logits so large that exp() overflows, or so uneven that the loop does
/// not end (Megatron would go on).
template <typename Scalar>
Tensor sinkhorn(const Tensor& logits);

}  // namespace moe::naive
