// Quantile balancing: a number for each expert moves the choice, and the step moves it to
// where every expert would have had its share.

#include <algorithm>
#include <cmath>

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

MoEConfig balanced(std::int64_t experts, std::int64_t topk) {
    MoEConfig config = small_config(experts, experts, topk);
    config.moe_router_load_balancing_type = {"quantile_balancing"};
    config.moe_router_score_function = "sigmoid";
    return config;
}

/// A token's experts, by logit less beta, of equal ones the lower; all of them.
std::vector<std::int64_t> order_of(const Values& x, const Values& beta, std::int64_t t) {
    const auto E = static_cast<std::int64_t>(beta.size());
    std::vector<std::int64_t> order;
    for (std::int64_t e = 0; e < E; ++e) order.push_back(e);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return x[t * E + a] - beta[a] > x[t * E + b] - beta[b];
    });
    return order;
}

/// The column quantiles, by sorting.
Values quantiles_of(const Values& x, const Values& beta, std::int64_t K) {
    const auto E = static_cast<std::int64_t>(beta.size());
    const std::int64_t T = std::int64_t(x.size()) / E;
    Values quantiles;
    for (std::int64_t e = 0; e < E; ++e) {
        Values margins;
        for (std::int64_t t = 0; t < T; ++t) {
            const std::int64_t next = order_of(x, beta, t)[K];
            margins.push_back(x[t * E + e] - (x[t * E + next] - beta[next]));
        }
        std::sort(margins.begin(), margins.end(), std::greater<double>());
        quantiles.push_back(margins[T * K / E]);
    }
    return quantiles;
}

/// The weight is the identity, so that hidden states are logits.
class QuantileBalancing : public testing::TestWithParam<ComponentSpec> {
  protected:
    void make(const MoEConfig& config, const Tensor& beta = {}) {
        TensorMap parameters = {{"router.weight", identity_matrix(config.hidden_size)}};
        if (beta.defined()) parameters["router.qb_beta"] = beta;
        router_ = make_router(GetParam(), config, parameters);
    }
    Router::Output forward(const Tensor& logits, bool training = true,
                           const Tensor& mask = {}) {
        const Tensor hidden = logits.reshaped({logits.dim(0), 1, logits.dim(1)});
        values_ = {};
        return dense_forward(*router_, transfer(hidden, router_->placement()),
                             transfer(mask, router_->placement()),
                             {.training = training, .observer = &values_});
    }
    Values update() { return to_doubles(router_->update_qb_beta()); }
    bool shows_quantiles() const { return values_.values.count("qb_beta_local") > 0; }

    std::unique_ptr<Router> router_;
    ValueRecorder values_;
};

TEST_P(QuantileBalancing, ChoosesByLogitLessBetaAndWeighsWithout) {
    // E divides T K, and only T K
    for (auto [T, E, K] : std::vector<std::array<std::int64_t, 3>>{
             {33, 3, 2}, {65, 5, 2}, {35, 7, 1}, {14, 7, 3}, {33, 33, 32}, {26, 65, 5}}) {
        SCOPED_TRACE(testing::Message() << T << " " << E << " " << K);
        const Tensor logits = random_tensor({T, E}, 1), beta = random_tensor({E}, 2, 0.5);
        const Values x = to_doubles(logits), b = to_doubles(beta);
        Values map(T * E), probs(T * E), ids;
        for (std::int64_t t = 0; t < T; ++t) {
            const auto order = order_of(x, b, t);
            double total = 0.0;
            const auto s = [&](std::int64_t e) {
                return 1.0 / (1.0 + std::exp(-x[t * E + e]));
            };
            for (std::int64_t k = 0; k < K; ++k) total += s(order[k]);
            for (std::int64_t k = 0; k < K; ++k) {
                ids.push_back(double(order[k]));
                map[t * E + order[k]] = 1.0;
                probs[t * E + order[k]] = K == 1 ? s(order[k]) : s(order[k]) / total;
            }
        }
        make(balanced(E, K), beta);
        for (const bool training : {true, false}) {
            const auto output = forward(logits, training);
            EXPECT_EQ(to_doubles(output.routing_map), map);
            EXPECT_EQ(to_doubles(values_.at("topk_idx")), ids);
            EXPECT_TRUE(Close(output.probs, Tensor::from({T, E}, probs),
                              score_bound_of(GetParam())));
            EXPECT_TRUE(output.losses.read().empty());
            EXPECT_EQ(shows_quantiles(), training);
            if (training) {
                EXPECT_TRUE(Close(values_.at("qb_beta_local"),
                                  Tensor::from({E}, quantiles_of(x, b, K)), 1e-6));
            }
        }
    }
}

