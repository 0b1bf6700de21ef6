/// @file
/// Experts between which a router's own rounding decides.
#pragma once

#include <vector>

#include "cli/compare/judge.h"

namespace moe {

/// Two sums of a logit that round otherwise, each as right as the other, may choose other
/// experts. Where a supplier's differ from the reference's, its choice has to be what the
/// reference itself makes of the supplier's logits, tie by tie; those are judged by their
/// own bound.
struct OwnChoices {
    std::vector<Tensor>
        topk_idx;             ///< (T, K) i64 by micro-batch, the supplier's; or empty
    std::int64_t tokens = 0;  ///< whose experts differ
};

/// Empty where no token's experts differ, or where some are not what the logits ask for;
/// and where others than the logits choose (sinkhorn, quantile balancing, given experts).
/// @param expert_bias  (E) or undefined
OwnChoices own_choices(const Recorded& got, const Recorded& reference,
                       const Tensor& expert_bias, const MoEConfig& config);

}  // namespace moe
