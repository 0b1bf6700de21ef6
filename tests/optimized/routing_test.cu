// routing_test.cu: the fused routing against loops in fp64. Ids are equal, ties included;
// weights are within 1e-6.

#include <tuple>

#include "gpu/counters.h"
#include "tests/conformance/modes.h"
#include "tests/optimized/routing_support.h"

namespace moe::test {
namespace {

using optimized::RoutedTokens;

/// Holds ids, weights and counts to the definition.
void expect_routed(const RoutingProblem& p, const RoutedTokens& routed) {
    const auto ids = ints_of(routed.ids);
    const auto weights = gpu::to_host<float>(routed.weights);
    std::vector<int> counts(p.E(), 0);
    for (std::int64_t t = 0; t < p.T(); ++t) {
        const Doubles x = p.row(t);
        const auto want = plain_choice(p, x);
        const Doubles want_weights = plain_weights(p.rule, x, want);
        for (int k = 0; k < p.K(); ++k) {
            ASSERT_EQ(ids[t * p.K() + k], want[k]) << p << "; token " << t << ", " << k;
            ASSERT_NEAR(weights[t * p.K() + k], want_weights[k], 1e-6)
                << p << "; token " << t << ", " << k;
            ++counts[want[k]];
        }
    }
    EXPECT_EQ(ints_of(routed.tokens_per_expert), counts) << p;
    EXPECT_EQ(ints_of(routed.non_finite), std::vector<int>{0}) << p;
}

void expect_routed(const RoutingProblem& p) {
    expect_routed(p, route(p));
}

TEST(OptimizedRouting, FollowsTheDefinitionAtEveryWidth) {
    struct Shape {
        std::int64_t T;
        int E, K, num_groups, group_topk;
    };
    for (const Shape& s : {Shape{0, 4, 2, 2, 1},
                           {1, 1, 1, 1, 1},
                           {257, 2, 1, 2, 1},
                           {9, 3, 3, 0, 0},
                           {257, 12, 5, 4, 2},
                           {21, 33, 8, 11, 4},
                           {9, 64, 3, 64, 3},
                           {9, 128, 8, 8, 4},
                           {9, 255, 3, 5, 3},
                           {17, 256, 8, 8, 4},
                           {5, 512, 8, 4, 2},
                           {5, 896, 8, 32, 7},
                           {3, 1024, 32, 128, 9},
                           {5, 32, 32, 4, 4},
                           {5, 31, 1, 0, 0}})
        for (const RoutingProblem& p :
             all_features(s.T, s.E, s.K, s.num_groups, s.group_topk))
            expect_routed(p);
}

TEST(OptimizedRouting, TiesGoToTheLowerIndex) {
    for (const int E : {6, 40, 96}) {
        for (RoutingProblem p : all_features(33, E, 4, E / 2, 2)) {
            // Few values, and each lane has its first one again in its next slots. None
            // is negative: σ(1) + σ(-1) = σ(0) + σ(0) is a tie of groups but for rounding
            p.logits = random_multiples(p.T() * E, 5, 1.0);
            for (float& x : p.logits) x = std::abs(x);
            for (std::int64_t t = 0; t < p.T(); ++t)
                for (int e = 0; e < E; ++e)
                    p.logits[t * E + e] = t < 3 ? 0.5f : p.logits[t * E + e % 32];
            if (!p.expert_bias.empty()) p.expert_bias.assign(E, 0.25f);
            expect_routed(p);
        }
    }
}

TEST(OptimizedRouting, MinusZeroTiesWithZero) {
    RoutingRule rule;
    rule.num_experts = 5;
    rule.topk = 3;
    RoutingProblem p{rule, 1};
    p.logits = {-1.0f, -0.0f, 0.0f, -0.0f, -2.0f};
    expect_routed(p);
}

TEST(OptimizedRouting, ScoresThatUnderflowTie) {
    RoutingRule rule;
    rule.num_experts = 4;
    rule.topk = 3;
    rule.pre_softmax = true;
    RoutingProblem p{rule, 1};
    p.logits = {-200.0f, -150.0f, 0.0f, -140.0f};  // e⁻¹⁴⁰ is 0 in fp32
    EXPECT_EQ(ints_of(route(p).ids), (std::vector<int>{2, 0, 1}));
    rule.pre_softmax = false;
    p.rule = rule;
    EXPECT_EQ(ints_of(route(p).ids), (std::vector<int>{2, 3, 1}));
}

TEST(OptimizedRouting, TheFirstTokenThatIsNotFiniteIsTold) {
    RoutingRule rule;
    rule.num_experts = 40;
    rule.topk = 4;
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY})
        for (RoutingProblem p : all_features(20, 40, 4, 8, 2)) {
            p.populations = 1;
            p.logits[11 * 40 + 35] = p.logits[18 * 40] = bad;
            const auto routed = route(p);
            EXPECT_EQ(ints_of(routed.non_finite), std::vector<int>{20 - 11});
            // Whatever the weights, nobody reads past the experts
            const auto ids = ints_of(routed.ids);
            for (std::int64_t t = 0; t < 20; ++t) {
                std::vector<int> row(ids.begin() + t * 4, ids.begin() + t * 4 + 4);
                std::sort(row.begin(), row.end());
                EXPECT_GE(row[0], 0);
                EXPECT_LT(row[3], 40);
                EXPECT_EQ(std::unique(row.begin(), row.end()), row.end()) << p;
            }
            try {
                optimized::require_finite(routed, operands_of(p).logits);
                ADD_FAILURE() << p;
            } catch (const InputError& error) {
                EXPECT_EQ(
                    std::string(error.what()).rfind("logits[token 11, expert 35] = ", 0),
                    0u)
                    << error.what();
            }
        }
    const RoutingProblem good = make_problem(rule, 20);
    optimized::require_finite(route(good), operands_of(good).logits);
}

