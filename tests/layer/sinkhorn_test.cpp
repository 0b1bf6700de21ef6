// Sinkhorn routing: balanced affinities choose in training, plain scores outside it.

#include <chrono>
#include <cmath>
#include <numeric>

#include "core/transfer.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

/// The loop as Megatron has it, in fp64. Empty when `most` rounds do not settle it.
/// @param tolerance  below 0: all rounds, wherever they lead
std::vector<double> sinkhorn_loop(const std::vector<double>& x, std::int64_t T,
                                  std::int64_t E, int most = 10'000,
                                  double tolerance = 1e-4) {
    std::vector<double> cost(x.size()), d0(T, 1.0), d1(E, 1.0);
    for (std::size_t i = 0; i < x.size(); ++i) cost[i] = std::exp(x[i]);
    for (int round = 0; round < most; ++round) {
        double error = 0.0;
        for (std::int64_t t = 0; t < T; ++t) {
            double sum = 0.0;
            for (std::int64_t e = 0; e < E; ++e) sum += d1[e] * cost[t * E + e];
            d0[t] = 1.0 / double(T) / (sum + 1e-8);
        }
        for (std::int64_t e = 0; e < E; ++e) {
            double sum = 0.0;
            for (std::int64_t t = 0; t < T; ++t) sum += d0[t] * cost[t * E + e];
            const double previous = d1[e];
            d1[e] = 1.0 / double(E) / (sum + 1e-8);
            error += std::abs(previous - d1[e]) / double(E);
        }
        if (error > tolerance && (tolerance >= 0.0 || round + 1 < most)) continue;
        for (std::int64_t i = 0; i < T * E; ++i) cost[i] *= d0[i / E] * d1[i % E];
        return cost;
    }
    return {};
}

class SinkhornTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    Tensor sinkhorn(const Tensor& logits) const { return ops_->sinkhorn(logits); }
    static Tensor matrix(const Shape& shape, const std::vector<float>& values) {
        return Tensor::from<float>(shape, values);
    }
    const std::unique_ptr<RouterOps> ops_ = make_router_ops(GetParam());
};

TEST_P(SinkhornTest, BalancesRowsAndColumns) {
    for (auto [T, E] : {std::pair<std::int64_t, std::int64_t>{21, 5}, {5, 21}, {1, 3}}) {
        const auto d = to_doubles(sinkhorn(random_tensor({T, E}, 1)));
        std::vector<double> rows(T), columns(E);
        for (std::int64_t i = 0; i < T * E; ++i)
            rows[i / E] += d[i], columns[i % E] += d[i];
        for (double row : rows) EXPECT_NEAR(row, 1.0 / double(T), 1e-3 / double(T));
        for (double column : columns) EXPECT_NEAR(column, 1.0 / double(E), 1e-5);
    }
    EXPECT_EQ(sinkhorn(Tensor::zeros({0, 3}, DType::f32)).shape(), (Shape{0, 3}));
}

TEST_P(SinkhornTest, FollowsTheLoop) {
    const auto follows = [&](const Tensor& logits, double bound) {
        const auto expected =
            sinkhorn_loop(to_doubles(logits), logits.dim(0), logits.dim(1));
        return Close(sinkhorn(logits), Tensor::from(logits.shape(), expected), bound);
    };
    EXPECT_TRUE(follows(random_tensor({33, 7}, 2), 1e-5));
    EXPECT_TRUE(follows(random_tensor({7, 33}, 3, 2.0), 1e-4));
    // So small that the loop's epsilon shows.
    EXPECT_TRUE(follows(matrix({2, 2}, {-30, -30, -30, -30}), 1e-4));
    // Hundreds of rounds, not only a few.
    EXPECT_TRUE(follows(matrix({2, 2}, {9, 0, 0, 0}), 1e-2));
}

TEST_P(SinkhornTest, RejectsWhatExpCannotHold) {
    EXPECT_NO_THROW(sinkhorn(matrix({2, 2}, {88, 88, 88, 88})));
    EXPECT_TRUE(Rejects(
        [&] {
            sinkhorn(matrix({2, 2}, {0, 0, 90, 0}));
        },
        {"logits = 90", "at most 88"}));
}

/// The affinities, as the loop has them after so many rounds.
std::vector<double> after_rounds(const Tensor& logits, int rounds) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    return sinkhorn_loop(to_doubles(logits), T, E, rounds, -1.0);
}

