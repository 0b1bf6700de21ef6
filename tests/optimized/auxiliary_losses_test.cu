// auxiliary_losses_test.cu: from logits to losses and back, against finite differences in
// fp64.

#include "tests/optimized/load_balancing_support.h"

namespace moe::test {
namespace {

/// Statistics of logits x (T, E); `assignments` are copied from there when given, because
/// counts have no gradient.
PlainStatistics statistics_of(const RoutingProblem& p, const Doubles& x,
                              const PlainStatistics* counted) {
    const int E = p.E();
    const std::int64_t P = p.populations;
    PlainStatistics result;
    result.populations = P;
    result.assignments.assign(P * E, 0);
    result.score_sums.assign(P * E, 0.0);
    result.square_sums.assign(P, 0.0);
    for (std::int64_t t = 0; t < p.T(); ++t) {
        if (p.is_padding(t)) continue;
        ++result.num_valid;
        const Doubles row(x.begin() + t * E, x.begin() + (t + 1) * E);
        const Doubles s = plain_loss_scores(p.rule, row);
        for (int e : plain_top_k(s, p.K())) ++result.assignments[t % P * E + e];
        for (int e = 0; e < E; ++e) result.score_sums[t % P * E + e] += s[e];
        result.square_sums[t % P] += std::pow(plain_log_sum_exp(row), 2);
    }
    if (counted != nullptr) result.assignments = counted->assignments;
    return result;
}

/// All losses with their coefficients, as the gradient is of.
double objective(const LossRule& rule, const PlainStatistics& statistics) {
    PlainCounts counts;
    const auto values = plain_losses(rule, statistics, counts).values;
    const double sum =
        rule.aux_loss_coeff * values.at("load_balancing_loss") +
        rule.seq_aux_loss_coeff * values.at("seq_load_balancing_loss") +
        rule.global_aux_loss_coeff * values.at("global_load_balancing_loss") +
        rule.z_loss_coeff * values.at("z_loss");
    return rule.per_token ? statistics.num_valid * sum : sum;
}

TEST(OptimizedLosses, FromLogitsToLossesAndBack) {
    constexpr double kStep = 1e-5;
    for (const bool per_token : {false, true})
        for (RoutingProblem p : all_features(12, 7, 3, 0, 0)) {
            p.populations = 3;
            p.padding_mask = {0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0};  // b = 1: all
            const LossRule rule = make_rule(7, 3, 3, 15, per_token);
            const Doubles x(p.logits.begin(), p.logits.end());
            const PlainStatistics plain = statistics_of(p, x, nullptr);
            PlainCounts counts;
            const PlainLosses want = plain_losses(rule, plain, counts);

            const auto routed = route(p);
            Tensor global = zero_counts(rule);
            const auto losses = optimized::auxiliary_losses(routed.losses, global, rule);
            for (const auto& [name, value] : by_name(losses))
                EXPECT_NEAR(value, want.values.at(name), 2e-6 * want.values.at(name))
                    << p << " " << name;

            optimized::RoutingGradientOperands operands;
            operands.dweights = on_device(std::vector<float>(12 * 3, 0.0f), {12, 3});
            operands.logits = on_device(p.logits, {12, 7});
            operands.ids = routed.ids;
            operands.padding_mask = on_device(p.padding_mask, {12});
            operands.losses = {losses.dscores, losses.z_scale, {}};
            Tensor dlogits = gpu::device_empty<float>({12, 7});
            poison(dlogits);
            optimized::route_backward(dlogits, operands, p.rule);
            const auto got = gpu::to_host<float>(dlogits);
            for (int i = 0; i < 12 * 7; ++i) {
                Doubles up = x, down = x;
                up[i] += kStep;
                down[i] -= kStep;
                const double slope = (objective(rule, statistics_of(p, up, &plain)) -
                                      objective(rule, statistics_of(p, down, &plain))) /
                                     (2.0 * kStep);
                ASSERT_NEAR(got[i], slope, 2e-7 + 2e-6 * std::abs(slope))
                    << p << "; token " << i / 7 << ", expert " << i % 7;
            }
        }
}

TEST(OptimizedLosses, ScoresToLookAt) {
    for (const auto& [T, E] : {std::pair<std::int64_t, int>{0, 4},
                               {1, 1},
                               {257, 3},
                               {9, 70},
                               {3, 512},
                               {2, 1024}})
        for (const RoutingProblem& p : all_features(T, E, 1, 0, 0)) {
            const auto got = gpu::to_host<float>(
                optimized::compute_aux_scores(on_device(p.logits, {T, E}), p.rule));
            ASSERT_EQ(got.size(), p.logits.size());
            for (std::int64_t t = 0; t < T; ++t) {
                const Doubles want = plain_loss_scores(p.rule, p.row(t));
                for (int e = 0; e < E; ++e)
                    ASSERT_NEAR(got[t * E + e], want[e], 1e-6 * want[e])
                        << p << "; token " << t << ", expert " << e;
            }
        }
}

}  // namespace
}  // namespace moe::test
