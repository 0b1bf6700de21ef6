/// @file
/// The losses' way back to the logits of one token, whose row lies in a warp's registers.
/// Source: router.py, TopKRouter; moe_utils.py, z_loss_func and
/// compute_routing_scores_for_aux_loss.
#pragma once

#include "core/steps.h"
#include "gpu/tensor.h"
#include "optimized_gpu/scores.h"

namespace moe::optimized {

/// The value, or what stands for one that is not there.
__device__ inline float value_or(const float* value, float none) {
    return value == nullptr ? none : *value;
}

/// A LossScale as a kernel takes it.
struct KernelScale {
    const float* on_device;  ///< read when the kernel runs; or null
    float number;            ///< where it is not there

    explicit KernelScale(const LossScale& scale)
        : on_device(gpu::device_data<float>(scale.on_device())),
          number(on_device != nullptr ? 1.0f : float(scale.value())) {}
    __device__ float value() const { return value_or(on_device, number); }
};

/// dx += dsquare d lse² / dx, lse = log Σ exp x.
template <int N>
__device__ void z_loss_backward(float (&dx)[N], const float (&x)[N], float lse,
                                float dsquare) {
    const float dlse = 2.0f * dsquare * lse;
#pragma unroll
    for (int j = 0; j < N; ++j) dx[j] += dlse * expf(x[j] - lse);
}

/// Adds to dx what comes by the losses' scores: a softmax over E, or σ / √softplus
/// normalised over E.
/// @param dscores  (E), times `scale` their gradient
template <int N>
__device__ void loss_scores_backward(float (&dx)[N], const float (&x)[N],
                                     const SoftmaxSums& softmax_of_row,
                                     const float* dscores, float scale,
                                     const RoutingRule& rule, int lane) {
    float s[N], ds[N];
    compute_scores(s, rule.function, x, softmax_of_row);
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        ds[j] = e < rule.num_experts ? scale * dscores[e] : 0.0f;
        sum += ds[j] * s[j];
    }
    const float dot = warp_sum(sum);
    const bool softmax = rule.function == ScoreFunction::softmax;
    const float normalizer = softmax ? 1.0f : normalizer_of(s);
#pragma unroll
    for (int j = 0; j < N; ++j)
        dx[j] += (ds[j] - dot / normalizer) / normalizer *
                 (softmax ? s[j] : score_slope(rule.function, x[j], s[j]));
}

}  // namespace moe::optimized
