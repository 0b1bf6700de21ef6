// routing_backward_test.cu: the fused gradient of the logits against finite differences
// of the definition in fp64.

#include "gpu/counters.h"
#include "tests/conformance/modes.h"
#include "tests/optimized/routing_support.h"

namespace moe::test {
namespace {

/// Gradients from above: of the weights, and of what the losses sum up.
struct Above {
    std::vector<float> dweights, dscores;  // (T, K); (P, E), or empty
    float z_scale = 0.0f, scale = 1.0f;
    bool has_z = false;
};

Above make_above(const RoutingProblem& p, bool scores, bool z) {
    Above above;
    above.dweights = random_multiples(p.T() * p.K(), 21);
    if (scores) above.dscores = random_multiples(p.populations * p.E(), 22);
    above.has_z = z;
    if (z) above.z_scale = 0.125f;
    if (scores || z) above.scale = 0.5f;
    return above;
}

/// What the gradient is of, for one token with these choices.
double objective(const RoutingProblem& p, const Above& above, std::int64_t t,
                 const Doubles& x, const std::vector<int>& ids) {
    double sum = 0.0;
    const Doubles weights = plain_weights(p.rule, x, ids);
    for (int k = 0; k < p.K(); ++k) sum += above.dweights[t * p.K() + k] * weights[k];
    if (p.is_padding(t)) return sum;
    if (!above.dscores.empty()) {
        const Doubles s = plain_loss_scores(p.rule, x);
        for (int e = 0; e < p.E(); ++e)
            sum += above.scale * above.dscores[t % p.populations * p.E() + e] * s[e];
    }
    return sum + above.scale * above.z_scale * std::pow(plain_log_sum_exp(x), 2);
}

std::vector<float> gradient(const RoutingProblem& p, const Above& above,
                            const Tensor& ids) {
    optimized::RoutingGradientOperands operands;
    operands.dweights = on_device(above.dweights, {p.T(), p.K()});
    operands.logits = on_device(p.logits, {p.T(), p.E()});
    operands.ids = ids;
    if (!p.padding_mask.empty())
        operands.padding_mask = on_device(p.padding_mask, {p.T()});
    if (!above.dscores.empty())
        operands.losses.dscores = on_device(above.dscores, {p.populations, p.E()});
    if (above.has_z)
        operands.losses.z_scale = on_device(std::vector<float>{above.z_scale}, {1});
    if (above.scale != 1.0f)
        operands.losses.main_loss_backward_scale =
            on_device(std::vector<float>{above.scale}, {1});
    Tensor dlogits = gpu::device_empty<float>({p.T(), p.E()});
    poison(dlogits);
    const std::int64_t before = gpu::counters().launches;
    optimized::route_backward(dlogits, operands, p.rule);
    EXPECT_EQ(gpu::counters().launches - before, p.T() > 0 ? 1 : 0);
    return gpu::to_host<float>(dlogits);
}

void expect_gradient(const RoutingProblem& p, const Above& above) {
    constexpr double kStep = 1e-5;
    const auto got = gradient(p, above, route(p).ids);
    for (std::int64_t t = 0; t < p.T(); ++t) {
        Doubles x = p.row(t);
        const auto ids = plain_choice(p, x);
        for (int e = 0; e < p.E(); ++e) {
            const double before = x[e];
            x[e] = before + kStep;
            const double up = objective(p, above, t, x, ids);
            x[e] = before - kStep;
            const double down = objective(p, above, t, x, ids);
            x[e] = before;
            ASSERT_NEAR(got[t * p.E() + e], (up - down) / (2.0 * kStep), 2e-6)
                << p << "; token " << t << ", expert " << e;
        }
    }
}

/// Every fifth token, and the third, is padding.
RoutingProblem padded(RoutingProblem p) {
    p.padding_mask.assign(p.T(), 0);
    for (std::int64_t t = 0; t < p.T(); ++t) p.padding_mask[t] = t % 5 == 1 || t == 2;
    return p;
}

TEST(OptimizedRoutingBackward, IsTheSlopeOfTheWeights) {
    struct Shape {
        std::int64_t T;
        int E, K, num_groups, group_topk;
    };
    for (const Shape& s : {Shape{0, 4, 2, 2, 1},
                           {1, 1, 1, 0, 0},
                           {9, 2, 1, 0, 0},
                           {9, 3, 3, 0, 0},
                           {33, 12, 5, 4, 2},
                           {9, 33, 8, 11, 4},
                           {3, 128, 8, 0, 0},
                           {2, 255, 3, 0, 0},
                           {2, 512, 8, 0, 0},
                           {2, 1024, 32, 0, 0},
                           {3, 32, 32, 0, 0}})
        for (const RoutingProblem& p :
             all_features(s.T, s.E, s.K, s.num_groups, s.group_topk))
            expect_gradient(p, make_above(p, false, false));
}

TEST(OptimizedRoutingBackward, AndOfTheLosses) {
    for (const auto& [E, K] : {std::pair{1, 1}, {3, 1}, {12, 4}, {40, 8}, {130, 8}})
        for (RoutingProblem p : all_features(E > 100 ? 3 : 12, E, K, 0, 0))
            for (const std::int64_t P : {1, 3}) {
                p.populations = P;
                expect_gradient(p, make_above(p, true, true));
                expect_gradient(padded(p), make_above(p, true, true));
                if (E != 12) continue;
                expect_gradient(padded(p), make_above(p, true, false));
                expect_gradient(padded(p), make_above(p, false, true));
            }
}

TEST(OptimizedRoutingBackward, NoSlopeWhereSoftplusUnderflows) {
    RoutingRule rule;
    rule.num_experts = 3;
    rule.topk = 2;
    rule.function = ScoreFunction::sqrtsoftplus;
    RoutingProblem p{rule, 1, 1};
    p.logits = {-200.0f, 1.0f, -120.0f};
    Above above = make_above(p, true, false);
    for (const float slope : gradient(p, above, route(p).ids))
        EXPECT_TRUE(std::isfinite(slope));
}

TEST(OptimizedRoutingBackward, TheSameBitsInEveryMode) {
    RoutingProblem p = padded(all_features(21, 70, 8, 7, 3).back());
    p.populations = 3;
    const Above above = make_above(p, true, true);
    const auto first = gradient(p, above, route(p).ids);
    in_every_mode([&] { EXPECT_EQ(gradient(p, above, route(p).ids), first); });
}

}  // namespace
}  // namespace moe::test
