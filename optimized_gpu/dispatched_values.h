/// @file
/// What observers see of a dispatch, in the words of the dispatchers over ranks.
#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"
#include "core/steps.h"
#include "optimized_gpu/row_map.h"

namespace moe::optimized {

/// Shows what dispatch of config.moe_token_dispatcher_type shows of one rank: who sent
/// how many rows to whom (itself), and the rows. Waits for the device; does nothing
/// without an observer.
/// @param hidden (T, H) @param row_probs (N)
void show_dispatched(const RunContext& context, const MoEConfig& config,
                     const RowMap& map, const Tensor& hidden, const Tensor& row_probs);

}  // namespace moe::optimized
