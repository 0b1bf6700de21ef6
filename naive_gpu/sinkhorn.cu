// sinkhorn.cu: balanced affinities between tokens and experts.

#include "naive_gpu/sinkhorn.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/sinkhorn_rounds.h"
#include "core/transfer.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/scores.h"

namespace moe::naive {

//! [sinkhorn]
namespace {

constexpr float kEpsilon = 1e-8f;

/// One thread per token and expert.
__global__ void sinkhorn_cost_kernel(float* cost, const float* x, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) cost[i] = exp(x[i]);
}

/// One thread per token: the factor that makes its row sum to 1/T.
__global__ void row_factors_kernel(float* d0, const float* cost, const float* d1,
                                   std::int64_t T, std::int64_t E) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    float sum = 0.0f;
    for (std::int64_t e = 0; e < E; ++e) sum += cost[t * E + e] * d1[e];
    d0[t] = 1.0f / float(T) / (sum + kEpsilon);
}

/// One thread per expert: the factor that makes its column sum to 1/E, and how far it
/// moved.
__global__ void column_factors_kernel(float* d1, float* moved, const float* cost,
                                      const float* d0, std::int64_t T, std::int64_t E) {
    const std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= E) return;
    float sum = 0.0f;
    for (std::int64_t t = 0; t < T; ++t) sum += d0[t] * cost[t * E + e];
    const float previous = d1[e];
    d1[e] = 1.0f / float(E) / (sum + kEpsilon);
    moved[e] = fabsf(previous - d1[e]);
}

/// One thread per token and expert.
__global__ void sinkhorn_scale_kernel(float* cost, const float* d0, const float* d1,
                                      std::int64_t count, std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) cost[i] = d0[i / E] * cost[i] * d1[i % E];
}

/// exp(x) (T, E), or InputError where fp32 cannot hold it.
Tensor sinkhorn_cost(const Tensor& x) {
    const std::vector<float> values = gpu::to_host<float>(x);
    const float largest = *std::max_element(values.begin(), values.end());
    if (!std::isfinite(std::exp(largest)))
        reject("logits", largest, "must be at most 88 with sinkhorn (exp in fp32)");
    Tensor cost = gpu::device_empty<float>(x.shape());
    gpu::launch("sinkhorn_cost_kernel", sinkhorn_cost_kernel,
                gpu::one_thread_per(x.numel()), gpu::device_data<float>(cost),
                gpu::device_data<float>(x), x.numel());
    return cost;
}

float mean(const Tensor& of_experts) {
    const std::vector<float> values = gpu::to_host<float>(of_experts);
    return std::accumulate(values.begin(), values.end(), 0.0f) / float(values.size());
}

[[noreturn]] void reject_uneven(const Tensor& logits) {
    const auto x = gpu::to_host<float>(transfer(logits, kScorePlacement));
    const auto [smallest, largest] = std::minmax_element(x.begin(), x.end());
    reject_sinkhorn_logits(*smallest, *largest);
}

}  // namespace

template <typename Scalar>
Tensor sinkhorn(const Tensor& logits) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    if (T == 0) return gpu::device_empty<float>({T, E});
    Tensor cost = sinkhorn_cost(transfer(logits, kScorePlacement));

    // Scale rows, then columns, until the column factors rest
    Tensor d0 = gpu::device_empty<float>({T}), moved = gpu::device_empty<float>({E});
    Tensor d1 = gpu::to_device(std::vector<float>(E, 1.0f));
    for (int round = 1;; ++round) {
        gpu::launch("row_factors_kernel", row_factors_kernel, gpu::one_thread_per(T),
                    gpu::device_data<float>(d0), gpu::device_data<float>(cost),
                    gpu::device_data<float>(d1), T, E);
        gpu::launch("column_factors_kernel", column_factors_kernel,
                    gpu::one_thread_per(E), gpu::device_data<float>(d1),
                    gpu::device_data<float>(moved), gpu::device_data<float>(cost),
                    gpu::device_data<float>(d0), T, E);
        const bool many = round >= kManySinkhornRounds;
        if (sinkhorn_rests(round, mean(moved), many ? mean(d1) : 0.0f)) break;
        if (round == kMostSinkhornRounds) reject_uneven(logits);
    }
    gpu::launch("sinkhorn_scale_kernel", sinkhorn_scale_kernel,
                gpu::one_thread_per(T * E), gpu::device_data<float>(cost),
                gpu::device_data<float>(d0), gpu::device_data<float>(d1), T * E, E);
    return cost;
}
//! [sinkhorn]

template Tensor sinkhorn<float>(const Tensor&);
template Tensor sinkhorn<double>(const Tensor&);

}  // namespace moe::naive
