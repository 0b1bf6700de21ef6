/// @file
/// The K experts of a token and their weights, and the weights' way back, in a warp: lane
/// k < K has the k-th chosen. Source: moe_utils.py, topk_routing_with_score_function.
#pragma once

#include "optimized_gpu/routing_rule.h"
#include "optimized_gpu/scores.h"
#include "optimized_gpu/warp_row.h"

namespace moe::optimized {

/// The K largest of the keys of all E experts, within groups if the rule limits them.
template <int N>
__device__ Choice choose_experts(const unsigned (&keys)[N], const RoutingRule& rule,
                                 int lane) {
    const int E = rule.num_experts, K = rule.topk;
    const unsigned open = rule.num_groups == 0
                              ? slots_below(E, lane)
                              : open_groups(keys, E, rule.num_groups, rule.group_topk,
                                            rule.group_score_topk, lane);
    return top_k(keys, open, K, lane);
}

/// The weight of the chosen before scaling.
/// @param value    its logit (softmax after top-k) or score; 0 in lanes past K
/// @param largest  of these logits; for softmax after top-k alone
__device__ inline float weight_of(float value, float largest, const RoutingRule& rule,
                                  int lane) {
    if (rule.is_post_softmax()) {
        const float e = lane < rule.topk ? expf(value - largest) : 0.0f;
        return e / warp_sum(e);
    }
    return rule.normalizes() ? value / (warp_sum(value) + kNormalizeEpsilon) : value;
}

/// The gradient by that value, from g, the one by the weight before scaling.
///
///     softmax over the chosen  p_k (g_k - Σ_j g_j p_j)
///     normalised scores        (g_k - Σ_j g_j s_j / D) / D, D = Σ s + 1e-20
///     others                   g_k
///
/// @param value, g  0 in lanes past K
__device__ inline float weight_backward(float value, float g, const RoutingRule& rule,
                                        int lane) {
    const bool mine = lane < rule.topk;
    if (rule.is_post_softmax()) {
        const float largest = warp_max(mine ? value : -INFINITY);
        const float e = mine ? expf(value - largest) : 0.0f;
        const float p = e / warp_sum(e);
        return p * (g - warp_sum(g * p));
    }
    if (!rule.normalizes()) return g;
    const float normalizer = warp_sum(value) + kNormalizeEpsilon;
    return (g - warp_sum(g * value) / normalizer) / normalizer;
}

}  // namespace moe::optimized
