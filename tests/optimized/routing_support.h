/// @file
/// Routing written out in fp64, one plain loop after another, and its operands on the
/// device.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <ostream>
#include <string>
#include <vector>

#include "core/transfer.h"
#include "gpu/check.h"
#include "gpu/tensor.h"
#include "optimized_gpu/routing.h"

namespace moe::test {

using optimized::RoutingRule;
using optimized::ScoreFunction;
using Doubles = std::vector<double>;

/// What is routed. Logits are multiples of 2^-10: those that differ have scores that
/// differ in fp32 as well, and those that do not are a tie.
struct RoutingProblem {
    RoutingRule rule;
    std::int64_t num_tokens = 0, populations = 0;
    std::vector<float> logits = {}, expert_bias = {};  // the bias may be empty
    std::vector<std::uint8_t> padding_mask = {};       // may be empty

    std::int64_t T() const { return num_tokens; }
    int E() const { return rule.num_experts; }
    int K() const { return rule.topk; }
    bool is_padding(std::int64_t t) const {
        return !padding_mask.empty() && padding_mask[t] != 0;
    }
    Doubles row(std::int64_t t) const {
        return {logits.begin() + t * E(), logits.begin() + (t + 1) * E()};
    }
};

inline std::ostream& operator<<(std::ostream& out, const RoutingProblem& p) {
    const char* functions[] = {"softmax", "sigmoid", "sqrtsoftplus"};
    return out << "T " << p.T() << ", E " << p.E() << ", K " << p.K() << ", "
               << functions[int(p.rule.function)] << (p.rule.pre_softmax ? " before" : "")
               << (p.rule.norm_topk_prob ? "" : " as they are") << ", groups "
               << p.rule.num_groups << "/" << p.rule.group_topk << " by "
               << p.rule.group_score_topk << (p.expert_bias.empty() ? "" : ", bias")
               << (p.padding_mask.empty() ? "" : ", mask") << ", scale "
               << p.rule.scaling_factor << ", P " << p.populations;
}

/// About normal, deviation 1; multiples of 1 / `steps`.
inline std::vector<float> random_multiples(std::int64_t count, std::uint64_t seed,
                                           double steps = 1024.0) {
    std::vector<float> values(count);
    std::uint64_t state = seed * 2 + 1;
    for (float& value : values) {
        double sum = 0.0;
        for (int i = 0; i < 12; ++i) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            sum += double(state >> 40) / double(1 << 24);
        }
        value = float(std::round((sum - 6.0) * steps) / steps);
    }
    return values;
}

inline RoutingProblem make_problem(const RoutingRule& rule, std::int64_t num_tokens) {
    RoutingProblem p{rule, num_tokens};
    p.logits = random_multiples(num_tokens * rule.num_experts, 7 + num_tokens);
    return p;
}

// ------------------------------------------------------------------------- definition
inline Doubles plain_scores(ScoreFunction function, const Doubles& x) {
    Doubles s(x.size());
    const double largest = *std::max_element(x.begin(), x.end());
    double total = 0.0;
    for (double logit : x) total += std::exp(logit - largest);
    for (std::size_t e = 0; e < x.size(); ++e)
        s[e] = function == ScoreFunction::softmax ? std::exp(x[e] - largest) / total
               : function == ScoreFunction::sigmoid
                   ? 1.0 / (1.0 + std::exp(-x[e]))
                   : std::sqrt(std::log1p(std::exp(x[e])));
    return s;
}

/// Best first; equal keys: the lower index.
inline std::vector<int> plain_top_k(const Doubles& keys, int k) {
    std::vector<int> order(keys.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return keys[a] > keys[b]; });
    order.resize(k);
    return order;
}

inline std::vector<int> plain_choice(const RoutingProblem& p, const Doubles& x) {
    const RoutingRule& rule = p.rule;
    const bool post = rule.function == ScoreFunction::softmax && !rule.pre_softmax;
    Doubles keys = post ? x : plain_scores(rule.function, x);
    if (!post && !p.expert_bias.empty())
        for (int e = 0; e < p.E(); ++e) keys[e] += double(p.expert_bias[e]);
    if (rule.num_groups > 0) {
        const int size = p.E() / rule.num_groups;
        Doubles group_scores;
        for (int g = 0; g < rule.num_groups; ++g) {
            const Doubles group(keys.begin() + g * size, keys.begin() + (g + 1) * size);
            double score = 0.0;
            for (int e : plain_top_k(group, rule.group_score_topk)) score += group[e];
            group_scores.push_back(score);
        }
        const auto open = plain_top_k(group_scores, rule.group_topk);
        for (int e = 0; e < p.E(); ++e)
            if (std::count(open.begin(), open.end(), e / size) == 0) keys[e] = -INFINITY;
    }
    return plain_top_k(keys, p.K());
}

