// The router: logits, choice and weights, against the definition written out per token.

#include <cmath>
#include <numeric>
#include <set>

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

class RouterTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    /// E experts as wide as the hidden states, so that these can be the logits
    /// themselves.
    static MoEConfig config(std::int64_t experts, std::int64_t topk,
                            const std::string& function = "softmax") {
        MoEConfig c = small_config(experts, experts, topk);
        c.moe_router_score_function = function;
        return c;
    }

    Router::Output forward(const MoEConfig& c, const TensorMap& parameters,
                           const Tensor& hidden, const Tensor& mask = {},
                           bool training = true) {
        router_ = make_router(GetParam(), c, parameters);
        return dense_forward(*router_, transfer(hidden, router_->placement()),
                             transfer(mask, router_->placement()),
                             {.training = training, .observer = &values_});
    }

    /// Routes these logits: the weight is the identity.
    Router::Output route(const MoEConfig& c, const Tensor& logits,
                         TensorMap parameters = {}, bool training = true) {
        parameters["router.weight"] = identity_matrix(c.hidden_size);
        return forward(c, parameters, logits.reshaped({logits.dim(0), 1, c.hidden_size}),
                       {}, training);
    }

    std::unique_ptr<Router> router_;
    ValueRecorder values_;
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

/// Leaves the keys of the best groups, and −∞ elsewhere.
void limit_to_groups(std::vector<double>& keys, const MoEConfig& c) {
    const std::size_t groups = *c.moe_router_num_groups, size = keys.size() / groups;
    std::vector<double> group_scores;
    for (std::size_t g = 0; g < groups; ++g) {
        const std::vector<double> group(keys.begin() + g * size,
                                        keys.begin() + (g + 1) * size);
        group_scores.push_back(0.0);
        const std::int64_t share = c.moe_router_topk / *c.moe_router_group_topk;
        for (std::int64_t e : best(group, c.moe_router_group_score_topk.value_or(share)))
            group_scores.back() += group[e];
    }
    const auto chosen = best(group_scores, *c.moe_router_group_topk);
    for (std::size_t e = 0; e < keys.size(); ++e)
        if (std::count(chosen.begin(), chosen.end(), std::int64_t(e / size)) == 0)
            keys[e] = -INFINITY;
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
    if (c.moe_router_group_topk) limit_to_groups(keys, c);
    const auto chosen = best(keys, c.moe_router_topk);
    double sum = 0.0;
    for (std::int64_t e : chosen) sum += s[e];
    const bool normalised = softmax
                                ? !c.moe_router_pre_softmax
                                : c.moe_router_topk > 1 && c.moe_router_norm_topk_prob;
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
    bool norm = true;
    std::int64_t group_score = 0;  // 0: Megatron's
};

