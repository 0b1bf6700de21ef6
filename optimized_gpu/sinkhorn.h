/// @file
/// Routing with sinkhorn: in training balanced affinities choose, outside it plain
/// scores. Source: router.py, TopKRouter.sinkhorn_load_balancing; moe_utils.py, sinkhorn.
#pragma once

#include <cuda_runtime.h>

#include "core/config.h"
#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

struct SinkhornRouting {
    Tensor ids;      ///< (T, K) i32, best first
    Tensor weights;  ///< (T, K) f32 scores of the chosen, not renormalised
    /// (T), (E) f32, in training when T > 0: d0, d1 of the balanced affinities d0_t
    /// exp(x_te) d1_e, whose rows and columns sum to 1/T and 1/E up to the tolerance of
    /// Megatron's loop. TUTORIAL: kept, because cudaFree() would wait for the kernel that
    /// uses them.
    Tensor row_factors, column_factors;
};

/// ③ with sinkhorn. Scores are a softmax over E, or, with K = 1, a sigmoid, in fp32. In
/// training the affinities choose, else the scores; equal ones: the lower expert.
///
/// In training the host waits for the device once a round, for E + 1 numbers, or 2 E + 1
/// after many rounds: whether the factors rest, and the loop with them, the data decide. A round is two launches; one
/// launch comes before the rounds, one after them. Outside training it is one launch and
/// no wait. The same bits every time.
///
/// InputError for logits so large that exp() overflows, for NaN, and for logits so uneven
/// that the loop does not end (core/sinkhorn_rounds.h; Megatron would go on); for E > 1024
/// and K > 32, as make_routing_rule().
/// @param logits (T, E) f32
SinkhornRouting route_sinkhorn(const Tensor& logits, const MoEConfig& config,
                               bool training,
                               cudaStream_t stream = gpu::current_stream());

/// ⑱ with sinkhorn: adds to dlogits (T, E) f32. The choice has no gradient. One launch.
/// @param dweights (T, K) f32 @param ids (T, K) i32, from route_sinkhorn()
/// @param logits (T, E) f32
void route_sinkhorn_backward(Tensor& dlogits, const Tensor& dweights, const Tensor& ids,
                             const Tensor& logits, const MoEConfig& config,
                             cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
