/// @file
/// Tokens that go to other experts than in fp64: what the precision of a router does.
#pragma once

#include <string>

#include "core/config.h"
#include "core/tensor.h"

namespace moe {

/// Tokens of which one supplier chose other experts than fp64, before any dropping.
struct ChangedExperts {
    std::int64_t tokens = 0;
    /// How far apart fp64 has the keys of the experts that were exchanged: in the token
    /// where they are closest, and where they are farthest apart.
    double closest = 0.0, farthest = 0.0;

    ChangedExperts& operator+=(const ChangedExperts& more);
};

/// What chooses: logits behind a softmax, else scores with the expert bias; (T, E) f64.
/// @param logits (T, E) @param expert_bias (E) or undefined
Tensor selection_keys(const Tensor& logits, const Tensor& expert_bias,
                      const MoEConfig& config);

/// @param topk_idx, reference_idx  (T, K), in any order within a token
/// @param keys  (T, E) of the reference
ChangedExperts count_changed_experts(const Tensor& topk_idx, const Tensor& reference_idx,
                                     const Tensor& keys);

/// "     0", or after how many tokens ": in fp64 the experts exchanged are 1.6e-03 apart"
/// (of more than one: from the least to the most).
std::string in_words(const ChangedExperts& changed);

}  // namespace moe