// Where all numbers are alike it is the plain choice, to the bits, backward as well.
TEST_P(QuantileBalancing, IsPlainRoutingWithoutBeta) {
    constexpr std::int64_t T = 12, E = 8;
    const Tensor logits = random_tensor({T, E}, 3), dprobs = random_tensor({T, E}, 4);
    for (const std::string function : {"softmax", "sigmoid", "sqrtsoftplus"})
        for (const bool pre : {false, true}) {
            MoEConfig config = balanced(E, 2);
            config.moe_router_score_function = function;
            config.moe_router_pre_softmax = pre;
            config.moe_router_topk_scaling_factor = 2.5;
            config.moe_z_loss_coeff = 0.5;
            std::vector<TensorMap> runs;
            for (const std::string type : {"quantile_balancing", "none"}) {
                config.moe_router_load_balancing_type = {type};
                make(config);
                const auto output = forward(logits);
                TensorMap& run = runs.emplace_back();
                run["probs"] = output.probs;
                run["map"] = output.routing_map;
                run["dhidden"] =
                    transfer(Tensor::zeros({T, E}, DType::f32), router_->placement());
                dense_backward(*router_, run["dhidden"], run,
                               transfer(dprobs, probs_placement(router_->placement())),
                               *output.saved, {});
            }
            for (const auto& [name, value] : runs[0])
                EXPECT_TRUE(BitwiseEqual(value, runs[1].at(name))) << function << name;
        }
}

// A softmax over the chosen must not overflow where the first of them is not the largest.
TEST_P(QuantileBalancing, TakesAnyBeta) {
    MoEConfig config = balanced(4, 2);
    config.moe_router_score_function = "softmax";
    make(config, Tensor::from<float>({4}, {0, 0, 0, 300}));
    const auto output = forward(Tensor::from<float>({2, 4}, {0, -500, -500, 299,  //
                                                             0, 2, 1, 300.5f}));
    EXPECT_EQ(to_doubles(output.routing_map), (Values{1, 0, 0, 1, 0, 1, 1, 0}));
    const Values p = to_doubles(output.probs);
    EXPECT_NEAR(p[3], 1.0, 1e-6);
    EXPECT_NEAR(p[0], 0.0, 1e-6);
    EXPECT_NEAR(p[5], 1.0 / (1.0 + std::exp(-1.0)), 1e-6);
}

TEST_P(QuantileBalancing, GivesTiesToTheLowerExpert) {
    make(balanced(4, 2), Tensor::from<float>({4}, {1, 0, 0, 0}));
    const auto output = forward(Tensor::from<float>({2, 4}, {1, 0, 0, 0, 0, 5, 5, 5}));
    EXPECT_EQ(to_doubles(output.routing_map), (Values{1, 1, 0, 0, 0, 1, 1, 0}));
}

// The contract: of each expert's margins no more than K T / E are above its quantile, and
// with the equal ones there are more. Margins of 0 are many: the one that stands back.
TEST_P(QuantileBalancing, FindsTheShareOfEveryExpert) {
    constexpr std::int64_t T = 63, E = 9, K = 2, kShare = T * K / E;
    Tensor logits = random_tensor({T, E}, 5);
    for (std::int64_t t = 0; t < T; ++t) logits.data<float>()[t * E] += 2.0f;  // a hit
    make(balanced(E, K));
    forward(logits);
    const Values x = to_doubles(logits), zero(E),
                 quantiles = to_doubles(values_.at("qb_beta_local"));
    for (std::int64_t e = 0; e < E; ++e) {
        std::int64_t above = 0, equal = 0;
        for (std::int64_t t = 0; t < T; ++t) {
            const double margin =
                float(x[t * E + e] - x[t * E + order_of(x, zero, t)[K]]);
            above += margin > quantiles[e];
            equal += margin == quantiles[e];
        }
        EXPECT_LE(above, kShare) << e;
        EXPECT_GT(above + equal, kShare) << e;
    }
    const Values beta = update();
    EXPECT_EQ(std::max_element(beta.begin(), beta.end()), beta.begin());
}

