/// @file
/// Quantile balancing: a number beta for each expert is taken off its logits before they
/// choose, such that in the last step every expert would have got the same number of
/// tokens. Source: moe_utils.py, qb_dual_update; router.py,
/// TopKRouter.quantile_balancing; finalize_model_grads.py, _update_router_qb_beta.
#pragma once

#include "core/tensor.h"

namespace moe::cpu {

/// Who was chosen, and how far every expert is from it.
struct QuantileChoice {
    Tensor topk_idx;  ///< (T, K) i64, the largest logits - beta, best first
    /// (T, E) f32, logits - alpha, alpha the largest logit - beta of a token that did not
    /// choose: the token takes expert e where its margin is above beta[e].
    Tensor margins;
};

/// Ties go to the lower expert index. @param logits (T, E) f32 @param beta (E) f32
/// @param topk  K, below E
QuantileChoice choose_by_quantiles(const Tensor& logits, const Tensor& beta,
                                   std::int64_t topk);

/// The (K M / E + 1)-th largest margin of each expert: with it as beta no more than its
/// share of tokens would take it.
/// @param margins (M, E) f32, of all tokens that share sequences; M > 0
/// @return (E) f32. InputError unless E divides K M.
Tensor margin_quantiles(const Tensor& margins, std::int64_t topk);

/// ema beta + (1 - ema) sum / count, less its own mean.
/// @param beta (E) f32 @param sum (E) f32, of `count` quantiles
Tensor get_updated_qb_beta(const Tensor& beta, const Tensor& sum, std::int64_t count,
                           double ema);

}  // namespace moe::cpu
