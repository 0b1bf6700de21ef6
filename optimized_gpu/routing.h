/// @file
/// Routing in one kernel: from logits to the chosen experts, their weights, how many
/// tokens each expert gets, and what the auxiliary losses sum up. Source: moe_utils.py,
/// topk_routing_with_score_function, compute_routing_scores_for_aux_loss,
/// fused_topk_with_score_function; router.py, TopKRouter.
///
/// Nothing waits for the device and nothing is allocated but by make_routed_tokens().
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/steps.h"
#include "core/tensor.h"
#include "distributed/process_groups.h"
#include "gpu/stream.h"
#include "optimized_gpu/routing_rule.h"

namespace moe::optimized {

/// What the auxiliary losses sum up over valid tokens, on the device. Token t belongs to
/// population t mod P: tokens are numbered t = s B + b, see naive::TokenGrid.
///
/// Scores here are the losses' own: softmax over all E experts, or σ / √softplus
/// normalised over all E, with a plain top-K, whatever bias and groups did.
struct LossStatistics {
    Tensor assignments;  ///< (P, E) i32, tokens per expert by this top-K
    Tensor num_valid;    ///< (1) i32, tokens that are no padding
    /// The same of all ranks of tp_cp, and of tp_dp_cp; undefined on one rank.
    Tensor tp_cp_assignments, tp_cp_valid, tp_dp_cp_assignments, tp_dp_cp_valid;
    /// (P N, E) and (P N) f32, Σ_t scores[t, e] and Σ_t lse_t² over the tokens of each of
    /// N blocks of each population in turn, lse = log Σ_e exp logits[t, e].
    Tensor partial_scores, partial_squares;
    Tensor blocks_done;  ///< (1) i32, 0: auxiliary_losses() counts here
};

/// Step ③ for all tokens: what the router hands on, before any dropping.
struct RoutedTokens {
    Tensor weights;            ///< (T, K) f32
    Tensor ids;                ///< (T, K) i32, best first, or as they were given
    Tensor tokens_per_expert;  ///< (E) i32; padding is routed too
    /// (1) i32: T − t, t the first token with a logit that is NaN or infinite; 0 when
    /// there is none. Weights of such tokens mean nothing; their ids are K experts.
    Tensor non_finite;
    LossStatistics losses;  ///< undefined without a loss
    /// All the i32 sums, so that one memset clears them. The tensors above and in
    /// `losses` are parts of it, and live no longer.
    Tensor counters;
};

/// Uninitialised buffers for T tokens, to be used again and again.
/// @param populations  see count_populations()
RoutedTokens make_routed_tokens(const RoutingRule& rule, std::int64_t num_tokens,
                                std::int64_t populations);

/// Adds up the losses' counts over the ranks that share sequences, and over all. Scores
/// stay each rank's own. Source: moe_utils.py, get_tokens_per_expert_and_token_count.
void reduce_loss_counts(RoutedTokens& routed, const MoEConfig& config,
                        const distributed::ProcessGroups& groups);

struct RoutingOperands {
    Tensor logits;        ///< (T, E) f32
    Tensor expert_bias;   ///< (E) f32 or undefined: moves the choice, never the weight
    Tensor padding_mask;  ///< (T) u8, 1 = padding; or undefined
    /// (E) i64 or undefined; gets added the valid tokens of each expert, behind the
    /// update of the expert bias. Source: router.py, TopKRouter.local_tokens_per_expert.
    Tensor local_tokens_per_expert;
    /// RoutedTokens::ids are there already, of each token in any order.
    bool has_precomputed_ids = false;
};

/// ③ and the sums of ⑤. Ties go to the lower expert (and group) index.
///
/// | score function | who is chosen | weight p_k |
/// |---|---|---|
/// | softmax | largest logits | softmax over the K chosen |
/// | softmax, moe_router_pre_softmax | largest softmax over E | s_k, as it is |
/// | sigmoid, sqrtsoftplus | largest s + expert bias | s_k / Σ s; s_k when K = 1 |
///
/// then times moe_router_topk_scaling_factor. A memset and one launch. The same bits
/// every time.
void route(RoutedTokens& routed, const RoutingOperands& operands, const RoutingRule& rule,
           cudaStream_t stream = gpu::current_stream());

/// InputError, in naive_gpu's words, when a logit was not finite. Waits for the device.
void require_finite(const RoutedTokens& routed, const Tensor& logits);

/// What the losses hand back; see AuxiliaryLossesSaved. Each may be undefined.
struct LossGradients {
    Tensor dscores;  ///< (P, E) f32, dL/dscores of every valid token of the population
    Tensor z_scale;  ///< (1) f32, dL/d(lse_t²) of every valid token
    LossScale main_loss_backward_scale = 1.0;  ///< times both
};

struct RoutingGradientOperands {
    Tensor dweights;      ///< (T, K) f32
    Tensor logits;        ///< (T, E) f32
    Tensor ids;           ///< (T, K) i32, from route()
    Tensor padding_mask;  ///< (T) u8 or undefined; for the losses alone
    LossGradients losses;
};

/// ⑯ and ⑱ in one launch: dlogits (T, E) f32 is written. Choice and bias have no
/// gradient. Scores are computed once more, not kept.
void route_backward(Tensor& dlogits, const RoutingGradientOperands& operands,
                    const RoutingRule& rule, cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