TEST_P(QuantileBalancing, UpdatesOnceAStep) {
    constexpr std::int64_t T = 10, E = 5, K = 2;
    MoEConfig config = balanced(E, K);
    config.moe_router_quantile_balancing_ema = 0.25;
    const Tensor start = random_tensor({E}, 6), first = random_tensor({T, E}, 7),
                 second = random_tensor({2 * T, E}, 8);
    make(config, start);
    Values beta = to_doubles(start);
    const auto expect_step = [&](const Values& mean) {
        double sum = 0.0;
        for (std::int64_t e = 0; e < E; ++e) {
            beta[e] = 0.25 * beta[e] + 0.75 * mean[e];
            sum += beta[e];
        }
        for (double& b : beta) b -= sum / E;
        const Values got = update();
        for (std::int64_t e = 0; e < E; ++e) EXPECT_NEAR(got[e], beta[e], 1e-6) << e;
    };
    // All micro-batches of a step choose by the same beta
    Values mean = quantiles_of(to_doubles(first), beta, K);
    const Values other = quantiles_of(to_doubles(second), beta, K);
    for (std::int64_t e = 0; e < E; ++e) mean[e] = (mean[e] + other[e]) / 2.0;
    forward(first);
    forward(second);
    forward(first, false);  // evaluation counts for nothing
    expect_step(mean);
    mean = quantiles_of(to_doubles(first), beta, K);  // by the new one, and nothing else
    forward(first);
    expect_step(mean);
    expect_step(Values(E));  // no micro-batch, as in Megatron: its mean is 0
}

TEST_P(QuantileBalancing, WantsWholeSharesInTraining) {
    make(balanced(4, 2));
    const Tensor logits = random_tensor({7, 4}, 9);
    EXPECT_TRUE(Rejects([&] { forward(logits); },
                        {"tokens * moe_router_topk = 14: must be a multiple of "
                         "num_moe_experts (4)",
                         "7 tokens"}));
    EXPECT_NO_THROW(forward(logits, false));
    EXPECT_EQ(update(), Values(4)) << "what was refused leaves nothing";
}

TEST_P(QuantileBalancing, HasNoPadding) {
    make(balanced(4, 2));
    for (const bool training : {true, false})
        EXPECT_TRUE(Rejects(
            [&] {
                forward(random_tensor({2, 4}, 9), training,
                        Tensor::zeros({2, 1}, DType::u8));
            },
            {"padding_mask = (2, 1): ", "left out with quantile_balancing"}));
}

TEST_P(QuantileBalancing, TakesNoTokens) {
    make(balanced(4, 2));
    const Tensor none = Tensor::zeros({0, 4}, DType::f32);
    EXPECT_EQ(forward(none).probs.shape(), (Shape{0, 4}));
    EXPECT_EQ(forward(none, false).routing_map.shape(), (Shape{0, 4}));
    EXPECT_EQ(update(), Values(4));
}

TEST_P(QuantileBalancing, LeavesABiasWithoutEffectButMovesIt) {
    MoEConfig config = balanced(3, 2);
    config.moe_router_enable_expert_bias = true;
    config.moe_router_bias_update_rate = 0.5;
    router_ = make_router(GetParam(), config,
                          {{"router.weight", identity_matrix(3)},
                           {"router.expert_bias", Tensor::from<float>({3}, {0, 0, 9})}});
    const Tensor logits = Tensor::from<float>({3, 3}, {3, 2, 1, 3, 2, 1, 3, 1, 2});
    EXPECT_EQ(to_doubles(forward(logits).routing_map),
              (Values{1, 1, 0, 1, 1, 0, 1, 0, 1}));
    EXPECT_EQ(to_doubles(router_->update_expert_bias()), (Values{-0.5, 0.0, 9.5}));
}

TEST_P(QuantileBalancing, HasNoBetaOfOthers) {
    MoEConfig config = balanced(4, 2);
    config.moe_router_load_balancing_type = {"none"};
    make(config);
    EXPECT_FALSE(router_->update_qb_beta().defined());
}

INSTANTIATE_TEST_SUITE_P(Tiers, QuantileBalancing, testing::ValuesIn(router_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
