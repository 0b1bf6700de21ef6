#include "reference_cpu/scores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"
#include "reference_cpu/activation.h"

namespace moe::cpu {
namespace {

constexpr float kNormalizeEpsilon = 1e-20f;

/// log(1 + eˣ); above 20 it equals x in fp32, as PyTorch's softplus has it.
float softplus(float x) {
    return x > 20.0f ? x : std::log1p(std::exp(x));
}

float sum(std::span<const float> values) {
    return std::accumulate(values.begin(), values.end(), 0.0f);
}

float dot(std::span<const float> a, std::span<const float> b) {
    return std::inner_product(a.begin(), a.end(), b.begin(), 0.0f);
}

void softmax(std::span<float> s, std::span<const float> x) {
    // TUTORIAL: subtracting the maximum changes nothing, and keeps exp() from
    // overflowing.
    const float largest = *std::max_element(x.begin(), x.end());
    for (std::size_t e = 0; e < x.size(); ++e) s[e] = std::exp(x[e] - largest);
    const float total = sum(s);
    for (float& value : s) value /= total;
}

}  // namespace

ScoreFunction parse_score_function(const std::string& name) {
    if (name == "softmax") return ScoreFunction::softmax;
    if (name == "sigmoid") return ScoreFunction::sigmoid;
    MOE_CHECK_EQ(name, "sqrtsoftplus");
    return ScoreFunction::sqrtsoftplus;
}

void compute_scores(std::span<float> s, ScoreFunction function,
                    std::span<const float> x) {
    if (function == ScoreFunction::softmax) return softmax(s, x);
    for (std::size_t e = 0; e < x.size(); ++e)
        s[e] = function == ScoreFunction::sigmoid ? sigmoid(x[e])
                                                  : std::sqrt(softplus(x[e]));
}

void compute_scores_backward(std::span<float> dx, ScoreFunction function,
                             std::span<const float> x, std::span<const float> s,
                             std::span<const float> ds) {
    switch (function) {
        case ScoreFunction::softmax: {
            const float mean = dot(ds, s);
            for (std::size_t e = 0; e < x.size(); ++e) dx[e] = s[e] * (ds[e] - mean);
            return;
        }
        case ScoreFunction::sigmoid:
            for (std::size_t e = 0; e < x.size(); ++e)
                dx[e] = ds[e] * s[e] * (1.0f - s[e]);
            return;
        case ScoreFunction::sqrtsoftplus:
            // Where softplus underflows the quotient is 0/0; the project takes 0.
            for (std::size_t e = 0; e < x.size(); ++e)
                dx[e] = s[e] > 0.0f ? ds[e] * sigmoid(x[e]) / (2.0f * s[e]) : 0.0f;
            return;
    }
}

void normalize(std::span<float> s) {
    const float total = sum(s) + kNormalizeEpsilon;
    for (float& value : s) value /= total;
}

void normalize_backward(std::span<float> dp, std::span<const float> s) {
    const float total = sum(s) + kNormalizeEpsilon;
    const float mean = dot(dp, s) / total;
    for (float& value : dp) value = (value - mean) / total;
}

//! [top_k]
template <typename Key>
std::vector<std::int64_t> top_k(std::span<const Key> keys, std::int64_t k) {
    std::vector<std::int64_t> order(keys.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + k, order.end(),
                      [&](std::int64_t a, std::int64_t b) {
                          return keys[a] != keys[b] ? keys[a] > keys[b] : a < b;
                      });
    order.resize(k);
    return order;
}

template <typename Key>
std::vector<std::int64_t> group_limited_top_k(std::span<const Key> keys, std::int64_t k,
                                              std::int64_t num_groups,
                                              std::int64_t group_topk,
                                              std::int64_t group_score_topk) {
    const std::int64_t group_size = std::int64_t(keys.size()) / num_groups;
    std::vector<Key> group_scores(num_groups, Key(0));
    for (std::int64_t g = 0; g < num_groups; ++g) {
        const auto group = keys.subspan(g * group_size, group_size);
        for (std::int64_t best : top_k(group, group_score_topk))
            group_scores[g] += group[best];
    }

    std::vector<Key> reachable(keys.size(), -std::numeric_limits<Key>::infinity());
    for (std::int64_t g : top_k(std::span<const Key>(group_scores), group_topk))
        std::copy_n(keys.begin() + g * group_size, group_size,
                    reachable.begin() + g * group_size);
    return top_k(std::span<const Key>(reachable), k);
}
//! [top_k]

#define INSTANTIATE(Key)                                                               \
    template std::vector<std::int64_t> top_k<Key>(std::span<const Key>, std::int64_t); \
    template std::vector<std::int64_t> group_limited_top_k<Key>(                       \
        std::span<const Key>, std::int64_t, std::int64_t, std::int64_t, std::int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::cpu
