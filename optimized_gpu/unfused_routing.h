/// @file
/// Routing without moe_router_fusion: a kernel for every operation, as Megatron's unfused
/// path has one, and as naive_gpu has it. What route() keeps in the registers of a warp
/// goes through memory here, scores (T, E) above all: written once, read twice. Source:
/// moe_utils.py, topk_routing_with_score_function, compute_routing_scores_for_aux_loss,
/// z_loss_func.
#pragma once

#include "gpu/stream.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/routing.h"

namespace moe::optimized {

/// What goes from kernel to kernel. TUTORIAL: kept, because cudaFree() would wait for the
/// kernels that use it.
struct UnfusedRouting {
    Tensor scores;        ///< (T, E) f32; undefined for a softmax after top-k
    Tensor loss_scores;   ///< (T, E) f32, see LossStatistics; with losses, as below
    Tensor loss_ids;      ///< (T, K) i32, the losses' own top-K
    Tensor log_sum_exps;  ///< (T) f32
};

/// What route() does, to the same bits, in a memset and these launches:
///
/// | launches | for |
/// |---|---|
/// | 4 | finite logits, top-k, weights, counts |
/// | 1 | scores, unless a softmax comes after top-k |
/// | 1 | the counts of the expert bias |
/// | 5 | the losses: scores, their top-k, counts, log-sum-exp, sums |
UnfusedRouting route_unfused(RoutedTokens& routed, const RoutingOperands& operands,
                             const RoutingRule& rule,
                             cudaStream_t stream = gpu::current_stream());

/// The gradient of the logits, and what led to it: kept, as above.
struct UnfusedGradient {
    Tensor dlogits;    ///< (T, E) f32
    Tensor dchosen;    ///< (T, K) f32, by the chosen's scores (or logits)
    Multihot dscores;  ///< the same as (T, E); its probs become dlogits, in place
};

/// What route_backward() does, but for softmax before top-k to the same bits: there a sum
/// over K became one over E. Two launches for weights and choices, and one each for
/// scores (unless a softmax comes after top-k), z-loss and the losses' scores.
UnfusedGradient route_unfused_backward(const RoutingGradientOperands& operands,
                                       const RoutingRule& rule,
                                       cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
