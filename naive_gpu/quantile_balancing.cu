// quantile_balancing.cu: a choice by logits less a number for each expert, and the
// numbers that would have balanced it.

#include "naive_gpu/quantile_balancing.h"

#include "distributed/quantile_balancing.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/scores.h"

namespace moe::naive {

//! [quantile_balancing]
namespace {

/// One thread per token and expert.
__global__ void subtract_beta_kernel(float* keys, const float* x, const float* beta,
                                     std::int64_t count, std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) keys[i] = x[i] - beta[i % E];
}

/// One thread per token and expert; the first K of a token enter its choices.
/// @param best (T, K + 1), K experts and the first that has to stand back
__global__ void margins_kernel(float* margins, std::int64_t* chosen, const float* x,
                               const float* keys, const std::int64_t* best,
                               std::int64_t count, std::int64_t E, std::int64_t K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / E, e = i % E;
    const float alpha = keys[t * E + best[t * (K + 1) + K]];
    margins[i] = x[i] - alpha;
    if (e < K) chosen[t * K + e] = best[t * (K + 1) + e];
}

/// One thread per margin: it is its column's quantile when just `share` are before it,
/// of equal ones those of earlier tokens.
__global__ void margin_quantiles_kernel(float* quantiles, const float* margins,
                                        std::int64_t share, std::int64_t M,
                                        std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= M * E) return;
    const std::int64_t mine = i / E, e = i % E;
    std::int64_t before = 0;
    for (std::int64_t t = 0; t < M; ++t) {
        const float other = margins[t * E + e];
        before += other > margins[i] || (other == margins[i] && t < mine);
    }
    if (before == share) quantiles[e] = margins[i];
}

/// One thread per expert.
__global__ void mean_quantiles_kernel(float* mean, const float* quantiles, float count,
                                      std::int64_t E) {
    const std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e < E) mean[e] = quantiles[e] / count;
}

/// One thread per expert, which moves all for itself, to know their mean.
__global__ void get_updated_qb_beta_kernel(float* updated, const float* beta,
                                           const float* sum, float count, float old_part,
                                           float new_part, std::int64_t E) {
    const std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= E) return;
    float total = 0.0f, mine = 0.0f;
    for (std::int64_t j = 0; j < E; ++j) {
        const float moved = old_part * beta[j] + new_part * (sum[j] / count);
        total += moved;
        if (j == e) mine = moved;
    }
    updated[e] = mine - total / float(E);
}

}  // namespace

QuantileChoice choose_by_quantiles(const Tensor& logits, const Tensor& beta,
                                   std::int64_t topk) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = topk;
    Tensor keys = gpu::device_empty<float>({T, E});
    gpu::launch("subtract_beta_kernel", subtract_beta_kernel, gpu::one_thread_per(T * E),
                gpu::device_data<float>(keys), gpu::device_data<float>(logits),
                gpu::device_data<float>(beta), T * E, E);
    const Tensor best = top_k<float>(keys, K + 1);
    QuantileChoice choice{gpu::device_empty<std::int64_t>({T, K}),
                          gpu::device_empty<float>({T, E})};
    gpu::launch("margins_kernel", margins_kernel, gpu::one_thread_per(T * E),
                gpu::device_data<float>(choice.margins),
                gpu::device_data<std::int64_t>(choice.topk_idx),
                gpu::device_data<float>(logits), gpu::device_data<float>(keys),
                gpu::device_data<std::int64_t>(best), T * E, E, K);
    return choice;
}

Tensor margin_quantiles(const Tensor& margins, std::int64_t topk) {
    const std::int64_t M = margins.dim(0), E = margins.dim(1);
    const std::int64_t share = distributed::even_share(M, topk, E);
    Tensor quantiles = gpu::device_empty<float>({E});
    gpu::launch("margin_quantiles_kernel", margin_quantiles_kernel,
                gpu::one_thread_per(M * E), gpu::device_data<float>(quantiles),
                gpu::device_data<float>(margins), share, M, E);
    return quantiles;
}

Tensor mean_quantiles(const Tensor& quantiles, std::int64_t count) {
    const std::int64_t E = quantiles.numel();
    Tensor mean = gpu::device_empty<float>({E});
    gpu::launch("mean_quantiles_kernel", mean_quantiles_kernel, gpu::one_thread_per(E),
                gpu::device_data<float>(mean), gpu::device_data<float>(quantiles),
                float(count), E);
    return mean;
}

Tensor get_updated_qb_beta(const Tensor& beta, const Tensor& sum, std::int64_t count,
                           double ema) {
    const std::int64_t E = beta.numel();
    Tensor updated = gpu::device_empty<float>({E});
    gpu::launch("get_updated_qb_beta_kernel", get_updated_qb_beta_kernel,
                gpu::one_thread_per(E), gpu::device_data<float>(updated),
                gpu::device_data<float>(beta), gpu::device_data<float>(sum), float(count),
                float(ema), float(1.0 - ema), E);
    return updated;
}
//! [quantile_balancing]

}  // namespace moe::naive
