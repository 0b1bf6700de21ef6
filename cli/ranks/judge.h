/// @file
/// What ranks made of an optimizer step, held against what one rank makes of it.
#pragma once

#include <vector>

#include "cli/ranks/comparison.h"

namespace moe {

/// Adds to the column each value of all ranks together with its error: micro-batch by
/// micro-batch, and the sums and buffers of the step.
/// @param tokens  of each rank
/// @param whole   what one rank has
/// @param config  of the ranks
/// @param steps   what they did
void judge_values(RankColumn& column, const RankComparisonRequest& request,
                  const RankTokens& tokens, const WholeStep& whole,
                  const MoEConfig& config, const std::vector<RankStep>& steps);

}  // namespace moe
