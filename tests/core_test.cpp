// The words every tier speaks: element types, tensors, transfer, random numbers, specs.

#include <cmath>
#include <set>

#include "core/parameters.h"
#include "core/rng.h"
#include "core/steps.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

TEST(BFloat16, RoundsToNearestEven) {
    const auto bits = [](float value) { return BFloat16(value).bits; };
    EXPECT_EQ(bits(1.0f), 0x3f80);
    EXPECT_EQ(bits(1.0f + 0x1p-8f), 0x3f80);             // half way, to even: down
    EXPECT_EQ(bits(1.0f + 0x3p-8f), 0x3f82);             // half way, to even: up
    EXPECT_EQ(bits(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);  // above half way
    EXPECT_EQ(bits(-1.0f - 0x3p-8f), 0xbf82);
    EXPECT_EQ(bits(std::bit_cast<float>(0x3fffffffu)),
              0x4000);  // carries into the exponent
    EXPECT_EQ(bits(std::bit_cast<float>(0x7f7fffffu)), 0x7f80);  // overflows to infinity
    EXPECT_EQ(bits(INFINITY), 0x7f80);
    EXPECT_TRUE(std::isnan(float(BFloat16(NAN))));
    // A NaN whose payload lies in the dropped half must not become infinity.
    EXPECT_TRUE(std::isnan(float(BFloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Transfer, RoundsFp64ToBf16Once) {
    // 1 + 2^-8 + 2^-40 lies above half way; by way of fp32 it would look like half way.
    const Tensor source =
        Tensor::from<double>({2}, {1.0 + 0x1p-8 + 0x1p-40, 1.0 + 0x3p-8 - 0x1p-40});
    const Tensor target = transfer(source, {MemorySpace::host, DType::bf16});
    EXPECT_EQ(target.data<BFloat16>()[0].bits, 0x3f81);
    EXPECT_EQ(target.data<BFloat16>()[1].bits, 0x3f81);
}

TEST(Transfer, SharesWhatFitsAndCopiesTheRest) {
    const Tensor source = random_tensor({3, 5}, 1);
    const Placement fp32{MemorySpace::host, DType::f32},
        fp64{MemorySpace::host, DType::f64};
    EXPECT_EQ(transfer(source, fp32).view().bytes, source.view().bytes);
    EXPECT_NE(transfer(source.view(), fp32).view().bytes, source.view().bytes);
    EXPECT_TRUE(BitwiseEqual(transfer(transfer(source, fp64), fp32), source));
    const Tensor integers = Tensor::from<std::int64_t>({2}, {1, INT64_MAX});
    EXPECT_TRUE(BitwiseEqual(transfer(integers, fp64), integers));
    EXPECT_FALSE(transfer(Tensor(), fp64).defined());
}

TEST(Tensor, ChecksTypesAndSizes) {
    const Tensor tensor = Tensor::zeros({2, 3}, DType::f32);
    EXPECT_THROW(tensor.data<double>(), InternalError);
    EXPECT_THROW(tensor.reshaped({5}), InternalError);
    EXPECT_EQ(tensor.reshaped({6}).view().bytes, tensor.view().bytes);
    EXPECT_NE(tensor.clone().view().bytes, tensor.view().bytes);
    EXPECT_EQ(Tensor().numel(), 0);
    EXPECT_TRUE(Tensor::empty({0, 4}, DType::f64).defined());
    EXPECT_EQ(Tensor::from<float>({}, {1.0f}).numel(), 1);
}

// Known answers of Philox4x32-10, as published with Random123.
TEST(Rng, IsPhilox) {
    using Block = std::array<std::uint32_t, 4>;
    EXPECT_EQ(philox4x32({0, 0, 0, 0}, 0, 0),
              (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, ~0u, ~0u),
              (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
    EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822,
                         0x299f31d0),
              (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Rng, HasTheRightMoments) {
    const Rng rng(1), other(1, 2);
    double sum = 0.0, squares = 0.0, product = 0.0;
    constexpr int kCount = 100'000;
    for (int i = 0; i < kCount; ++i) {
        const double x = rng.normal(i);
        sum += x, squares += x * x, product += x * other.normal(i);
        ASSERT_GT(rng.uniform(i), 0.0);
        ASSERT_LT(rng.uniform(i), 1.0);
        ASSERT_LT(rng.below(i, 7), 7u);
    }
    EXPECT_NEAR(sum / kCount, 0.0, 0.015);
    EXPECT_NEAR(squares / kCount, 1.0, 0.02);
    EXPECT_NEAR(product / kCount, 0.0, 0.015);
    EXPECT_EQ(rng.bits(5), Rng(1).bits(5));
    EXPECT_NE(rng.bits(5), other.bits(5));
}

TEST(ModuleSpec, IsReadFromText) {
    available_suppliers();
    const ComponentSpec fp32{"reference_cpu", DType::f32},
        fp64{"reference_cpu", DType::f64};
    EXPECT_EQ(ModuleSpec::parse("", fp32), ModuleSpec::uniform(fp32));
    EXPECT_EQ(ModuleSpec::parse("experts=reference_cpu:fp64,router=reference_cpu", fp32),
              (ModuleSpec{fp32, fp32, fp64, fp32}));
    const auto rejects = [&](const std::string& text,
                             const std::vector<std::string>& words) {
        return Rejects([&] { ModuleSpec::parse(text, fp32); }, words);
    };
    EXPECT_TRUE(
        rejects("gate=reference_cpu", {"spec = gate=reference_cpu", "dispatcher"}));
    EXPECT_TRUE(rejects("router", {"spec = router"}));
    EXPECT_TRUE(rejects("router=fast_gpu", {"spec router = fast_gpu", "reference_cpu"}));
    EXPECT_TRUE(rejects("router=reference_cpu:fp8", {"fp8", "fp64, fp32, bf16"}));
    EXPECT_TRUE(
        rejects("router=reference_cpu:bf16", {"reference_cpu:bf16", "fp64, fp32"}));
}

TEST(Steps, AreTwentyAndUndoOneAnother) {
    std::set<std::string> numbers, titles;
    for (int n = 1; n <= kNumSteps; ++n) {
        numbers.insert(circled(static_cast<Step>(n)));
        titles.insert(title(static_cast<Step>(n)));
        EXPECT_EQ(is_backward(static_cast<Step>(n)), n > 10);
    }
    EXPECT_EQ(numbers.size(), 20u);
    EXPECT_EQ(titles.size(), 20u);
    EXPECT_EQ(circled(Step::shared_experts), "①");
    EXPECT_EQ(circled(Step::combine), "⑩");
    EXPECT_EQ(circled(Step::shared_experts_backward), "⑳");
    const auto mirrored = [](Step forward, Step backward) {
        return static_cast<int>(forward) + static_cast<int>(backward) == 21;
    };
    EXPECT_TRUE(mirrored(Step::fc1, Step::fc1_backward));
    EXPECT_TRUE(mirrored(Step::token_dropping, Step::token_dropping_backward));
    EXPECT_TRUE(mirrored(Step::auxiliary_losses, Step::auxiliary_losses_backward));
}

TEST(Steps, CostWhatTheirFormulaSays) {
    MoEConfig c = small_config(4, 3, 2, 5);
    c.finalize();
    const StepSizes sizes{.num_tokens = 7, .num_rows = 14};
    EXPECT_EQ(step_cost(Step::gating, c, sizes, DType::f32).bytes,
              4 * (7 * 4 + 3 * 4 + 7 * 3));
    EXPECT_EQ(step_cost(Step::fc1, c, sizes, DType::f64).bytes,
              8 * (14 * 4 + 2 * 3 * 5 * 4 + 2 * 14 * 5));
    EXPECT_EQ(step_cost(Step::fc1, c, sizes, DType::f64).formula, "NH + 2EFH + 2NF");
    EXPECT_EQ(step_cost(Step::activation_backward, c, sizes, DType::f32).bytes,
              4 * 5 * 14 * 5);
    EXPECT_EQ(step_cost(Step::shared_experts, c, sizes, DType::f32).formula, "");
    c.gated_linear_unit = false;
    EXPECT_EQ(step_cost(Step::fc1_backward, c, sizes, DType::f32).bytes,
              4 * (2 * 14 * 4 + 14 * 5 + 2 * 3 * 5 * 4));
}

TEST(Parameters, AreSeededAndExactInBf16) {
    MoEConfig c = small_config(20, 5, 2, 13);
    c.add_bias_linear = true;
    c.finalize();
    const TensorMap parameters = random_parameters(c, 1), again = random_parameters(c, 1);
    const TensorMap others = random_parameters(c, 2);
    EXPECT_EQ(parameters.size(), parameter_shapes(c).size());
    for (const auto& [name, tensor] : parameters) {
        EXPECT_EQ(tensor.shape(), parameter_shapes(c).at(name)) << name;
        EXPECT_TRUE(BitwiseEqual(tensor, again.at(name)));
        EXPECT_FALSE(BitwiseEqual(tensor, others.at(name)));
        const Tensor bf16 = transfer(tensor, {MemorySpace::host, DType::bf16});
        EXPECT_TRUE(
            BitwiseEqual(transfer(bf16, {MemorySpace::host, DType::f32}), tensor));
    }
}

}  // namespace
}  // namespace moe::test
