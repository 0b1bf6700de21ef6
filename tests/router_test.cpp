// The router: scores, choice and weights, against the definition written out per token.

#include <cmath>
#include <numeric>
#include <set>

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

/// A router whose logits are the hidden states themselves: H = E, the weight is the
/// identity.
class RouterTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    MoEConfig config(std::int64_t experts, std::int64_t topk) {
        MoEConfig c = small_config();
        c.hidden_size = experts;
        c.num_moe_experts = experts;
        c.moe_router_topk = topk;
        return c;
    }

    std::unique_ptr<Router> make(MoEConfig& c, const TensorMap& extra = {}) {
        c.finalize();
        const std::int64_t E = c.num_experts();
        Tensor weight = Tensor::zeros({E, E}, DType::f32);
        for (std::int64_t e = 0; e < E; ++e) weight.data<float>()[e * E + e] = 1.0f;
        TensorMap parameters = extra;
        parameters["router.weight"] = weight;
        return find_tier("tier", GetParam().tier)
            .make_router(c, GetParam().dtype, parameters);
    }

    Router::Output route(MoEConfig& c, const Tensor& logits, const TensorMap& extra = {},
                         bool training = true) {
        router_ = make(c, extra);
        const Tensor hidden = transfer(logits, router_->placement())
                                  .reshaped({logits.dim(0), 1, logits.dim(1)});
        return router_->forward(hidden, {}, {.training = training});
    }

    /// dlogits for a gradient by the probabilities.
    std::vector<double> dlogits(const Router::Output& output, const Tensor& dprobs) {
        Tensor dhidden = Tensor::zeros(dprobs.shape(), GetParam().dtype);
        TensorMap gradients;
        router_->backward(dhidden, gradients, transfer(dprobs, router_->placement()),
                          *output.saved, {});
        return to_doubles(dhidden);
    }

    double bound() const { return GetParam().dtype == DType::f64 ? 1e-6 : 5e-6; }

    std::unique_ptr<Router> router_;
};

/// Experts of a row, best first, by the largest keys; equal keys: the lower index.
std::vector<std::int64_t> best(const std::vector<double>& keys, std::int64_t count) {
    std::vector<std::int64_t> order(keys.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return keys[a] > keys[b]; });
    order.resize(count);
    return order;
}

double score(const std::string& function, double x) {
    if (function == "sigmoid") return 1.0 / (1.0 + std::exp(-x));
    return std::sqrt(std::log1p(std::exp(x)));
}

/// The definition for one token.
std::vector<double> weigh(const MoEConfig& c, const std::vector<double>& x,
                          const std::vector<double>& bias) {
    std::vector<double> s(x.size()), keys(x.size()), p(x.size(), 0.0);
    const bool softmax = c.moe_router_score_function == "softmax";
    double total = 0.0;
    for (double logit : x) total += std::exp(logit);
    for (std::size_t e = 0; e < x.size(); ++e) {
        s[e] =
            softmax ? std::exp(x[e]) / total : score(c.moe_router_score_function, x[e]);
        // Before the softmax over the chosen, the logits themselves choose.
        keys[e] = softmax && !c.moe_router_pre_softmax ? x[e] : s[e] + bias[e];
    }
    if (c.moe_router_group_topk) {
        const std::size_t groups = *c.moe_router_num_groups, size = x.size() / groups;
        std::vector<double> group_scores;
        for (std::size_t g = 0; g < groups; ++g) {
            const std::vector<double> group(keys.begin() + g * size,
                                            keys.begin() + (g + 1) * size);
            group_scores.push_back(0.0);
            for (std::int64_t e :
                 best(group, c.moe_router_topk / *c.moe_router_group_topk))
                group_scores.back() += group[e];
        }
        const auto chosen = best(group_scores, *c.moe_router_group_topk);
        for (std::size_t e = 0; e < x.size(); ++e)
            if (std::count(chosen.begin(), chosen.end(), std::int64_t(e / size)) == 0)
                keys[e] = -INFINITY;
    }
    const auto chosen = best(keys, c.moe_router_topk);
    double sum = 0.0;
    for (std::int64_t e : chosen) sum += s[e];
    const bool normalised = softmax ? !c.moe_router_pre_softmax : c.moe_router_topk > 1;
    for (std::int64_t e : chosen)
        p[e] = (normalised ? s[e] / sum : s[e]) *
               c.moe_router_topk_scaling_factor.value_or(1.0);
    return p;
}

