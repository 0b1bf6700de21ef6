/// @file
/// Routing: which K experts each token visits, and with what weight. Source:
/// moe_utils.py, topk_routing_with_score_function; router.py,
/// TopKRouter.sinkhorn_load_balancing.
#pragma once

#include "core/config.h"
#include "core/tensor.h"

namespace moe::cpu {

/// Step ③ for all tokens: who was chosen, before any dropping, and the scores behind it.
struct Routing {
    Tensor topk_idx;  ///< (T, K) i64, best first, or as they were given
    Tensor scores;    ///< (T, E) f32; softmax after top-k fills only the chosen
    Tensor probs;     ///< (T, E), 0 where not chosen
    Tensor map;       ///< (T, E) u8
};

/// ③ top-k routing. Ties go to the lower expert (and group) index.
///
/// | score function | who is chosen | weight p_k |
/// |---|---|---|
/// | softmax | largest logits | softmax over the K chosen |
/// | softmax, moe_router_pre_softmax | largest softmax over E | s_k, as it is |
/// | sigmoid, sqrtsoftplus | largest s + expert bias | s_k / Σ s; s_k when K = 1 |
///
/// with moe_router_norm_topk_prob false always s_k; then times
/// moe_router_topk_scaling_factor. Scores are fp32.
/// @param logits (T, E) @param expert_bias (E) f32 or undefined
/// @param precomputed_idx  (T, K) i64, chosen by somebody else, in any order; or
/// undefined
template <typename Scalar>
Routing route(const Tensor& logits, const Tensor& expert_bias, const MoEConfig& config,
              const Tensor& precomputed_idx = {});

/// ⑱ adds to dlogits (T, E) from dprobs (T, E). Choice and bias have no gradient.
template <typename Scalar>
void route_backward(Tensor& dlogits, const Tensor& dprobs, const Tensor& logits,
                    const Routing& routing, const MoEConfig& config);

/// ③ with sinkhorn: in training balanced affinities choose, outside it plain scores; the
/// scores weigh and are not renormalised: softmax over E, or, with K = 1, a sigmoid in
/// the router's own precision.
template <typename Scalar>
Routing route_sinkhorn(const Tensor& logits, const MoEConfig& config, bool training);

/// ⑱ with sinkhorn: adds to dlogits (T, E) from dprobs (T, E).
template <typename Scalar>
void route_sinkhorn_backward(Tensor& dlogits, const Tensor& dprobs, const Tensor& logits,
                             const Routing& routing, const MoEConfig& config);

}  // namespace moe::cpu
