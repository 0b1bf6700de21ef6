// unfused_routing_test.cu: routing by one kernel for each operation makes the bits of the
// fused one, which routing_test.cu holds to the definition.

#include "optimized_gpu/unfused_routing.h"

#include "gpu/counters.h"
#include "tests/conformance/modes.h"
#include "tests/optimized/routing_support.h"

namespace moe::test {
namespace {

using optimized::RoutedTokens;

optimized::RoutingOperands counting_operands(const RoutingProblem& p) {
    auto operands = operands_of(p);
    operands.local_tokens_per_expert =
        on_device(std::vector<std::int64_t>(p.E(), 5), {p.E()});
    return operands;
}

void expect_equal(const RoutingProblem& p, const RoutedTokens& got,
                  const RoutedTokens& want) {
    EXPECT_EQ(ints_of(got.ids), ints_of(want.ids)) << p;
    EXPECT_EQ(gpu::to_host<float>(got.weights), gpu::to_host<float>(want.weights)) << p;
    EXPECT_EQ(ints_of(got.counters), ints_of(want.counters)) << p;
    if (p.populations == 0) return;
    EXPECT_EQ(gpu::to_host<float>(got.losses.partial_scores),
              gpu::to_host<float>(want.losses.partial_scores))
        << p;
    EXPECT_EQ(gpu::to_host<float>(got.losses.partial_squares),
              gpu::to_host<float>(want.losses.partial_squares))
        << p;
}

void expect_as_fused(const RoutingProblem& p) {
    auto fused = poisoned_buffers(p), unfused = poisoned_buffers(p);
    const auto fused_operands = counting_operands(p), operands = counting_operands(p);
    optimized::route(fused, fused_operands, p.rule);
    optimized::route_unfused(unfused, operands, p.rule);
    expect_equal(p, unfused, fused);
    EXPECT_EQ(gpu::to_host<std::int64_t>(operands.local_tokens_per_expert),
              gpu::to_host<std::int64_t>(fused_operands.local_tokens_per_expert))
        << p;
}

/// With the statistics of P populations, and some padding.
RoutingProblem with_losses_and_padding(RoutingProblem p, std::int64_t populations) {
    p.populations = populations;
    p.padding_mask.assign(p.T(), 0);
    for (std::int64_t t = 0; t < p.T(); ++t) p.padding_mask[t] = t % 5 == 1 || t == 2;
    return p;
}

TEST(UnfusedRouting, MakesTheFusedOnesBits) {
    struct Shape {
        std::int64_t T;
        int E, K, num_groups, group_topk;
    };
    for (const Shape& s : {Shape{0, 4, 2, 2, 1},
                           {3, 1, 1, 1, 1},
                           {258, 12, 5, 4, 2},
                           {21, 33, 8, 11, 4},
                           {9, 128, 8, 8, 4},
                           {3, 1024, 32, 128, 9}})
        for (const RoutingProblem& p :
             all_features(s.T, s.E, s.K, s.num_groups, s.group_topk)) {
            expect_as_fused(p);
            expect_as_fused(with_losses_and_padding(p, 3));
        }
}

TEST(UnfusedRouting, MakesThemInSeveralRoundsOfABlock) {
    RoutingRule rule;
    rule.num_experts = 2;
    rule.topk = 1;
    rule.function = ScoreFunction::sigmoid;
    expect_as_fused(with_losses_and_padding(make_problem(rule, 16384 + 2), 2));
}

TEST(UnfusedRouting, TellsTheFirstTokenThatIsNotFinite) {
    for (RoutingProblem p : all_features(20, 40, 4, 8, 2)) {
        p.logits[11 * 40 + 35] = NAN;
        p.logits[18 * 40] = -INFINITY;
        auto routed = poisoned_buffers(p);
        const auto kept = optimized::route_unfused(routed, operands_of(p), p.rule);
        EXPECT_EQ(ints_of(routed.non_finite), std::vector<int>{20 - 11}) << p;
    }
}

TEST(UnfusedRouting, MakesThemInEveryMode) {
    const RoutingProblem p =
        with_losses_and_padding(all_features(77, 70, 8, 7, 3).back(), 7);
    in_every_mode([&] { expect_as_fused(p); });
}

TEST(UnfusedRouting, LaunchesWhatItsTableSays) {
    const auto launches = [](const RoutingProblem& p, bool counts) {
        auto routed = poisoned_buffers(p);
        const auto operands = counts ? counting_operands(p) : operands_of(p);
        const gpu::Counters before = gpu::counters();
        const auto kept = optimized::route_unfused(routed, operands, p.rule);
        EXPECT_EQ(gpu::counters().host_waits, before.host_waits);
        return gpu::counters().launches - before.launches;
    };
    const auto problems = all_features(9, 12, 2, 0, 0);
    EXPECT_EQ(launches(problems[0], false), 4);  // softmax after top-k
    EXPECT_EQ(launches(problems[1], false), 5);
    EXPECT_EQ(launches(problems[2], true), 6);
    EXPECT_EQ(launches(with_losses_and_padding(problems[0], 3), false), 9);
}

// --------------------------------------------------------------------------- backward

struct Gradients {
    std::vector<float> fused, unfused;
    std::int64_t launches;
};

Gradients gradients_of(const RoutingProblem& p, bool scores, bool z) {
    const Tensor ids = route(p).ids;
    optimized::RoutingGradientOperands operands;
    operands.dweights = on_device(random_multiples(p.T() * p.K(), 21), {p.T(), p.K()});
    operands.logits = on_device(p.logits, {p.T(), p.E()});
    operands.ids = ids;
    if (!p.padding_mask.empty())
        operands.padding_mask = on_device(p.padding_mask, {p.T()});
    if (scores)
        operands.losses.dscores = on_device(random_multiples(p.populations * p.E(), 22),
                                            {p.populations, p.E()});
    if (z) operands.losses.z_scale = on_device(std::vector<float>{0.125f}, {1});
    if (scores || z)
        operands.losses.main_loss_backward_scale =
            on_device(std::vector<float>{0.5f}, {1});
    Tensor fused = gpu::device_empty<float>({p.T(), p.E()});
    optimized::route_backward(fused, operands, p.rule);
    const gpu::Counters before = gpu::counters();
    const auto unfused = optimized::route_unfused_backward(operands, p.rule);
    EXPECT_EQ(gpu::counters().host_waits, before.host_waits);
    const std::int64_t launches = gpu::counters().launches - before.launches;
    return {gpu::to_host<float>(fused), gpu::to_host<float>(unfused.dlogits), launches};
}

void expect_gradient_as_fused(const RoutingProblem& p, bool scores, bool z) {
    const Gradients made = gradients_of(p, scores, z);
    if (!p.rule.is_pre_softmax()) {
        EXPECT_EQ(made.unfused, made.fused) << p;
        return;
    }
    ASSERT_EQ(made.unfused.size(), made.fused.size());
    for (std::size_t i = 0; i < made.fused.size(); ++i)
        ASSERT_NEAR(made.unfused[i], made.fused[i], 1e-6) << p << "; element " << i;
}

TEST(UnfusedRoutingBackward, MakesTheFusedOnesGradient) {
    for (const auto& [T, E, K, groups] : {std::tuple{0, 4, 2, 2},
                                          {3, 1, 1, 0},
                                          {33, 12, 5, 4},
                                          {9, 33, 8, 11},
                                          {9, 130, 8, 0},
                                          {3, 1024, 32, 0}})
        for (const RoutingProblem& p : all_features(T, E, K, groups, groups / 2)) {
            expect_gradient_as_fused(p, false, false);
            const RoutingProblem with_losses = with_losses_and_padding(p, 3);
            expect_gradient_as_fused(with_losses, true, true);
            expect_gradient_as_fused(with_losses, false, true);
            expect_gradient_as_fused(with_losses, true, false);
        }
}

TEST(UnfusedRoutingBackward, LaunchesOneKernelForEachOperation) {
    const auto problems = all_features(9, 12, 2, 0, 0);
    EXPECT_EQ(gradients_of(problems[0], false, false).launches, 2);
    EXPECT_EQ(gradients_of(problems[1], false, false).launches, 3);
    const RoutingProblem losses = with_losses_and_padding(problems[0], 3);
    EXPECT_EQ(gradients_of(losses, true, false).launches, 3);
    EXPECT_EQ(gradients_of(losses, true, true).launches, 4);
}

}  // namespace
}  // namespace moe::test