struct Feature {
    std::string function;
    bool pre_softmax = false, bias = false, groups = false;
    std::int64_t topk = 3;
    double scale = 1.0;
};

TEST_P(RouterTest, FollowsTheDefinition) {
    const std::vector<Feature> features = {
        {"softmax"},
        {"softmax", true},
        {"softmax", true, false, false, 1},
        {"softmax", true, false, true},
        {"softmax", false, false, true, 5},
        {"sigmoid"},
        {"sigmoid", false, true, true, 5, 2.5},
        {"sigmoid", false, true, false, 1},
        {"sigmoid", false, false, false, 12},
        {"sqrtsoftplus", false, true, true, 4, 1.5},
        {"sqrtsoftplus", false, false, false, 1},
    };
    constexpr std::int64_t T = 257, E = 12;
    const Tensor logits = random_tensor({T, E}, 5, 2.0);
    const std::vector<double> x = to_doubles(logits);
    const Tensor bias = random_tensor({E}, 6, 0.3);
    for (const Feature& feature : features) {
        MoEConfig c = config(E, feature.topk);
        c.moe_router_score_function = feature.function;
        c.moe_router_pre_softmax = feature.pre_softmax;
        c.moe_router_topk_scaling_factor = feature.scale;
        c.moe_router_enable_expert_bias = feature.bias;
        if (feature.groups) c.moe_router_num_groups = 4, c.moe_router_group_topk = 2;
        const auto output = route(c, logits, {{"router.expert_bias", bias}});

        Tensor expected = Tensor::empty({T, E}, DType::f64);
        for (std::int64_t t = 0; t < T; ++t) {
            const auto p =
                weigh(c, {x.begin() + t * E, x.begin() + (t + 1) * E},
                      feature.bias ? to_doubles(bias) : std::vector<double>(E, 0.0));
            std::copy(p.begin(), p.end(), expected.data<double>() + t * E);
        }
        EXPECT_TRUE(Close(output.probs, expected, bound())) << feature.function;
        const auto map = to_doubles(output.routing_map), p = to_doubles(expected);
        for (std::size_t i = 0; i < map.size(); ++i) ASSERT_EQ(map[i], p[i] != 0.0) << i;
    }
}

TEST_P(RouterTest, WeightsSumToTheScalingFactor) {
    for (const char* function : {"softmax", "sigmoid", "sqrtsoftplus"}) {
        MoEConfig c = config(9, 4);
        c.moe_router_score_function = function;
        c.moe_router_topk_scaling_factor = 2.5;
        const auto p = to_doubles(route(c, random_tensor({33, 9}, 7)).probs);
        for (std::int64_t t = 0; t < 33; ++t)
            EXPECT_NEAR(std::accumulate(p.begin() + t * 9, p.begin() + t * 9 + 9, 0.0),
                        2.5, 1e-5);
    }
}

TEST_P(RouterTest, GivesTiesToTheLowerExpertAndGroup) {
    MoEConfig c = config(8, 2);
    const Tensor flat = Tensor::zeros({3, 8}, DType::f32);
    const std::vector<double> lowest = {1, 1, 0, 0, 0, 0, 0, 0};
    auto map = to_doubles(route(c, flat).routing_map);
    for (std::size_t i = 0; i < map.size(); ++i) EXPECT_EQ(map[i], lowest[i % 8]);

    c.moe_router_score_function = "sigmoid";
    c.moe_router_num_groups = 4;
    c.moe_router_group_topk = 1;
    map = to_doubles(route(c, flat).routing_map);
    for (std::size_t i = 0; i < map.size(); ++i) EXPECT_EQ(map[i], lowest[i % 8]);

    // Groups 1 and 3 tie at the top; 1 wins.
    const Tensor two_groups = Tensor::from<float>({1, 8}, {0, 0, 2, 1, 0, 0, 1, 2});
    map = to_doubles(route(c, two_groups).routing_map);
    EXPECT_EQ(map, (std::vector<double>{0, 0, 1, 1, 0, 0, 0, 0}));
}