/// With a loss: P populations, and a mask if asked for.
RoutingProblem with_losses(RoutingProblem p, std::int64_t populations, bool mask) {
    p.populations = populations;
    if (!mask) return p;
    p.padding_mask.assign(p.T(), 0);
    for (std::int64_t t = 0; t < p.T(); ++t) p.padding_mask[t] = t % 5 == 1 || t == 2;
    return p;
}

void expect_statistics(const RoutingProblem& p, const RoutedTokens& routed) {
    const int E = p.E();
    const std::int64_t P = p.populations;
    const auto& losses = routed.losses;
    std::vector<int> assignments(P * E, 0);
    Doubles sums(P * E, 0.0), squares(P, 0.0);
    int num_valid = 0;
    for (std::int64_t t = 0; t < p.T(); ++t) {
        if (p.is_padding(t)) continue;
        ++num_valid;
        const Doubles s = plain_loss_scores(p.rule, p.row(t));
        for (int e : plain_top_k(s, p.K())) ++assignments[t % P * E + e];
        for (int e = 0; e < E; ++e) sums[t % P * E + e] += s[e];
        squares[t % P] += std::pow(plain_log_sum_exp(p.row(t)), 2);
    }
    EXPECT_EQ(ints_of(losses.num_valid), std::vector<int>{num_valid}) << p;
    EXPECT_EQ(ints_of(losses.assignments), assignments) << p;
    EXPECT_EQ(ints_of(losses.blocks_done), std::vector<int>{0}) << p;
    const auto got_sums =
        sums_of_blocks(gpu::to_host<float>(losses.partial_scores), P, E);
    const auto got_squares =
        sums_of_blocks(gpu::to_host<float>(losses.partial_squares), P, 1);
    for (std::int64_t i = 0; i < P * E; ++i)
        ASSERT_NEAR(got_sums[i], sums[i], 1e-6 * std::max(1.0, sums[i])) << p << " " << i;
    for (std::int64_t b = 0; b < P; ++b)
        ASSERT_NEAR(got_squares[b], squares[b], 1e-6 * std::max(1.0, squares[b])) << p;
}

TEST(OptimizedRouting, SumsWhatTheLossesNeed) {
    const auto check = [](const std::vector<RoutingProblem>& problems, std::int64_t P,
                          bool mask) {
        for (const RoutingProblem& problem : problems) {
            const RoutingProblem p = with_losses(problem, P, mask);
            expect_statistics(p, route(p));
        }
    };
    for (const bool mask : {false, true})
        for (const std::int64_t P : {1, 3}) {
            check(all_features(0, 4, 2, 0, 0), P, mask);
            check(all_features(30, 1, 1, 0, 0), P, mask);
            check(all_features(120, 31, 1, 0, 0), P, mask);
            check(all_features(18, 40, 8, 8, 4), P, mask);
        }
    check(all_features(9, 256, 8, 8, 4), 3, true);
    check(all_features(256, 2, 1, 0, 0), 1, true);  // 32 blocks
    check(all_features(4, 1024, 8, 0, 0), 1, true);
}

TEST(OptimizedRouting, BlocksRouteSeveralRounds) {
    RoutingRule rule;
    rule.num_experts = 2;
    rule.topk = 1;
    rule.function = ScoreFunction::sigmoid;
    const RoutingProblem p = with_losses(make_problem(rule, 16384 + 2), 2, true);
    const auto routed = route(p);
    expect_routed(p, routed);
    expect_statistics(p, routed);
}

TEST(OptimizedRouting, RoutesTheSameWithLosses) {
    for (const auto& p : all_features(42, 96, 4, 8, 2))
        expect_routed(with_losses(p, 2, true));
}

TEST(OptimizedRouting, AddsValidTokensToTheCountsOfTheBias) {
    for (const bool mask : {false, true}) {
        const RoutingProblem p = with_losses(all_features(50, 40, 4, 0, 0)[3], 0, mask);
        std::vector<std::int64_t> want(40, 5);
        for (std::int64_t t = 0; t < p.T(); ++t)
            if (!p.is_padding(t))
                for (int e : plain_choice(p, p.row(t))) ++want[e];
        auto operands = operands_of(p);
        operands.local_tokens_per_expert =
            on_device(std::vector<std::int64_t>(40, 5), {40});
        auto routed = poisoned_buffers(p);
        optimized::route(routed, operands, p.rule);
        EXPECT_EQ(gpu::to_host<std::int64_t>(operands.local_tokens_per_expert), want);
    }
}

