// Random logits in place of the gating's: who draws which number, and that the rest of
// the router, its gradient included, goes on as if the gating had made them.

#include <cmath>

#include "distributed/process_groups.h"
#include "distributed/random_logits.h"
#include "tests/layer/random_support.h"

namespace moe::test {
namespace {

using distributed::RandomLogits;

MoEConfig forced(std::int64_t experts = kExperts) {
    MoEConfig config = small_config(kWidth, experts, 2);
    config.moe_router_force_load_balancing = true;
    config.finalize();
    return config;
}

MoEConfig biased(double std, std::int64_t experts = kExperts) {
    MoEConfig config = small_config(kWidth, experts, 2);
    config.moe_router_force_biased = std;
    config.finalize();
    return config;
}

Values draw(const MoEConfig& config, std::int64_t seq_len = kSeqLength,
            std::int64_t micro_batch = kBatch) {
    return draw_alone<RandomLogits>(config, seq_len, micro_batch);
}

/// Mean and variance.
std::pair<double, double> moments(const Values& values) {
    double sum = 0.0, squares = 0.0;
    for (double x : values) sum += x, squares += x * x;
    const double mean = sum / values.size();
    return {mean, squares / values.size() - mean * mean};
}

TEST(RandomLogitsNumbers, AreStandardNormal) {
    const auto [mean, variance] = moments(draw(forced(17), 501, 3));
    EXPECT_NEAR(mean, 0.0, 0.03);  // 25551 numbers: five deviations
    EXPECT_NEAR(variance, 1.0, 0.05);
}

TEST(RandomLogitsNumbers, GetOneBiasForEachExpert) {
    constexpr std::int64_t kMany = 251;
    const Values plain = draw(forced(kMany)), moved = draw(biased(1.5, kMany));
    Values bias;
    for (std::int64_t e = 0; e < kMany; ++e) bias.push_back(moved[e] - plain[e]);
    for (std::size_t i = 0; i < plain.size(); ++i)
        ASSERT_NEAR(moved[i] - plain[i], bias[i % kMany], 2e-6) << i;
    EXPECT_NEAR(std::sqrt(moments(bias).second), 1.5, 0.35);
    EXPECT_NEAR(moments(bias).first, 0.0, 0.5);
    EXPECT_EQ(draw(biased(-1.5, kMany)), moved);
    EXPECT_EQ(draw(biased(0.0, kMany)), plain);
}

TEST(RandomLogitsNumbers, FollowTheirTokensOverRanks) {
    expect_tokens_keep_numbers<RandomLogits>(biased(0.7), kExperts);
}

class RandomLogitsRouter : public RandomRouterTest {};

TEST_P(RandomLogitsRouter, GoesOnAsIfTheGatingHadMadeThem) {
    for (MoEConfig config : {forced(), biased(2.0)}) {
        config.moe_z_loss_coeff = 0.1;
        config.moe_aux_loss_coeff = {0.3};
        const Tensor weight = random_tensor({kExperts, kWidth}, 2);
        const Tensor hidden = random_tensor({kSeqLength, kBatch, kWidth}, 3);
        Run got, expected;
        run(got, config, weight, hidden);
        const Values logits = draw(config);
        EXPECT_EQ(to_doubles(got.values.at("random_logits")), logits);

        // A router that has them as its tokens
        MoEConfig plain = small_config(kExperts, kExperts, 2);
        plain.moe_z_loss_coeff = 0.1;
        plain.moe_aux_loss_coeff = {0.3};
        run(expected, plain, identity_matrix(kExperts),
            Tensor::from({kSeqLength, kBatch, kExperts}, logits));
        EXPECT_EQ(to_doubles(got.output.routing_map),
                  to_doubles(expected.output.routing_map));
        EXPECT_TRUE(Close(got.output.probs, expected.output.probs, 0.0));
        EXPECT_EQ(got.output.losses.read(), expected.output.losses.read());
        EXPECT_TRUE(
            Close(got.values.at("d_logits"), expected.values.at("d_logits"), 0.0));

        // Straight through: dX = dlogits W and dW = dlogitsᵀ X, of the true W and X
        const Values g = to_doubles(got.values.at("d_logits")), x = to_doubles(hidden),
                     w = to_doubles(weight);
        Values dx(x.size(), 0.0), dw(w.size(), 0.0);
        for (std::size_t t = 0; t < x.size() / kWidth; ++t)
            for (std::int64_t e = 0; e < kExperts; ++e)
                for (std::int64_t h = 0; h < kWidth; ++h) {
                    dx[t * kWidth + h] += g[t * kExperts + e] * w[e * kWidth + h];
                    dw[e * kWidth + h] += g[t * kExperts + e] * x[t * kWidth + h];
                }
        EXPECT_TRUE(Close(got.dhidden, Tensor::from(got.dhidden.shape(), dx),
                          bound_of(GetParam())));
        EXPECT_TRUE(Close(got.gradients.at("router.weight"),
                          Tensor::from({kExperts, kWidth}, dw), bound_of(GetParam())));
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, RandomLogitsRouter, testing::ValuesIn(router_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
