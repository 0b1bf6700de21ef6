// The bound that follows from rounding: where it lets a right layer pass, and that it
// lets no wrong one.

#include "cli/golden/rounding.h"

#include "cli/compare/closeness.h"
#include "tests/support.h"

namespace moe::test {
namespace {

GoldenCase golden_case(const std::string& name) {
    return load_golden(golden_folder() + "/" + name + ".safetensors");
}

const ComponentSpec kExact = {"reference_cpu", DType::f64};

/// The case with other inputs, and what fp64 makes of them.
GoldenCase with_tokens(GoldenCase golden, std::int64_t S, std::int64_t B, int seed) {
    const Shape shape = {S, B, golden.config.hidden_size};
    GoldenRank& rank = golden.ranks[0];
    rank = GoldenRank();
    rank.hidden_states = random_tensor(shape, seed);
    rank.grad_output = random_tensor(shape, seed + 1);
    golden.source_errors.clear();
    const auto values = run_golden(golden, ModuleSpec::uniform(kExact));
    for (const auto& [name, value] : values[0])
        if (name.starts_with("expect.grad.") || name == "expect.output")
            rank.expected[name] = value;
    return golden;
}

TensorCheck find_check(const CaseResult& result, const std::string& name) {
    for (const TensorCheck& check : result.checks)
        if (check.name == name) return check;
    ADD_FAILURE() << name;
    return {};
}

/// optimized_gpu's experts keep h in bf16, and here the shards' parts of one
/// probability's gradient all but cancel: the router's is 1.3e-2 off on rank 1.
TEST(GoldenRounding, JudgesWhatAllButCancels) {
    NEEDS_DEVICE();
    GoldenCase golden = golden_case("ranks/ep2_etp2_tp1_alltoall");
    const ModuleSpec spec = ModuleSpec::uniform({"optimized_gpu", DType::bf16});
    const std::string name = "rank 1 expect.grad.router.weight";
    const CaseResult result = verify_golden(golden, spec);
    EXPECT_TRUE(result.ok);
    for (const TensorCheck& check : result.checks)
        EXPECT_EQ(check.bound_from == BoundFrom::rounding, check.name == name)
            << check.name;
    const TensorCheck check = find_check(result, name);
    EXPECT_GT(check.error, 1e-2);
    EXPECT_LT(check.bound, 4e-2) << "four times the agreed bound";

    // As far off again as it may be.
    Tensor& expected = golden.ranks[1].expected.at("expect.grad.router.weight");
    expected = expected.clone();
    for (std::int64_t i = 0; i < expected.numel(); ++i)
        expected.data<double>()[i] *= 1.0 + 2.0 * check.bound;
    const TensorCheck off = find_check(verify_golden(golden, spec), name);
    EXPECT_FALSE(off.ok) << off.error << " of " << off.bound;
}

TEST(GoldenRounding, ChangesEveryMicroBatch) {
    GoldenCase golden = golden_case("micro_batches_global_bias");
    std::vector<std::int64_t> lengths, expected;
    golden.ranks[0].change_inputs(
        [&](GoldenInput& input) { lengths.push_back(input.hidden_states.dim(0)); });
    for (const GoldenInput& input : golden.ranks[0].micro_batches())
        expected.push_back(input.hidden_states.dim(0));
    EXPECT_EQ(expected.size(), 3u);
    EXPECT_EQ(lengths, expected);
}

class GoldenRoundingTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    const ModuleSpec spec_ = ModuleSpec::uniform(GetParam());
};

// Errors of few elements do not average out.
TEST_P(GoldenRoundingTest, LetsFewTokensPassAndNoFault) {
    for (int seed = 0; seed < 6; ++seed) {
        const GoldenCase golden =
            with_tokens(golden_case("softmax_pre_k4"), 1 + seed % 3, 1, 100 + 2 * seed);
        for (const TensorCheck& check : verify_golden(golden, spec_).checks)
            EXPECT_TRUE(check.ok) << seed << " " << check.name << " " << check.error
                                  << " of " << check.bound << " " << check.detail;
        GoldenCase wrong = golden;
        wrong.config.moe_router_topk_scaling_factor =
            1.1 * golden.config.moe_router_topk_scaling_factor.value_or(1.0);
        EXPECT_FALSE(find_check(verify_golden(wrong, spec_), "expect.output").ok);
        EXPECT_FALSE(
            find_check(verify_golden(wrong, spec_), "expect.grad.hidden_states").ok);
    }
}

// With K = E every expert has every token: the loss is flat, its gradient rounding alone.
// Others' rounding is another, or none.
TEST_P(GoldenRoundingTest, JudgesAZeroByWhatRoundingLeavesOfIt) {
    for (const bool exactly_zero : {false, true}) {
        GoldenCase golden = golden_case("k_equals_e");
        GoldenRank& rank = golden.ranks[0];
        const Shape shape = rank.hidden_states.shape();
        golden.config.moe_router_load_balancing_type = {"aux_loss"};
        golden.config.moe_aux_loss_coeff = {1.0};
        golden.config.moe_z_loss_coeff.reset();
        golden.config.finalize();
        rank.grad_output = Tensor::zeros(shape, DType::f32);
        const std::string name = "expect.grad.hidden_states";
        Tensor expected = Tensor::zeros(shape, DType::f64);
        if (!exactly_zero)
            for (std::int64_t i = 0; i < expected.numel(); ++i)
                expected.data<double>()[i] = 1e-12 * double(i % 7 - 3);
        rank.expected = {{name, expected}};
        const TensorCheck check = find_check(verify_golden(golden, spec_), name);
        EXPECT_TRUE(check.ok) << check.error << " of " << check.bound;
        if (check.error != 0.0) {
            EXPECT_EQ(check.bound_from, BoundFrom::rounding);
        }
        rank.grad_output = rank.grad_output.clone();
        rank.grad_output.data<float>()[0] = 1e-3f;
        EXPECT_FALSE(find_check(verify_golden(golden, spec_), name).ok);
    }
}

// Sums over tokens grow off by the root of their number.
TEST_P(GoldenRoundingTest, AllowsLongSums) {
    if (GetParam().tier == "optimized_gpu") GTEST_SKIP() << "its bound is bf16's";
    const GoldenCase golden = golden_case("one_expert");
    const auto distances = [&](std::int64_t S) {
        const GoldenCase longer = with_tokens(golden, S, 1, 300);
        const Tensor& gradient =
            longer.ranks[0].expected.at("expect.grad.experts.linear_fc2.weight");
        const Tensor zero = Tensor::zeros(gradient.shape(), DType::f64);
        return measure_rounding(longer, GetParam().dtype)[0].at(
                   "expect.grad.experts.linear_fc2.weight") /
               measure_closeness(gradient, zero).distance;
    };
    const double growth = distances(64 * 64) / distances(64);
    if (GetParam().dtype == DType::f32) {
        EXPECT_GT(growth, 4.0);
    }
    EXPECT_LT(growth, 16.0);
    if (GetParam().dtype == DType::bf16) return;
    const GoldenCase long_case = with_tokens(golden, 12'000, 1, 300);
    for (const TensorCheck& check : verify_golden(long_case, spec_).checks) {
        EXPECT_TRUE(check.ok) << check.name << " " << check.error << " of "
                              << check.bound;
        EXPECT_LT(check.bound, 1e-4) << check.name;
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, GoldenRoundingTest,
                         testing::ValuesIn(available_suppliers()), instance_name);

}  // namespace
}  // namespace moe::test
