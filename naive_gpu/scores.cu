#include "naive_gpu/scores.h"

#include <cmath>

#include "core/error.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/activation.h"

namespace moe::naive {

ScoreFunction parse_score_function(const std::string& name) {
    if (name == "softmax") return ScoreFunction::softmax;
    if (name == "sigmoid") return ScoreFunction::sigmoid;
    MOE_CHECK_EQ(name, "sqrtsoftplus");
    return ScoreFunction::sqrtsoftplus;
}

namespace {

constexpr float kNormalizeEpsilon = 1e-20f;

/// log(1 + eˣ); above 20 it equals x in fp32, as PyTorch's softplus has it.
__device__ float softplus(float x) {
    return x > 20.0f ? x : log1p(exp(x));
}

__device__ float sum(const float* values, std::int64_t count) {
    float total = 0.0f;
    for (std::int64_t i = 0; i < count; ++i) total += values[i];
    return total;
}

__device__ float dot(const float* a, const float* b, std::int64_t count) {
    float total = 0.0f;
    for (std::int64_t i = 0; i < count; ++i) total += a[i] * b[i];
    return total;
}

/// One thread per row.
__global__ void softmax_kernel(float* s, const float* x, std::int64_t T, std::int64_t E) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    s += t * E;
    x += t * E;
    // TUTORIAL: subtracting the maximum changes nothing, and keeps exp() from
    // overflowing.
    float largest = x[0];
    for (std::int64_t e = 1; e < E; ++e) largest = x[e] > largest ? x[e] : largest;
    for (std::int64_t e = 0; e < E; ++e) s[e] = exp(x[e] - largest);
    const float total = sum(s, E);
    for (std::int64_t e = 0; e < E; ++e) s[e] /= total;
}

/// One thread per entry.
__global__ void compute_scores_kernel(float* s, ScoreFunction function, const float* x,
                                      std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    s[i] = function == ScoreFunction::sigmoid ? sigmoid(x[i]) : sqrt(softplus(x[i]));
}

}  // namespace

void compute_scores(Tensor& s, ScoreFunction function, const Tensor& x) {
    const std::int64_t T = x.dim(0), E = x.dim(1);
    if (function == ScoreFunction::softmax)
        gpu::launch("softmax_kernel", softmax_kernel, gpu::one_thread_per(T),
                    gpu::device_data<float>(s), gpu::device_data<float>(x), T, E);
    else
        gpu::launch("compute_scores_kernel", compute_scores_kernel,
                    gpu::one_thread_per(T * E), gpu::device_data<float>(s), function,
                    gpu::device_data<float>(x), T * E);
}

namespace {

/// One thread per row.
__global__ void softmax_backward_kernel(float* dx, const float* s, const float* ds,
                                        std::int64_t T, std::int64_t E) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const float mean = dot(ds + t * E, s + t * E, E);
    for (std::int64_t i = t * E; i < (t + 1) * E; ++i) dx[i] = s[i] * (ds[i] - mean);
}

/// One thread per entry.
__global__ void compute_scores_backward_kernel(float* dx, ScoreFunction function,
                                               const float* x, const float* s,
                                               const float* ds, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    if (function == ScoreFunction::sigmoid)
        dx[i] = ds[i] * s[i] * (1.0f - s[i]);
    else  // Where softplus underflows the quotient is 0/0; the project takes 0.
        dx[i] = s[i] > 0.0f ? ds[i] * sigmoid(x[i]) / (2.0f * s[i]) : 0.0f;
}

}  // namespace

void compute_scores_backward(Tensor& dx, ScoreFunction function, const Tensor& x,
                             const Tensor& s, const Tensor& ds) {
    const std::int64_t T = x.dim(0), E = x.dim(1);
    if (function == ScoreFunction::softmax)
        gpu::launch("softmax_backward_kernel", softmax_backward_kernel,
                    gpu::one_thread_per(T), gpu::device_data<float>(dx),
                    gpu::device_data<float>(s), gpu::device_data<float>(ds), T, E);
    else
        gpu::launch("compute_scores_backward_kernel", compute_scores_backward_kernel,
                    gpu::one_thread_per(T * E), gpu::device_data<float>(dx), function,
                    gpu::device_data<float>(x), gpu::device_data<float>(s),
                    gpu::device_data<float>(ds), T * E);
}

namespace {

/// One thread per row.
__global__ void normalize_kernel(float* s, std::int64_t T, std::int64_t K) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const float total = sum(s + t * K, K) + kNormalizeEpsilon;
    for (std::int64_t i = t * K; i < (t + 1) * K; ++i) s[i] /= total;
}

