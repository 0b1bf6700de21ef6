/// @file
/// What quantile balancing asks of a router's tokens and of its ranks, whatever the tier.
/// Source: router.py, TopKRouter.quantile_balancing; moe_utils.py, qb_dual_update;
/// finalize_model_grads.py, _update_router_qb_beta.
#pragma once

#include "core/tensor.h"
#include "core/tier.h"

namespace moe::distributed {

/// K M / E, the tokens that each expert would get of M in balance; InputError unless it
/// is whole.
std::int64_t even_share(std::int64_t num_tokens, std::int64_t topk,
                        std::int64_t num_experts);

/// InputError for a defined padding mask, as in Megatron.
void refuse_padding_mask(const Tensor& padding_mask);

/// The margins (M, E) f32 of all ranks that share sequences, M = T |tp_cp|, from my (T,
/// E); all must have as many. Megatron gathers logits instead, in evaluation too.
/// @param groups  null for one rank
Tensor gather_margins(const GroupsPtr& groups, const Tensor& margins);

/// The sum of the ranks' quantiles (E) f32 over dp_cp, and how many are in it.
struct QuantileSum {
    Tensor sum;
    std::int64_t ranks;
};
/// @param groups  null for one rank
/// @param quantiles  the mean of my micro-batches
QuantileSum sum_quantiles(const GroupsPtr& groups, const Tensor& quantiles);

}  // namespace moe::distributed
