/// @file
/// The losses written out in fp64, from what they sum up.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "core/components.h"
#include "optimized_gpu/load_balancing.h"
#include "tests/optimized/routing_support.h"

namespace moe::test {

using optimized::AuxiliaryLosses;
using optimized::LossRule;

/// Statistics of the losses, on the host.
struct PlainStatistics {
    std::int64_t populations = 1;
    std::vector<int> assignments;     // (P, E)
    Doubles score_sums, square_sums;  // (P, E), (P)
    int num_valid = 0;
    std::vector<float> partial_scores, partial_squares;  // of blocks, see routing.h
};

/// Some tokens in each population, and sums of `blocks` for it; with three the last has
/// none.
inline PlainStatistics make_statistics(const LossRule& rule, std::int64_t populations,
                                       int tokens, std::uint64_t seed,
                                       std::int64_t blocks = 3) {
    const int E = rule.num_experts;
    PlainStatistics result;
    result.populations = populations;
    result.assignments.assign(populations * E, 0);
    for (float x : random_multiples(populations * blocks * E, seed))
        result.partial_scores.push_back(std::abs(x));
    for (float x : random_multiples(populations * blocks, seed + 1))
        result.partial_squares.push_back(7.0f + x);
    for (std::int64_t b = 0; b < populations; ++b)
        for (int t = 0; t < (b == 2 ? 0 : tokens + b); ++t) {
            ++result.num_valid;
            for (int k = 0; k < rule.topk; ++k)  // most experts, a few often
                ++result.assignments[b * E + (t * t + k) % E];
        }
    if (populations == 3 || tokens == 0) {
        const std::int64_t first = tokens == 0 ? 0 : 2;
        std::fill(result.partial_scores.begin() + first * blocks * E,
                  result.partial_scores.end(), 0.0f);
        std::fill(result.partial_squares.begin() + first * blocks,
                  result.partial_squares.end(), 0.0f);
    }
    result.score_sums = sums_of_blocks(result.partial_scores, populations, E);
    result.square_sums = sums_of_blocks(result.partial_squares, populations, 1);
    return result;
}

inline optimized::LossStatistics upload(const PlainStatistics& from) {
    const std::int64_t P = from.populations, E = std::int64_t(from.score_sums.size()) / P;
    optimized::LossStatistics statistics;
    statistics.assignments = on_device(from.assignments, {P, E});
    const auto blocks = std::int64_t(from.partial_squares.size());
    statistics.partial_scores = on_device(from.partial_scores, {blocks, E});
    statistics.partial_squares = on_device(from.partial_squares, {blocks});
    statistics.blocks_done = on_device(std::vector<int>{0}, {1});
    statistics.num_valid = on_device(std::vector<int>{from.num_valid}, {1});
    return statistics;
}

/// What is known of the micro-batches so far.
struct PlainCounts {
    Doubles tokens_per_expert;
    double micro_batches = 0.0;
};

struct PlainLosses {
    std::map<std::string, double> values;
    Doubles dscores;  // (P, E)
    double z_scale = 0.0;
};

/// E / (K N) n_e / N, by which each score counts.
inline double score_factor(const LossRule& rule, double num_tokens, double count) {
    if (num_tokens == 0.0) return 0.0;
    return rule.num_experts * (count / (rule.topk * num_tokens)) / num_tokens;
}

inline PlainLosses plain_losses(const LossRule& rule, const PlainStatistics& of,
                                PlainCounts& global) {
    const std::int64_t E = rule.num_experts, P = of.populations;
    const double N = of.num_valid, attach = rule.per_token ? N : 1.0;
    PlainLosses result;
    result.dscores.assign(P * E, 0.0);
    const auto add = [&](const std::string& name, double coeff, auto factor) {
        if (coeff == 0.0) return;
        double& value = result.values[name] = 0.0;
        for (std::int64_t i = 0; i < P * E; ++i) {
            value += factor(i) * of.score_sums[i];
            result.dscores[i] += coeff * attach * factor(i);
        }
    };
    Doubles counts(E, 0.0);
    for (std::int64_t i = 0; i < P * E; ++i) counts[i % E] += of.assignments[i];
    add("load_balancing_loss", rule.aux_loss_coeff,
        [&](std::int64_t i) { return score_factor(rule, N, counts[i % E]); });
    const double B = rule.num_sequences;
    add("seq_load_balancing_loss", rule.seq_aux_loss_coeff,
        [&](std::int64_t i) { return score_factor(rule, N / B, of.assignments[i]) / B; });
    if (rule.global_aux_loss_coeff != 0.0) {
        global.tokens_per_expert.resize(E, 0.0);
        for (std::int64_t e = 0; e < E; ++e) global.tokens_per_expert[e] += counts[e];
        ++global.micro_batches;
    }
    add("global_load_balancing_loss", rule.global_aux_loss_coeff, [&](std::int64_t i) {
        return score_factor(rule, N,
                            global.tokens_per_expert[i % E] / global.micro_batches);
    });
    if (!rule.has_z_loss) return result;
    double squares = 0.0;
    for (double square : of.square_sums) squares += square;
    result.values["z_loss"] = N == 0.0 ? 0.0 : squares / N;
    result.z_scale = N == 0.0 ? 0.0 : rule.z_loss_coeff * attach / N;
    return result;
}

inline Tensor zero_counts(const LossRule& rule) {
    return on_device(Doubles(rule.num_experts + 1, 0.0), {rule.num_experts + 1});
}

inline Losses by_name(const AuxiliaryLosses& losses) {
    Losses result;
    if (losses.names.empty()) return result;
    const Doubles values = gpu::to_host<double>(losses.values);
    EXPECT_EQ(values.size(), losses.names.size());
    for (std::size_t i = 0; i < values.size(); ++i) result[losses.names[i]] = values[i];
    return result;
}

inline void expect_losses(const AuxiliaryLosses& got, const PlainLosses& want,
                          const LossRule& rule) {
    const Losses values = by_name(got);
    ASSERT_EQ(values.size(), want.values.size());
    for (const auto& [name, value] : want.values) {
        ASSERT_EQ(values.count(name), 1u) << name;
        EXPECT_NEAR(values.at(name), value, 1e-13 * std::abs(value)) << name;
    }
    ASSERT_EQ(got.dscores.defined(), rule.has_balancing());
    if (got.dscores.defined()) {
        const auto dscores = gpu::to_host<float>(got.dscores);
        ASSERT_EQ(dscores.size(), want.dscores.size());
        for (std::size_t i = 0; i < dscores.size(); ++i)
            ASSERT_NEAR(dscores[i], want.dscores[i], 1e-7 * std::abs(want.dscores[i]))
                << "dscores[" << i << "]";
    }
    ASSERT_EQ(got.z_scale.defined(), rule.has_z_loss);
    if (!got.z_scale.defined()) return;
    EXPECT_NEAR(gpu::to_host<float>(got.z_scale)[0], want.z_scale, 1e-7 * want.z_scale);
}

/// The losses whose bits are set, in the order aux, seq_aux, global_aux, z.
inline LossRule make_rule(int E, int K, int B, unsigned losses, bool per_token = false) {
    LossRule rule;
    rule.num_experts = E;
    rule.topk = K;
    rule.num_sequences = B;
    if (losses & 1u) rule.aux_loss_coeff = 0.3;
    if (losses & 2u) rule.seq_aux_loss_coeff = 0.7;
    if (losses & 4u) rule.global_aux_loss_coeff = 0.11;
    rule.has_z_loss = (losses & 8u) != 0;
    if (rule.has_z_loss) rule.z_loss_coeff = 0.013;
    rule.per_token = per_token;
    return rule;
}

}  // namespace moe::test