// Megatron's loop would end by luck, or not at all: the factors drift, each by the same
// share, and what they make of the logits stands still.
TEST_P(SinkhornTest, EndsWhereFactorsRestBesideTheirSize) {
    // Uneven as those of an untrained router with large hidden states
    const Tensor drifting =
        matrix({5, 3}, {-16, -21, -8, -18, 15, 13, -7, -6, -8, -10, -28, 29, 9, 24, 25});
    const Tensor slow = matrix({2, 2}, {0, 0, -100, 0});
    for (const Tensor& logits : {drifting, slow}) {
        const std::int64_t T = logits.dim(0), E = logits.dim(1);
        ASSERT_TRUE(sinkhorn_loop(to_doubles(logits), T, E).empty());
        const auto expected = after_rounds(logits, 5'000);
        EXPECT_TRUE(Close(sinkhorn(logits), Tensor::from({T, E}, expected), 1e-3));
    }
    EXPECT_TRUE(Close(sinkhorn(drifting),
                      Tensor::from({5, 3}, after_rounds(drifting, 1'000)), 1e-5));
}

TEST_P(SinkhornTest, RejectsWhatNeverSettles) {
    for (const auto& [logits, range] :
         {std::pair(matrix({1, 4}, {40, 0, 0, 39}), "logits = 0 to 40: "),
          std::pair(matrix({2, 4}, {0, 10, 20, 20, -12, 40, 0, 20}),
                    "logits = -12 to 40: ")}) {
        const auto start = std::chrono::steady_clock::now();
        EXPECT_TRUE(Rejects([&] { sinkhorn(logits); },
                            {range, "too uneven for sinkhorn", "after 8000 rounds"}));
        EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::minutes(1));
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, SinkhornTest,
                         testing::ValuesIn(with_operations(router_suppliers())),
                         instance_name);

/// Sinkhorn behind the router; the weight is the identity, so logits are what is given.
class SinkhornRouter : public testing::TestWithParam<ComponentSpec> {
  protected:
    Router::Output route(std::int64_t topk, const Tensor& logits, bool training) {
        const std::int64_t T = logits.dim(0), E = logits.dim(1);
        MoEConfig c = small_config(E, E, topk);
        c.moe_router_load_balancing_type = {"sinkhorn"};
        // Sinkhorn knows none of these.
        c.moe_router_score_function = "sqrtsoftplus";
        c.moe_router_pre_softmax = true;
        c.moe_router_topk_scaling_factor = 2.5;
        router_ = make_router(GetParam(), c, {{"router.weight", identity_matrix(E)}});
        return dense_forward(*router_,
                             transfer(logits.reshaped({T, 1, E}), router_->placement()),
                             {}, {.training = training, .observer = &values_});
    }

    std::unique_ptr<Router> router_;
    ValueRecorder values_;
};

/// The K largest of every row, of equal ones the first, as a map.
std::vector<double> largest(const std::vector<double>& keys, std::int64_t E,
                            std::int64_t K) {
    std::vector<double> map(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        const double* row = &keys[i / E * E];
        std::int64_t better = 0;
        for (std::int64_t e = 0; e < E; ++e)
            better += row[e] > keys[i] || (row[e] == keys[i] && e < std::int64_t(i) % E);
        map[i] = better < K;
    }
    return map;
}

TEST_P(SinkhornRouter, ChoosesByBalanceAndWeighsByScore) {
    constexpr std::int64_t T = 65, E = 7;
    const Tensor logits = random_tensor({T, E}, 5);
    const auto x = to_doubles(logits), balanced = sinkhorn_loop(x, T, E);
    for (std::int64_t K : {1, 2, 3}) {
        Tensor scores = Tensor::empty({T, E}, DType::f64);
        for (std::int64_t i = 0; i < T * E; ++i) {
            double total = 0.0;
            for (std::int64_t e = 0; e < E; ++e) total += std::exp(x[i / E * E + e]);
            scores.data<double>()[i] =
                K == 1 ? 1.0 / (1.0 + std::exp(-x[i])) : std::exp(x[i]) / total;
        }
        for (bool training : {true, false}) {
            const auto output = route(K, logits, training);
            const auto map = largest(training ? balanced : to_doubles(scores), E, K);
            EXPECT_EQ(to_doubles(output.routing_map), map) << K << training;
            Tensor expected = scores.clone();  // not renormalised
            for (std::int64_t i = 0; i < T * E; ++i) expected.data<double>()[i] *= map[i];
            // The sigmoid is in the router's own precision, the softmax in fp32.
            // optimized_gpu has all scores in fp32.
            const bool exact = K == 1 && GetParam().tier != "optimized_gpu";
            const double bound =
                exact ? bound_of(GetParam()) : score_bound_of(GetParam());
            EXPECT_TRUE(Close(output.probs, expected, bound)) << K;
            EXPECT_TRUE(output.losses.read().empty());
        }
        EXPECT_NE(largest(balanced, E, K), largest(to_doubles(scores), E, K));
    }
}

TEST_P(SinkhornRouter, SpreadsWhatEverybodyLikes) {
    // Everybody likes experts 0 and 1; balancing sends some elsewhere, evaluation does
    // not.
    Tensor logits = random_tensor({32, 6}, 8, 0.1);
    for (std::int64_t t = 0; t < 32; ++t)
        for (std::int64_t e : {0, 1}) logits.data<float>()[t * 6 + e] += 3.0f;
    const auto elsewhere = [&](bool training) {
        const auto map = to_doubles(route(2, logits, training).routing_map);
        double sum = 0.0;
        for (std::size_t i = 0; i < map.size(); ++i) sum += i % 6 < 2 ? 0.0 : map[i];
        return sum;
    };
    EXPECT_EQ(elsewhere(false), 0.0);
    EXPECT_GT(elsewhere(true), 16.0);
}

TEST_P(SinkhornRouter, GivesTiesToTheLowerExpert) {
    for (bool training : {true, false}) {
        const auto map =
            to_doubles(route(2, Tensor::zeros({5, 4}, DType::f32), training).routing_map);
        for (std::size_t i = 0; i < map.size(); ++i) EXPECT_EQ(map[i], i % 4 < 2);
    }
}

// With one expert through its own sigmoid alone, with several through the whole softmax:
// p_e of the chosen, so dx_e = s_e (g_e - Σ_chosen g s) for every e.
TEST_P(SinkhornRouter, HasAGradientThroughTheScoresOnly) {
    constexpr std::int64_t T = 17, E = 5;
    const Tensor logits = random_tensor({T, E}, 6), dprobs = random_tensor({T, E}, 7);
    const auto x = to_doubles(logits), g = to_doubles(dprobs);
    for (std::int64_t K : {1, 3}) {
        const auto output = route(K, logits, true);
        const auto map = to_doubles(output.routing_map);
        Tensor dhidden =
            transfer(Tensor::zeros({T, E}, DType::f32), router_->placement()).clone();
        TensorMap gradients;
        dense_backward(*router_, dhidden, gradients,
                       transfer(dprobs, router_->placement()), *output.saved, {});
        Tensor expected = Tensor::empty({T, E}, DType::f64);
        for (std::int64_t t = 0; t < T; ++t) {
            double total = 0.0, mean = 0.0;
            for (std::int64_t i = t * E; i < (t + 1) * E; ++i) total += std::exp(x[i]);
            for (std::int64_t i = t * E; i < (t + 1) * E; ++i)
                mean += map[i] * g[i] * std::exp(x[i]) / total;
            for (std::int64_t i = t * E; i < (t + 1) * E; ++i) {
                const double s =
                    K == 1 ? 1.0 / (1.0 + std::exp(-x[i])) : std::exp(x[i]) / total;
                expected.data<double>()[i] =
                    K == 1 ? map[i] * g[i] * s * (1.0 - s) : s * (map[i] * g[i] - mean);
            }
        }
        EXPECT_TRUE(Close(dhidden, expected, score_bound_of(GetParam()))) << K;
    }
}

TEST_P(SinkhornRouter, TakesNoTokens) {
    const Tensor none = Tensor::zeros({0, 5}, DType::f32);
    EXPECT_EQ(route(2, none, true).probs.shape(), (Shape{0, 5}));
    EXPECT_EQ(route(1, none, false).routing_map.shape(), (Shape{0, 5}));
}

INSTANTIATE_TEST_SUITE_P(Tiers, SinkhornRouter, testing::ValuesIn(router_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
