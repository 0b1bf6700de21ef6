// Jitter on the router's input: who draws which factor, and that the router goes on as if
// it had been given the product, while the experts see what was given.

#include <algorithm>
#include <cmath>
#include <set>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "distributed/input_jitter.h"
#include "distributed/process_groups.h"
#include "tests/layer/random_support.h"

namespace moe::test {
namespace {

using distributed::InputJitter;

MoEConfig jittered(double eps, std::int64_t width = kWidth) {
    MoEConfig config = small_config(width, kExperts, 2);
    config.moe_input_jitter_eps = eps;
    config.moe_router_dtype = "fp32";
    config.finalize();
    return config;
}

Values draw(const MoEConfig& config, std::int64_t seq_len = kSeqLength,
            std::int64_t micro_batch = kBatch) {
    return draw_alone<InputJitter>(config, seq_len, micro_batch);
}

TEST(InputJitterNumbers, AreUniformAroundOne) {
    const Values factors = draw(jittered(0.25, 17), 501, 3);
    double sum = 0.0, squares = 0.0;
    for (const double f : factors) {
        ASSERT_GE(f, 0.75);
        ASSERT_LE(f, 1.25);
        sum += f - 1.0;
        squares += (f - 1.0) * (f - 1.0);
    }
    const auto count = double(factors.size());  // 25551
    EXPECT_NEAR(sum / count, 0.0, 0.0045);      // five deviations
    EXPECT_NEAR(squares / count, 0.25 * 0.25 / 3.0, 0.0006);
    const auto [least, most] = std::minmax_element(factors.begin(), factors.end());
    EXPECT_LT(*least, 0.7501);
    EXPECT_GT(*most, 1.2499);
    // All their own
    EXPECT_GT(std::set<double>(factors.begin(), factors.end()).size(), 25000u);
}

TEST(InputJitterNumbers, AreTheSameNoiseForEveryEps) {
    const Values small = draw(jittered(0.25)), large = draw(jittered(0.5));
    for (std::size_t i = 0; i < small.size(); ++i)
        ASSERT_NEAR(2.0 * (small[i] - 1.0), large[i] - 1.0, 2e-7) << i;
}

TEST(InputJitterNumbers, FollowTheirTokensOverRanks) {
    expect_tokens_keep_numbers<InputJitter>(jittered(0.3), kWidth);
}

class InputJitterRouter : public RandomRouterTest {};

TEST_P(InputJitterRouter, GoesOnAsIfTheProductHadBeenGiven) {
    const Tensor hidden = random_tensor({kSeqLength, kBatch, kWidth}, 3);
    const Tensor weight = random_tensor({kExperts, kWidth}, 2);
    MoEConfig config = jittered(0.5);
    config.moe_z_loss_coeff = 0.1;
    config.moe_aux_loss_coeff = {0.3};
    const Values factors = draw(config);
    Values product = to_doubles(hidden);
    for (std::size_t i = 0; i < product.size(); ++i) product[i] *= factors[i];
    MoEConfig plain = config;
    plain.moe_input_jitter_eps.reset();
    for (const bool training : {true, false}) {
        Run got, expected;
        run(got, config, weight, hidden, training);
        run(expected, plain, weight, Tensor::from<double>(hidden.shape(), product),
            training);
        const auto same = [&](const Tensor& a, const Tensor& b) {
            EXPECT_TRUE(Close(a, b, 0.0));
        };
        same(got.values.at("logits"), expected.values.at("logits"));
        same(got.output.routing_map, expected.output.routing_map);
        same(got.output.probs, expected.output.probs);
        same(got.gradients.at("router.weight"), expected.gradients.at("router.weight"));
        EXPECT_EQ(got.output.losses.read(), expected.output.losses.read());
        // Through the factors
        Values dx = to_doubles(expected.dhidden);
        for (std::size_t i = 0; i < dx.size(); ++i) dx[i] *= factors[i];
        EXPECT_TRUE(Close(got.dhidden, Tensor::from(got.dhidden.shape(), dx),
                          bound_of(GetParam())));
        Run without;
        run(without, plain, weight, hidden, training);
        EXPECT_FALSE(Close(got.output.probs, without.output.probs, 1e-2));
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, InputJitterRouter, testing::ValuesIn(router_suppliers()),
                         instance_name);

class InputJitterLayer : public testing::TestWithParam<ComponentSpec> {};

TEST_P(InputJitterLayer, LeavesTheExpertsTheirInput) {
    MoEConfig config = jittered(0.5);
    config.moe_router_topk = kExperts;  // so that the choice cannot differ
    config.finalize();
    const Tensor hidden = random_tensor({kSeqLength, kBatch, kWidth}, 5);
    const TensorMap parameters = random_parameters(config, 6);
    std::vector<ValueRecorder> values(2);
    for (ValueRecorder& each : values) {
        MoELayer layer(config, ModuleSpec::uniform(GetParam()), parameters);
        layer.forward(hidden, {}, {.observer = &each});
        config.moe_input_jitter_eps.reset();
    }
    EXPECT_TRUE(BitwiseEqual(values[0].at("dispatched_hidden_states"),
                             values[1].at("dispatched_hidden_states")));
    // A tier in bf16 hands the router its tokens as they are; no factor is rounded to it
    const Values x = to_doubles(hidden), factors = draw(jittered(0.5));
    Values product;
    for (std::size_t i = 0; i < x.size(); ++i) product.push_back(x[i] * factors[i]);
    const Tensor& seen = values[0].at("jittered_hidden_states");
    EXPECT_TRUE(Close(seen, Tensor::from(seen.shape(), product), 1e-7));
    EXPECT_EQ(values[1].values.count("jittered_hidden_states"), 0u);
}

INSTANTIATE_TEST_SUITE_P(Tiers, InputJitterLayer,
                         testing::ValuesIn(available_suppliers()), instance_name);

}  // namespace
}  // namespace moe::test
