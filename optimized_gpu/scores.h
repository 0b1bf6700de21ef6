/// @file
/// Router scores and their slopes, in fp32, of a row that lies in a warp's registers; as
/// in reference_cpu/scores.h. Source: moe_utils.py, topk_routing_with_score_function,
/// compute_routing_scores_for_aux_loss.
#pragma once

#include "optimized_gpu/routing_rule.h"
#include "optimized_gpu/warp_row.h"

namespace moe::optimized {

inline constexpr float kNormalizeEpsilon = 1e-20f;

__device__ inline float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

/// log(1 + eˣ); above 20 it equals x in fp32, as PyTorch's softplus has it.
__device__ inline float softplus(float x) {
    return x > 20.0f ? x : log1pf(expf(x));
}

/// σ(x) or √softplus(x): the scores that need no other logit.
__device__ inline float score_of(ScoreFunction function, float x) {
    return function == ScoreFunction::sigmoid ? sigmoid(x) : sqrtf(softplus(x));
}

/// ds/dx of these, at logit x with score s.
__device__ inline float score_slope(ScoreFunction function, float x, float s) {
    if (function == ScoreFunction::sigmoid) return s * (1.0f - s);
    // Where softplus underflows the quotient is 0/0; the project takes 0.
    return s > 0.0f ? sigmoid(x) / (2.0f * s) : 0.0f;
}

/// What a softmax over a row needs: its largest logit m, and Σ exp(x - m).
struct SoftmaxSums {
    float largest, total;

    __device__ float softmax(float x) const { return expf(x - largest) / total; }
    __device__ float log_sum_exp() const { return largest + logf(total); }
};

template <int N>
__device__ SoftmaxSums softmax_sums(const float (&x)[N]) {
    // TUTORIAL: subtracting the maximum changes nothing, and keeps exp() from
    // overflowing.
    float largest = x[0];
#pragma unroll
    for (int j = 1; j < N; ++j) largest = fmaxf(largest, x[j]);
    largest = warp_max(largest);
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) total += expf(x[j] - largest);
    return {largest, warp_sum(total)};
}

/// The score of a logit. @param sums  of its row; used by softmax alone
__device__ inline float score_of(ScoreFunction function, float x,
                                 const SoftmaxSums& sums) {
    return function == ScoreFunction::softmax ? sums.softmax(x) : score_of(function, x);
}

/// Scores of all experts of a token.
template <int N>
__device__ void compute_scores(float (&s)[N], ScoreFunction function, const float (&x)[N],
                               const SoftmaxSums& sums) {
#pragma unroll
    for (int j = 0; j < N; ++j) s[j] = score_of(function, x[j], sums);
}

/// Σ s + 1e-20, by which normalised scores are divided.
template <int N>
__device__ float normalizer_of(const float (&s)[N]) {
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < N; ++j) total += s[j];
    return warp_sum(total) + kNormalizeEpsilon;
}

}  // namespace moe::optimized
