/// @file
/// Quantile balancing: a number beta for each expert is taken off its logits before they
/// choose. Source: moe_utils.py, qb_dual_update; router.py,
/// TopKRouter.quantile_balancing; finalize_model_grads.py, _update_router_qb_beta.
///
/// Nothing waits for the device: all sizes are known beforehand.
#pragma once

#include <cuda_runtime.h>

#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

/// The K largest logits - beta of each token, best first, equal ones by the lower index.
/// One launch.
/// @param ids      (T, K) i32, written @param logits (T, E) f32 @param beta (E) f32
/// @param margins  (T, E) f32, written: logits - alpha, alpha the next largest logit -
///                 beta. A token takes expert e where its margin is above beta[e]. Or
///                 undefined. K < E.
void choose_by_quantiles(Tensor& ids, Tensor& margins, const Tensor& logits,
                         const Tensor& beta, cudaStream_t stream = gpu::current_stream());

/// The (K M / E + 1)-th largest margin of each expert is written to quantiles and added to
/// sums; at the end of sums, micro-batches are counted. With it as beta no more than its
/// share of tokens would take the expert. One launch, none without tokens. InputError
/// unless E divides K M.
/// @param quantiles (E) f32 @param sums (E + 1) f32
/// @param margins  (M, E) f32, of all tokens that share sequences
void add_margin_quantiles(Tensor& quantiles, Tensor& sums, const Tensor& margins,
                          std::int64_t topk, cudaStream_t stream = gpu::current_stream());

/// sums (E + 1) f32 over their count, which is at the end: (E) f32.
Tensor mean_quantiles(const Tensor& sums, cudaStream_t stream = gpu::current_stream());

/// ema beta + (1 - ema) sum / count, less its own mean.
/// @param beta (E) f32 @param sum (E) f32, of `count` quantiles
Tensor get_updated_qb_beta(const Tensor& beta, const Tensor& sum, std::int64_t count,
                           double ema, cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
