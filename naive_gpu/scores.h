/// @file
/// Router scores and their slopes, in fp32 whatever the tier's precision, as in
/// reference_cpu/scores.h; here for all rows of a tensor at once. Source: moe_utils.py,
/// topk_routing_with_score_function, compute_routing_scores_for_aux_loss.
#pragma once

#include <cstdint>
#include <string>

#include "core/tensor.h"

namespace moe::naive {

/// Where logits go to become scores.
inline constexpr Placement kScorePlacement = {MemorySpace::device, DType::f32};

/// moe_router_score_function.
enum class ScoreFunction { softmax, sigmoid, sqrtsoftplus };

ScoreFunction parse_score_function(const std::string& name);

/// s (T, E) f32 from logits x (T, E) f32: softmax over each row, σ(x) or √softplus(x).
void compute_scores(Tensor& s, ScoreFunction function, const Tensor& x);

/// dx from ds through the score function, at logits x with scores s; all (T, E) f32.
///
///     softmax       dx_e = s_e (ds_e - Σ_j ds_j s_j)
///     sigmoid       dx_e = ds_e s_e (1 - s_e)
///     sqrtsoftplus  dx_e = ds_e σ(x_e) / (2 s_e), 0 where softplus underflows to 0
void compute_scores_backward(Tensor& dx, ScoreFunction function, const Tensor& x,
                             const Tensor& s, const Tensor& ds);

/// p_k = s_k / (Σ s + 1e-20) in each row of s (T, K) f32, in place.
void normalize(Tensor& s);

/// ds_k = dp_k / D - (Σ_j dp_j s_j) / D², D = Σ s + 1e-20, in place of dp (T, K) f32.
/// @param s  the scores before normalize()
void normalize_backward(Tensor& dp, const Tensor& s);

/// Indices of the K largest keys of each row, best first; equal keys: the lower index
/// first. @param keys (T, E) @return (T, K) i64
template <typename Key>
Tensor top_k(const Tensor& keys, std::int64_t k);

/// Like top_k, but only experts of `group_topk` of the `num_groups` groups may be chosen.
/// A group's score is the sum of its `group_score_topk` largest keys, in Megatron ⌊K /
/// group_topk⌋; equal ones: lower index. Source: moe_utils.py, group_limited_topk
/// (DeepSeek-V3, arXiv 2412.19437).
template <typename Key>
Tensor group_limited_top_k(const Tensor& keys, std::int64_t k, std::int64_t num_groups,
                           std::int64_t group_topk, std::int64_t group_score_topk);

}  // namespace moe::naive
