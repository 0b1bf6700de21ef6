/// @file
/// Capacity: an expert takes at most C rows from a rank. Source: moe_utils.py,
/// apply_router_token_dropping.
#pragma once

#include "core/config.h"
#include "core/tensor.h"

namespace moe::naive {

/// What is left of the routing.
struct DroppedRouting {
    Tensor probs;        ///< (T, E), 0 where not kept; not renormalised
    Tensor routing_map;  ///< (T, E) u8; padded to capacity: exactly C ones per column
};

/// Keeps C = get_capacity(config, T) tokens per expert.
///
/// Policy "probs": the C largest entries of the expert's column of probs, zeros included;
/// equal ones by the lower token index. Policy "position": the first C routed tokens,
/// then, as filler, unrouted ones, lowest index first. Without padding a filler is not
/// kept.
///
/// InputError when padding is asked for and C > T: no column could hold C tokens.
/// @param probs (T, E) @param routing_map (T, E) u8
template <typename Scalar>
DroppedRouting apply_token_dropping(const Tensor& probs, const Tensor& routing_map,
                                    const MoEConfig& config);

/// dprobs of what was kept; 0 elsewhere. @param dprobs (T, E), @param kept_map (T, E) u8
template <typename Scalar>
Tensor apply_token_dropping_backward(const Tensor& dprobs, const Tensor& kept_map);

}  // namespace moe::naive