TEST_P(RouterTest, FollowsTheDefinition) {
    const std::vector<Feature> features = {
        {"softmax"},
        {"softmax", true},
        {"softmax", true, false, false, 1},
        {"softmax", true, false, true},
        {"softmax", false, false, true, 5},  // two groups: each by its ⌊5 / 2⌋ best
        {"sigmoid"},
        {"sigmoid", false, true, true, 5, 2.5},
        {"sigmoid", false, true, false, 1},
        {"sigmoid", false, false, false, 12},
        {"sqrtsoftplus", false, true, true, 4, 1.5},
        {"sqrtsoftplus", false, false, false, 1},
        {"sigmoid", false, true, false, 3, -1.5},  // turns every weight round
        {"softmax", false, false, false, 3, -0.5},
        {"sigmoid", false, false, false, 3, 1.0, false},
        {"sigmoid", false, true, true, 5, 2.5, false, 3},
        {"sqrtsoftplus", false, true, false, 4, -1.5, false},
        {"softmax", true, false, true, 5, 16.0, true, 1},  // DeepSeek-V2's
        {"softmax", false, false, true, 5, 1.0, true, 3},
        {"sigmoid", false, true, true, 1, 1.0, true, 2},  // K below the groups
    };
    constexpr std::int64_t T = 257, E = 12;
    const Tensor logits = random_tensor({T, E}, 5, 2.0);
    const std::vector<double> x = to_doubles(logits);
    const Tensor bias = random_tensor({E}, 6, 0.3);
    for (const Feature& feature : features) {
        MoEConfig c = config(E, feature.topk, feature.function);
        c.moe_router_pre_softmax = feature.pre_softmax;
        c.moe_router_topk_scaling_factor = feature.scale;
        c.moe_router_enable_expert_bias = feature.bias;
        c.moe_router_norm_topk_prob = feature.norm;
        if (feature.groups) c.moe_router_num_groups = 4, c.moe_router_group_topk = 2;
        if (feature.group_score > 0) c.moe_router_group_score_topk = feature.group_score;
        const auto output = route(c, logits, {{"router.expert_bias", bias}});

        Tensor expected = Tensor::empty({T, E}, DType::f64);
        for (std::int64_t t = 0; t < T; ++t) {
            const auto p =
                weigh(c, {x.begin() + t * E, x.begin() + (t + 1) * E},
                      feature.bias ? to_doubles(bias) : std::vector<double>(E, 0.0));
            std::copy(p.begin(), p.end(), expected.data<double>() + t * E);
        }
        EXPECT_TRUE(Close(output.probs, expected, score_bound_of(GetParam())))
            << feature.function;
        EXPECT_EQ(output.routing_map.dtype(), DType::u8);
        const auto map = to_doubles(output.routing_map), p = to_doubles(expected);
        for (std::size_t i = 0; i < map.size(); ++i) ASSERT_EQ(map[i], p[i] != 0.0) << i;

        // The choices, best first.
        const auto chosen = to_doubles(values_.at("topk_idx"));
        ASSERT_EQ(values_.at("topk_idx").shape(), (Shape{T, feature.topk}));
        for (std::int64_t i = 0; i < std::int64_t(chosen.size()); ++i) {
            const double* row = p.data() + i / feature.topk * E;
            ASSERT_NE(row[int(chosen[i])], 0.0);
            if (i % feature.topk > 0 && !feature.bias) {
                ASSERT_GE(std::abs(row[int(chosen[i - 1])]),
                          std::abs(row[int(chosen[i])]));
            }
        }
    }
}

TEST_P(RouterTest, GatesByALinearMap) {
    MoEConfig c = small_config(13, 5, 2);
    c.add_bias_linear = true;
    const Tensor hidden = random_tensor({11, 3, 13}, 1);
    const TensorMap parameters = {{"router.weight", random_tensor({5, 13}, 2)},
                                  {"router.bias", random_tensor({5}, 3)}};
    forward(c, parameters, hidden);
    const auto x = to_doubles(hidden), w = to_doubles(parameters.at("router.weight"));
    Tensor expected = Tensor::empty({33, 5}, DType::f64);
    for (std::int64_t i = 0; i < 33 * 5; ++i)
        expected.data<double>()[i] = std::inner_product(
            x.begin() + i / 5 * 13, x.begin() + (i / 5 + 1) * 13, w.begin() + i % 5 * 13,
            to_doubles(parameters.at("router.bias"))[i % 5]);
    EXPECT_TRUE(Close(values_.at("logits"), expected, bound_of(GetParam())));
}

TEST_P(RouterTest, WeightsSumToTheScalingFactor) {
    const Tensor logits = random_tensor({33, 9}, 7);
    for (const char* function : {"softmax", "sigmoid", "sqrtsoftplus"})
        for (const bool pre_softmax : {false, true}) {
            if (pre_softmax && std::string(function) != "softmax") continue;
            MoEConfig c = config(9, 4, function);
            c.moe_router_pre_softmax = pre_softmax;
            c.moe_router_topk_scaling_factor = 2.5;
            const auto p = to_doubles(route(c, logits).probs);
            for (std::int64_t t = 0; t < 33; ++t) {
                const double sum = std::accumulate(&p[t * 9], &p[t * 9] + 9, 0.0);
                if (pre_softmax)
                    EXPECT_LT(sum, 2.5);  // the others have their share as well
                else
                    EXPECT_NEAR(sum, 2.5, 2.5 * score_bound_of(GetParam()));
            }
            // As in Megatron, a factor of 0 is no factor.
            c.moe_router_topk_scaling_factor = 0.0;
            const Tensor zero = route(c, logits).probs;
            c.moe_router_topk_scaling_factor.reset();
            EXPECT_TRUE(BitwiseEqual(zero, route(c, logits).probs));
        }
}