TEST_P(RouterTest, BiasMovesTheChoiceNotTheWeight) {
    MoEConfig c = config(4, 2);
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
    const Tensor logits = Tensor::from<float>({1, 4}, {2, 1, -1, -2});
    const Tensor bias = Tensor::from<float>({4}, {-1, 0, 0, 1});
    const auto p = to_doubles(route(c, logits, {{"router.expert_bias", bias}}).probs);
    const double s1 = score("sigmoid", 1), s3 = score("sigmoid", -2);
    EXPECT_EQ(p[0], 0.0);
    EXPECT_NEAR(p[1], s1 / (s1 + s3), 1e-6);
    EXPECT_NEAR(p[3], s3 / (s1 + s3), 1e-6);
}

TEST_P(RouterTest, DropsTheGradientWhereSoftplusUnderflows) {
    MoEConfig c = config(3, 3);
    c.moe_router_score_function = "sqrtsoftplus";
    const Tensor logits = Tensor::from<float>({2, 3}, {-120, 1, 2, -120, -120, -120});
    const auto output = route(c, logits);
    for (double p : to_doubles(output.probs)) EXPECT_TRUE(std::isfinite(p));
    const auto dx = dlogits(output, Tensor::from<float>({2, 3}, {1, 2, 3, 1, 2, 3}));
    for (double value : dx) EXPECT_TRUE(std::isfinite(value));
    EXPECT_EQ(dx[0], 0.0);
    EXPECT_NE(dx[1], 0.0);
}

TEST_P(RouterTest, RejectsLogitsThatAreNotFinite) {
    MoEConfig c = config(4, 2);
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        Tensor logits = Tensor::zeros({3, 4}, DType::f32);
        logits.data<float>()[2 * 4 + 1] = bad;
        EXPECT_TRUE(Rejects([&] { route(c, logits); }, {"token 2", "must be finite"}));
    }
}

TEST_P(RouterTest, SinkhornChoosesByScoresOutsideTraining) {
    MoEConfig c = config(6, 2);
    c.moe_router_load_balancing_type = {"sinkhorn"};
    // Everybody likes experts 0 and 1; balancing sends some elsewhere, evaluation does
    // not.
    Tensor logits = random_tensor({32, 6}, 8, 0.1);
    for (std::int64_t t = 0; t < 32; ++t)
        for (std::int64_t e : {0, 1}) logits.data<float>()[t * 6 + e] += 3.0f;
    const auto eval = to_doubles(route(c, logits, {}, false).routing_map);
    const auto train = to_doubles(route(c, logits, {}, true).routing_map);
    double eval_others = 0.0, train_others = 0.0;
    for (std::size_t i = 0; i < eval.size(); ++i) {
        if (i % 6 < 2) continue;
        eval_others += eval[i];
        train_others += train[i];
    }
    EXPECT_EQ(eval_others, 0.0);
    EXPECT_GT(train_others, 16.0);
}

TEST_P(RouterTest, TakesNoTokensOneExpertAndAllExperts) {
    MoEConfig none = config(5, 2);
    EXPECT_EQ(route(none, Tensor::zeros({0, 5}, DType::f32)).probs.shape(),
              (Shape{0, 5}));
    MoEConfig one = config(1, 1);
    one.moe_router_score_function = "sigmoid";
    EXPECT_NEAR(to_doubles(route(one, Tensor::from<float>({1, 1}, {0.5f})).probs)[0],
                score("sigmoid", 0.5), 1e-6);
    MoEConfig all = config(4, 4);
    for (double routed : to_doubles(route(all, random_tensor({3, 4}, 9)).routing_map))
        EXPECT_EQ(routed, 1.0);
}

INSTANTIATE_TEST_SUITE_P(Tiers, RouterTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
