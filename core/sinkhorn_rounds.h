/// @file
/// When sinkhorn's loop over rows and columns ends, in every tier.
#pragma once

#include "core/error.h"

namespace moe {

/// Rounds after which logits are refused. What drifts, drifts by 1 / round or by half of
/// it: this lies between where the two come to rest.
inline constexpr int kMostSinkhornRounds = 8'000;
/// Rounds after which it is enough that the factors rest beside their size.
inline constexpr int kManySinkhornRounds = 1'000;

/// Whether the column factors rest after so many rounds, from 1. Megatron's loop ends
/// when they move by 1e-4 on average. Where the logits differ by 30 or so, factors are so
/// large that only the luck of rounding in fp32 brings it there, long after the choice
/// by them has become the same in every round.
/// Source: moe_utils.py, sinkhorn; what is said of many rounds is ours.
inline bool sinkhorn_rests(int rounds, float mean_move, float mean_factor) {
    constexpr float kTolerance = 1e-4f;
    return mean_move <= kTolerance ||
           (rounds >= kManySinkhornRounds && mean_move <= kTolerance * mean_factor);
}

/// Refuses logits that did not come to rest. They lie between these two.
[[noreturn]] inline void reject_sinkhorn_logits(float smallest, float largest) {
    reject("logits", fmt::format("{} to {}", smallest, largest),
           fmt::format("too uneven for sinkhorn: its factors still move after {} rounds",
                       kMostSinkhornRounds));
}

}  // namespace moe
