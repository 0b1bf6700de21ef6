// The judge itself: it must not be blind.

#include "cli/compare/closeness.h"

#include <cmath>

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

Tensor row(const std::vector<double>& values) {
    return Tensor::from<double>({1, static_cast<std::int64_t>(values.size())}, values);
}

TEST(Closeness, IsTheRelativeFrobeniusNorm) {
    const Closeness c = measure_closeness(row({3, 4.5}), row({3, 4}));
    EXPECT_NEAR(c.error, 0.1, 1e-12);
    EXPECT_TRUE(c.within(0.11));
    EXPECT_FALSE(c.within(0.09));
    EXPECT_FALSE(c.within(0.0));
    // By the expectation's norm, not by that of what came out.
    EXPECT_NEAR(measure_closeness(row({30}), row({10})).error, 2.0, 1e-12);
    EXPECT_NEAR(measure_closeness(row({0, 0}), row({3, 4})).error, 1.0, 1e-12);
}

TEST(Closeness, PointsAtTheLargestDifference) {
    Tensor expected = random_tensor({5, 1, 7}, 1), got = expected.clone();
    got.data<float>()[1] += 0.125f;
    got.data<float>()[4 * 7 + 3] -= 0.5f;
    const Closeness c = measure_closeness(got, expected);
    EXPECT_EQ(c.worst, 31);
    EXPECT_EQ(c.worst_got, got.data<float>()[31]);
    EXPECT_EQ(c.worst_expected, expected.data<float>()[31]);
    const std::string text = describe_worst(c, got, expected);
    EXPECT_TRUE(text.starts_with("worst element (4, 0, 3): got ")) << text;

    EXPECT_EQ(describe_worst(measure_closeness(row({3, 4.5}), row({3, 4})), row({3, 4.5}),
                             row({3, 4})),
              "worst element (0, 1): got 4.5, expected 4");
    // However small it is.
    EXPECT_EQ(measure_closeness(row({1, 2 + 1e-12}), row({1, 2})).worst, 1);
    const Closeness equal = measure_closeness(expected, expected);
    EXPECT_EQ(equal.worst, -1);
    EXPECT_EQ(equal.error, 0.0);
}

TEST(Closeness, NeverAcceptsANaNOrInfinity) {
    for (double bad : {double(NAN), double(INFINITY), double(-INFINITY)})
        for (std::size_t place : {0, 1, 2}) {
            std::vector<double> values = {1, 2, 3};
            values[place] = bad;
            const Tensor good = row({1, 2, 3}), spoilt = row(values);
            for (const auto& [got, expected] :
                 {std::pair(spoilt, good), {good, spoilt}, {spoilt, spoilt}}) {
                const Closeness c = measure_closeness(got, expected);
                EXPECT_FALSE(c.within(1e30)) << bad;
                EXPECT_FALSE(c.within(INFINITY)) << bad;
                EXPECT_EQ(c.worst, std::int64_t(place));
                EXPECT_TRUE(describe_worst(c, got, expected)
                                .starts_with("not finite; worst element (0, "));
            }
        }
    // However large the other differences are.
    EXPECT_EQ(measure_closeness(row({1e300, NAN}), row({-1e300, 1})).worst, 1);
}

TEST(Closeness, WantsZeroExactly) {
    EXPECT_TRUE(measure_closeness(row({0, -0.0}), row({0, 0})).within(0.0));
    EXPECT_FALSE(measure_closeness(row({0, 1e-30}), row({0, 0})).within(1e30));
    const Tensor zero = Tensor::zeros({3}, DType::f32);
    EXPECT_FALSE(
        measure_closeness(Tensor::from<float>({3}, {0, 0, 1e-45f}), zero).within(1e30));
}

