/// @file
/// How `moe compare` judges the steps of a supplier.
#pragma once

#include <map>
#include <vector>

#include "cli/compare/comparison.h"

namespace moe {

/// All of a supplier's values, on the host.
struct Recorded {
    std::vector<std::map<Step, TensorMap>> of_micro_batch;
    std::map<Step, TensorMap> of_step;  // sums, and what the step updates
};

/// Those that chose: random ones, if they took the place of the gating's.
const Tensor& used_logits(const TensorMap& gating);

/// Puts the steps' errors into the column: micro-batch by micro-batch, and of what the
/// step makes of them.
/// @param num_tokens  of a micro-batch
void judge(ColumnOutcome& column, const MoEConfig& config, std::int64_t num_tokens,
           const Recorded& recorded, const Recorded& reference);

/// Over all micro-batches. @param expert_bias  (E) or undefined
ChangedExperts count_changed_experts(const Recorded& got, const Recorded& reference,
                                     const Tensor& expert_bias, const MoEConfig& config);

}  // namespace moe