inline Doubles plain_weights(const RoutingRule& rule, const Doubles& x,
                             const std::vector<int>& ids) {
    Doubles weights;
    if (rule.function == ScoreFunction::softmax && !rule.pre_softmax) {
        for (int e : ids) weights.push_back(x[e]);
        weights = plain_scores(ScoreFunction::softmax, weights);
    } else {
        const Doubles s = plain_scores(rule.function, x);
        for (int e : ids) weights.push_back(s[e]);
    }
    if (rule.function != ScoreFunction::softmax && rule.topk > 1 && rule.norm_topk_prob) {
        const double total = std::accumulate(weights.begin(), weights.end(), 1e-20);
        for (double& weight : weights) weight /= total;
    }
    for (double& weight : weights) weight *= double(rule.scaling_factor);
    return weights;
}

/// The scores of the losses.
inline Doubles plain_loss_scores(const RoutingRule& rule, const Doubles& x) {
    Doubles s = plain_scores(rule.function, x);
    const double total = std::accumulate(s.begin(), s.end(), 1e-20);
    if (rule.function != ScoreFunction::softmax)
        for (double& score : s) score /= total;
    return s;
}

inline double plain_log_sum_exp(const Doubles& x) {
    const double largest = *std::max_element(x.begin(), x.end());
    double total = 0.0;
    for (double logit : x) total += std::exp(logit - largest);
    return largest + std::log(total);
}

// ------------------------------------------------------------------------- the device
template <typename T>
Tensor on_device(const std::vector<T>& values, Shape shape) {
    gpu::register_device_memory();
    return transfer(Tensor::from(std::move(shape), values),
                    {MemorySpace::device, dtype_of<T>});
}

inline std::vector<int> ints_of(const Tensor& tensor) {
    const Tensor host = transfer(tensor, {MemorySpace::host, DType::i32});
    return {host.data<int>(), host.data<int>() + host.numel()};
}

/// 0xFF in every byte: NaN, or -1.
inline void poison(Tensor& tensor) {
    if (tensor.numel() == 0) return;
    gpu::check(cudaMemset(tensor.view().bytes, 0xff, tensor.size_bytes()), "cudaMemset");
}

inline optimized::RoutingOperands operands_of(const RoutingProblem& p) {
    optimized::RoutingOperands operands;
    operands.logits = on_device(p.logits, {p.T(), p.E()});
    if (!p.expert_bias.empty()) operands.expert_bias = on_device(p.expert_bias, {p.E()});
    if (!p.padding_mask.empty())
        operands.padding_mask = on_device(p.padding_mask, {p.T()});
    return operands;
}

inline optimized::RoutedTokens poisoned_buffers(const RoutingProblem& p) {
    gpu::register_device_memory();
    auto routed = optimized::make_routed_tokens(p.rule, p.T(), p.populations);
    poison(routed.weights);
    poison(routed.ids);
    poison(routed.counters);
    if (p.populations == 0) return routed;
    poison(routed.losses.partial_scores);
    poison(routed.losses.partial_squares);
    return routed;
}

/// The sums of partial sums (populations * blocks, width) over the blocks, as
/// (populations, width).
inline Doubles sums_of_blocks(const std::vector<float>& partials,
                              std::int64_t populations, std::int64_t width) {
    Doubles sums(populations * width, 0.0);
    const std::int64_t of_population = std::int64_t(partials.size()) / populations;
    for (std::int64_t i = 0; i < std::int64_t(partials.size()); ++i)
        sums[i / of_population * width + i % width] += double(partials[i]);
    return sums;
}

/// Routes with buffers that held NaN.
inline optimized::RoutedTokens route(const RoutingProblem& p) {
    auto routed = poisoned_buffers(p);
    optimized::route(routed, operands_of(p), p.rule);
    return routed;
}

/// Every score function with everything that a config may combine with it, for E experts
/// of which K are chosen.
inline std::vector<RoutingProblem> all_features(std::int64_t T, int E, int K,
                                                int num_groups, int group_topk) {
    std::vector<RoutingProblem> problems;
    for (const bool groups : {false, true}) {
        if (groups && num_groups == 0) continue;
        RoutingRule rule;
        rule.num_experts = E;
        rule.topk = K;
        if (groups) {
            rule.num_groups = num_groups;
            rule.group_topk = group_topk;
            rule.group_score_topk = K / group_topk;
        }
        problems.push_back(make_problem(rule, T));
        rule.pre_softmax = true;
        rule.scaling_factor = 2.5f;
        problems.push_back(make_problem(rule, T));
        for (const auto function :
             {ScoreFunction::sigmoid, ScoreFunction::sqrtsoftplus}) {
            const bool sigmoid = function == ScoreFunction::sigmoid;
            RoutingRule ours = rule;
            ours.function = function;
            ours.norm_topk_prob = false;
            if (groups) ours.group_score_topk = sigmoid ? 1 : E / num_groups;
            problems.push_back(make_problem(ours, T));
            if (sigmoid) problems.back().expert_bias = random_multiples(E, 3, 64.0);
        }
        for (const auto function : {ScoreFunction::sigmoid, ScoreFunction::sqrtsoftplus})
            for (const bool bias : {false, true}) {
                rule.function = function;
                rule.scaling_factor = bias ? -1.5f : 1.0f;
                problems.push_back(make_problem(rule, T));
                if (bias) problems.back().expert_bias = random_multiples(E, 3, 64.0);
            }
    }
    return problems;
}

}  // namespace moe::test