// Squares of such differences underflow, or overflow; the judgement must not.
TEST(Closeness, SeesTheSmallestAndTheLargestDifference) {
    EXPECT_FALSE(measure_closeness(row({0, 1e-200}), row({0, 0})).within(1e30));
    EXPECT_FALSE(measure_closeness(row({2e-200}), row({1e-200})).within(0.5));
    EXPECT_FALSE(measure_closeness(row({2e200}), row({1e200})).within(0.5));
    EXPECT_FALSE(
        measure_closeness(row({1.2e154, 1e154}), row({2e154, 1e154})).within(0.1));
}

TEST(Closeness, HasNoErrorWhereBothAreNoise) {
    const Tensor zero = Tensor::zeros({2}, DType::f64);
    const Tensor tiny = Tensor::from<double>({2}, {3e-12, -4e-12});  // norm 5e-12
    EXPECT_EQ(measure_closeness(zero, tiny, 6e-12).error, 0.0);
    EXPECT_EQ(measure_closeness(tiny, zero, 6e-12).error, 0.0);
    EXPECT_EQ(measure_closeness(zero, tiny, 4e-12).error, 1.0);
    MoEConfig config;
    config.moe_aux_loss_coeff = {0.5, 0.5};
    EXPECT_DOUBLE_EQ(noise_of("d_logits_losses", config, 100), 1e-6);
    config.calculate_per_token_loss = true;
    EXPECT_DOUBLE_EQ(noise_of("d_logits_losses", config, 100), 1e-4);
    EXPECT_EQ(noise_of("d_logits", config, 100), 0.0);
}

TEST(Closeness, WantsOneShape) {
    const auto within = [](const Tensor& got, const Tensor& expected) {
        return measure_closeness(got, expected).within(1e30);
    };
    EXPECT_FALSE(within(row({1, 2}), row({1, 2, 3})));
    EXPECT_FALSE(within(row({1, 2}), Tensor::from<double>({2}, {1, 2})));
    EXPECT_FALSE(within(row({1}), Tensor::from<double>({}, {1})));
    EXPECT_FALSE(
        within(Tensor::zeros({0, 3}, DType::f32), Tensor::zeros({3, 0}, DType::f32)));
    const Tensor none = Tensor::zeros({0, 3}, DType::f32);
    EXPECT_TRUE(measure_closeness(none, none).within(0.0));
    const Tensor wide = row({1, 2, 3}), slim = row({1, 2});
    EXPECT_EQ(describe_worst(measure_closeness(slim, wide), slim, wide),
              "shape: got (1, 2), expected (1, 3)");
}

TEST(Closeness, ComparesValuesNotTypes) {
    const Tensor bytes = Tensor::from<std::uint8_t>({3}, {0, 1, 255});
    const Tensor wide = Tensor::from<std::int64_t>({3}, {0, 1, 255});
    EXPECT_TRUE(measure_closeness(bytes, wide).within(0.0));
    const Tensor floats = random_tensor({17}, 1);
    const Tensor bf16 = transfer(floats, {MemorySpace::host, DType::bf16});
    EXPECT_TRUE(measure_closeness(bf16, floats).within(0.0));
    EXPECT_FALSE(measure_closeness(bytes, Tensor::from<std::int64_t>({3}, {0, 1, 254}))
                     .within(0.0));
}

TEST(Closeness, HasTheAgreedBounds) {
    EXPECT_EQ(golden_bound(DType::f64, "expect.output", 0.5), 1e-6);
    EXPECT_EQ(golden_bound(DType::f32, "expect.output", 0.5), 2e-6);
    EXPECT_EQ(golden_bound(DType::bf16, "expect.output", 0.0), 6e-3);
    EXPECT_EQ(golden_bound(DType::bf16, "expect.grad.router.weight", 0.0), 1e-2);
    EXPECT_EQ(golden_bound(DType::bf16, "expect.output", 0.08), 0.1);
    EXPECT_EQ(tier_bound(DType::f64, true), 1e-12);
    EXPECT_EQ(tier_bound(DType::f32, false), 1e-5);
    EXPECT_EQ(tier_bound(DType::bf16, false), 6e-3);
    EXPECT_EQ(tier_bound(DType::bf16, true), 1e-2);
}

}  // namespace
}  // namespace moe::test
