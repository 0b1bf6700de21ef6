/// @file
/// Router scores and their slopes, in fp32 whatever the tier's precision: Megatron's
/// score functions are fp32 even behind fp64 logits, and pure fp64 scores would differ
/// from its own by more than the golden cases allow. Source: moe_utils.py,
/// topk_routing_with_score_function, compute_routing_scores_for_aux_loss.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace moe::cpu {

/// moe_router_score_function.
enum class ScoreFunction { softmax, sigmoid, sqrtsoftplus };

ScoreFunction parse_score_function(const std::string& name);

/// s (E) from one row of logits x (E): softmax over the row, σ(x) or √softplus(x).
void compute_scores(std::span<float> s, ScoreFunction function, std::span<const float> x);

/// dx from ds through the score function, at logits x with scores s; all (E).
///
///     softmax       dx_e = s_e (ds_e - Σ_j ds_j s_j)
///     sigmoid       dx_e = ds_e s_e (1 - s_e)
///     sqrtsoftplus  dx_e = ds_e σ(x_e) / (2 s_e), 0 where softplus underflows to 0
void compute_scores_backward(std::span<float> dx, ScoreFunction function,
                             std::span<const float> x, std::span<const float> s,
                             std::span<const float> ds);

/// p_k = s_k / (Σ s + 1e-20), in place.
void normalize(std::span<float> s);

/// ds_k = dp_k / D - (Σ_j dp_j s_j) / D², D = Σ s + 1e-20, in place of dp.
/// @param s  the scores before normalize()
void normalize_backward(std::span<float> dp, std::span<const float> s);

/// Indices of the K largest keys, best first; equal keys: the lower index first.
template <typename Key>
std::vector<std::int64_t> top_k(std::span<const Key> keys, std::int64_t k);

/// Like top_k, but only experts of `group_topk` of the `num_groups` groups may be chosen.
/// A group's score is the sum of its `group_score_topk` largest keys, in Megatron ⌊K /
/// group_topk⌋; equal ones: lower index. Source: moe_utils.py, group_limited_topk
/// (DeepSeek-V3, arXiv 2412.19437).
template <typename Key>
std::vector<std::int64_t> group_limited_top_k(std::span<const Key> keys, std::int64_t k,
                                              std::int64_t num_groups,
                                              std::int64_t group_topk,
                                              std::int64_t group_score_topk);

}  // namespace moe::cpu