/// One thread per row.
__global__ void normalize_backward_kernel(float* dp, const float* s, std::int64_t T,
                                          std::int64_t K) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const float total = sum(s + t * K, K) + kNormalizeEpsilon;
    const float mean = dot(dp + t * K, s + t * K, K) / total;
    for (std::int64_t i = t * K; i < (t + 1) * K; ++i) dp[i] = (dp[i] - mean) / total;
}

}  // namespace

void normalize(Tensor& s) {
    gpu::launch("normalize_kernel", normalize_kernel, gpu::one_thread_per(s.dim(0)),
                gpu::device_data<float>(s), s.dim(0), s.dim(1));
}

void normalize_backward(Tensor& dp, const Tensor& s) {
    gpu::launch("normalize_backward_kernel", normalize_backward_kernel,
                gpu::one_thread_per(s.dim(0)), gpu::device_data<float>(dp),
                gpu::device_data<float>(s), s.dim(0), s.dim(1));
}

//! [top_k]
namespace {

/// The entry after `last` in the order of choice: larger keys first, of equal ones the
/// lower index. last = -1 asks for the first.
template <typename Key>
__device__ std::int64_t next_best(const Key* keys, std::int64_t count,
                                  std::int64_t last) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < count; ++e) {
        const bool passed =
            last >= 0 && (keys[e] > keys[last] || (keys[e] == keys[last] && e <= last));
        if (!passed && (best < 0 || keys[e] > keys[best])) best = e;
    }
    return best;
}

/// One thread per row: scans it once for every choice.
template <typename Key>
__global__ void top_k_kernel(std::int64_t* chosen, const Key* keys, std::int64_t T,
                             std::int64_t E, std::int64_t K) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    std::int64_t last = -1;
    for (std::int64_t k = 0; k < K; ++k)
        last = chosen[t * K + k] = next_best(keys + t * E, E, last);
}

}  // namespace

template <typename Key>
Tensor top_k(const Tensor& keys, std::int64_t k) {
    const std::int64_t T = keys.dim(0), E = keys.dim(1);
    Tensor chosen = gpu::device_empty<std::int64_t>({T, k});
    gpu::launch("top_k_kernel", top_k_kernel<Key>, gpu::one_thread_per(T),
                gpu::device_data<std::int64_t>(chosen), gpu::device_data<Key>(keys), T, E,
                k);
    return chosen;
}

namespace {

/// One thread per row and group: the sum of its `group_score_topk` largest keys.
template <typename Key>
__global__ void group_scores_kernel(Key* group_scores, const Key* keys,
                                    std::int64_t count, std::int64_t group_size,
                                    std::int64_t group_score_topk) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Key* group = keys + i * group_size;
    Key score = 0;
    std::int64_t last = -1;
    for (std::int64_t k = 0; k < group_score_topk; ++k) {
        last = next_best(group, group_size, last);
        score += group[last];
    }
    group_scores[i] = score;
}

/// One thread per entry: its key where its group was chosen, -∞ elsewhere.
template <typename Key>
__global__ void limit_groups_kernel(Key* reachable, const Key* keys,
                                    const std::int64_t* groups, std::int64_t count,
                                    std::int64_t E, std::int64_t group_size,
                                    std::int64_t group_topk) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / E, group = i % E / group_size;
    bool open = false;
    for (std::int64_t k = 0; k < group_topk; ++k)
        open = open || groups[t * group_topk + k] == group;
    reachable[i] = open ? keys[i] : Key(-INFINITY);
}

}  // namespace

template <typename Key>
Tensor group_limited_top_k(const Tensor& keys, std::int64_t k, std::int64_t num_groups,
                           std::int64_t group_topk, std::int64_t group_score_topk) {
    const std::int64_t T = keys.dim(0), E = keys.dim(1), group_size = E / num_groups;
    Tensor group_scores = gpu::device_empty<Key>({T, num_groups});
    gpu::launch("group_scores_kernel", group_scores_kernel<Key>,
                gpu::one_thread_per(T * num_groups), gpu::device_data<Key>(group_scores),
                gpu::device_data<Key>(keys), T * num_groups, group_size,
                group_score_topk);

    const Tensor groups = top_k<Key>(group_scores, group_topk);
    Tensor reachable = gpu::device_empty<Key>({T, E});
    gpu::launch("limit_groups_kernel", limit_groups_kernel<Key>,
                gpu::one_thread_per(T * E), gpu::device_data<Key>(reachable),
                gpu::device_data<Key>(keys), gpu::device_data<std::int64_t>(groups),
                T * E, E, group_size, group_topk);
    return top_k<Key>(reachable, k);
}
//! [top_k]

#define INSTANTIATE(Key)                                                                \
    template Tensor top_k<Key>(const Tensor&, std::int64_t);                            \
    template Tensor group_limited_top_k<Key>(const Tensor&, std::int64_t, std::int64_t, \
                                             std::int64_t, std::int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::naive