TEST(OptimizedRouting, TheSameBitsInEveryMode) {
    const RoutingProblem p = with_losses(all_features(77, 70, 8, 7, 3).back(), 7, true);
    const auto bits_of = [](const RoutedTokens& routed) {
        return std::tuple{gpu::to_host<float>(routed.weights),
                          gpu::to_host<float>(routed.losses.partial_scores),
                          gpu::to_host<float>(routed.losses.partial_squares)};
    };
    const auto first = bits_of(route(p));
    in_every_mode([&] {
        const auto routed = route(p);
        EXPECT_TRUE(bits_of(routed) == first);
        expect_routed(p, routed);
        expect_statistics(p, routed);
    });
}

TEST(OptimizedRouting, OneLaunchAndNoWait) {
    for (const std::int64_t P : {0, 1}) {
        const RoutingProblem p = with_losses(all_features(9, 12, 2, 0, 0)[1], P, true);
        auto routed = poisoned_buffers(p);
        const auto operands = operands_of(p);
        const gpu::Counters before = gpu::counters();
        optimized::route(routed, operands, p.rule);
        const gpu::Counters after = gpu::counters();
        EXPECT_EQ(after.launches - before.launches, 1);
        EXPECT_EQ(after.host_waits, before.host_waits);
        EXPECT_EQ(after.bytes, before.bytes);
    }
}

MoEConfig config_of(std::int64_t E, std::int64_t K) {
    MoEConfig config;
    config.hidden_size = 8;
    config.num_moe_experts = E;
    config.moe_router_topk = K;
    config.add_bias_linear = false;
    return config;
}

std::string refusal(MoEConfig config) {
    config.finalize();
    try {
        optimized::make_routing_rule(config);
    } catch (const InputError& error) {
        return error.what();
    }
    return "";
}

TEST(OptimizedRouting, RefusesByNameWhatItDoesNotDo) {
    EXPECT_EQ(refusal(config_of(1024, 32)), "");
    EXPECT_EQ(refusal(config_of(1025, 32)),
              "num_moe_experts = 1025: at most 1024 in optimized_gpu; naive_gpu takes "
              "more");
    EXPECT_EQ(refusal(config_of(64, 33)),
              "moe_router_topk = 33: at most 32 in optimized_gpu; naive_gpu takes more");
}

TEST(OptimizedRouting, TheRuleIsTheConfigs) {
    MoEConfig config = config_of(16, 4);
    config.moe_router_score_function = "sqrtsoftplus";
    config.moe_router_num_groups = 8;
    config.moe_router_topk_scaling_factor = 2.5;
    config.finalize();
    RoutingRule rule = optimized::make_routing_rule(config);
    EXPECT_EQ(rule.num_experts, 16);
    EXPECT_EQ(rule.topk, 4);
    EXPECT_EQ(rule.function, ScoreFunction::sqrtsoftplus);
    EXPECT_EQ(rule.num_groups, 0);  // groups alone limit nothing
    EXPECT_EQ(rule.scaling_factor, 2.5f);
    config.moe_router_score_function = "softmax";
    config.moe_router_pre_softmax = true;
    config.moe_router_group_topk = 3;
    config.moe_router_topk_scaling_factor = 0.0;  // 0 is "none"
    rule = optimized::make_routing_rule(config);
    EXPECT_EQ(rule.function, ScoreFunction::softmax);
    EXPECT_TRUE(rule.pre_softmax);
    EXPECT_EQ(rule.num_groups, 8);
    EXPECT_EQ(rule.group_topk, 3);
    EXPECT_EQ(rule.group_score_topk, 1);  // ⌊4 / 3⌋
    EXPECT_TRUE(rule.norm_topk_prob);
    EXPECT_EQ(rule.scaling_factor, 1.0f);
    config.moe_router_group_score_topk = 2;
    config.moe_router_norm_topk_prob = false;
    rule = optimized::make_routing_rule(config);
    EXPECT_EQ(rule.group_score_topk, 2);
    EXPECT_FALSE(rule.norm_topk_prob);

    EXPECT_EQ(optimized::count_populations(config, 6), 0);
    config.moe_z_loss_coeff = 1e-3;
    EXPECT_EQ(optimized::count_populations(config, 6), 1);
    config.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss"};
    config.moe_aux_loss_coeff = {0.1, 0.0};
    EXPECT_EQ(optimized::count_populations(config, 6), 1);
    config.moe_aux_loss_coeff = {0.0, 0.1};
    EXPECT_EQ(optimized::count_populations(config, 6), 6);
}

}  // namespace
}  // namespace moe::test