TEST_P(RouterTest, StaysWithinItsGroups) {
    MoEConfig c = config(20, 7, "sigmoid");
    c.moe_router_num_groups = 5;
    c.moe_router_group_topk = 3;
    const auto map = to_doubles(route(c, random_tensor({65, 20}, 8)).routing_map);
    for (std::int64_t t = 0; t < 65; ++t) {
        std::set<std::int64_t> groups;
        double chosen = 0.0;
        for (std::int64_t e = 0; e < 20; ++e) {
            chosen += map[t * 20 + e];
            if (map[t * 20 + e] != 0.0) groups.insert(e / 4);
        }
        EXPECT_EQ(chosen, 7.0);
        EXPECT_LE(groups.size(), 3u);
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

TEST_P(RouterTest, PrefersTheLowerOfTwoEqualExperts) {
    for (const char* function : {"softmax", "sigmoid", "sqrtsoftplus"}) {
        Tensor logits = random_tensor({129, 7}, 9);
        for (std::int64_t t = 0; t < 129; ++t)
            logits.data<float>()[t * 7 + 5] = logits.data<float>()[t * 7 + 2];
        const auto map = to_doubles(route(config(7, 3, function), logits).routing_map);
        int only_lower = 0;
        for (std::int64_t t = 0; t < 129; ++t) {
            EXPECT_LE(map[t * 7 + 5], map[t * 7 + 2]) << t;
            only_lower += map[t * 7 + 5] < map[t * 7 + 2];
        }
        EXPECT_GT(only_lower, 10) << "the tie must be at the edge now and then";
    }
}

TEST_P(RouterTest, BiasMovesTheChoiceNotTheWeight) {
    MoEConfig c = config(4, 2, "sigmoid");
    c.moe_router_enable_expert_bias = true;
    const Tensor logits = Tensor::from<float>({1, 4}, {2, 1, -1, -2});
    const Tensor bias = Tensor::from<float>({4}, {-1, 0, 0, 1});
    const auto p = to_doubles(route(c, logits, {{"router.expert_bias", bias}}).probs);
    const double s1 = score("sigmoid", 1), s3 = score("sigmoid", -2);
    EXPECT_EQ(p[0], 0.0);
    EXPECT_NEAR(p[1], s1 / (s1 + s3), score_bound_of(GetParam()));
    EXPECT_NEAR(p[3], s3 / (s1 + s3), score_bound_of(GetParam()));
    // One that is not given starts at zero.
    const Tensor zeros = Tensor::zeros({4}, DType::f32);
    EXPECT_TRUE(BitwiseEqual(route(c, logits).probs,
                             route(c, logits, {{"router.expert_bias", zeros}}).probs));
}

TEST_P(RouterTest, RoutesAlikeInTrainingAndOutsideItAndBehindAMask) {
    for (const char* function : {"softmax", "sigmoid"}) {
        MoEConfig c = small_config(13, 5, 2);
        c.moe_router_score_function = function;
        c.moe_router_load_balancing_type = {"aux_loss"};
        c.moe_aux_loss_coeff = {0.1};
        c.moe_z_loss_coeff = 0.1;
        const TensorMap parameters = {{"router.weight", random_tensor({5, 13}, 2)}};
        const Tensor hidden = random_tensor({9, 3, 13}, 1);
        const auto training = forward(c, parameters, hidden);
        const auto eval = forward(c, parameters, hidden, {}, false);
        Tensor mask = Tensor::zeros({9, 3}, DType::u8);
        for (int t : {0, 4, 5, 26}) mask.data<std::uint8_t>()[t] = 1;
        const auto masked = forward(c, parameters, hidden, mask);
        for (const auto* other : {&eval, &masked}) {
            EXPECT_TRUE(BitwiseEqual(other->probs, training.probs));
            EXPECT_TRUE(BitwiseEqual(other->routing_map, training.routing_map));
        }
        EXPECT_EQ(training.losses.read().size(), 2u);
        EXPECT_TRUE(eval.losses.read().empty());
        EXPECT_NE(masked.losses.read(), training.losses.read());
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, RouterTest, testing::ValuesIn(router_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
