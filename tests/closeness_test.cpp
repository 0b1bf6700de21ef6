// The judge itself: it must not be blind.

#include "cli/closeness.h"

#include <cmath>

#include "tests/support.h"

namespace moe::test {
namespace {

Tensor row(const std::vector<float>& values) {
    return Tensor::from<float>({1, static_cast<std::int64_t>(values.size())}, values);
}

TEST(Closeness, IsTheRelativeFrobeniusNorm) {
    const Closeness c = measure_closeness(row({3, 4.5}), row({3, 4}));
    EXPECT_NEAR(c.error, 0.1, 1e-12);
    EXPECT_TRUE(c.within(0.11));
    EXPECT_FALSE(c.within(0.09));
    EXPECT_EQ(describe_worst(c, row({3, 4.5}), row({3, 4})),
              "worst element (0, 1): got 4.5, expected 4");
}

TEST(Closeness, NeverAcceptsANaNOrInfinity) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        EXPECT_FALSE(measure_closeness(row({1, bad}), row({1, 2})).within(1e30));
        EXPECT_FALSE(measure_closeness(row({1, 2}), row({1, bad})).within(1e30));
        EXPECT_FALSE(measure_closeness(row({1, bad}), row({1, bad})).within(1e30));
    }
}

TEST(Closeness, WantsZeroExactly) {
    EXPECT_TRUE(measure_closeness(row({0, -0.0f}), row({0, 0})).within(0.0));
    EXPECT_FALSE(measure_closeness(row({0, 1e-30f}), row({0, 0})).within(1e30));
}

TEST(Closeness, WantsOneShape) {
    EXPECT_FALSE(measure_closeness(row({1, 2}), row({1, 2, 3})).within(1e30));
    EXPECT_FALSE(
        measure_closeness(row({1, 2}), Tensor::from<float>({2}, {1, 2})).within(1e30));
    const Tensor none = Tensor::zeros({0, 3}, DType::f32);
    EXPECT_TRUE(measure_closeness(none, none).within(0.0));
}

TEST(Closeness, HasTheAgreedBounds) {
    EXPECT_EQ(golden_bound(DType::f64, "expect.output", 0.5), 1e-6);
    EXPECT_EQ(golden_bound(DType::f32, "expect.output", 0.5), 2e-6);
    EXPECT_EQ(golden_bound(DType::bf16, "expect.output", 0.0), 6e-3);
    EXPECT_EQ(golden_bound(DType::bf16, "expect.grad.router.weight", 0.0), 1e-2);
    EXPECT_EQ(golden_bound(DType::bf16, "expect.output", 0.08), 0.1);
    EXPECT_EQ(tier_bound(DType::f32, false), 1e-5);
}

}  // namespace
}  // namespace moe::test
