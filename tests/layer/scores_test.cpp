// Score functions, top-k and group-limited top-k of every tier, on several rows at once.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/transfer.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Indices = std::vector<std::int64_t>;
using Values = std::vector<double>;

class TopKTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static constexpr std::int64_t kRows = 3;

    /// Small integers: ties everywhere.
    static Values random_keys(std::int64_t count, std::uint64_t seed, int values) {
        const Rng rng(seed);
        Values keys(count);
        for (std::int64_t i = 0; i < count; ++i)
            keys[i] = int(rng.below(i, values)) - values / 2;
        return keys;
    }
    static Tensor one_row(const Values& keys) {
        return Tensor::from({1, std::int64_t(keys.size())}, keys);
    }
    static Indices indices(const Tensor& chosen) {
        const auto* first = chosen.data<std::int64_t>();
        return {first, first + chosen.numel()};
    }
    Indices top_k(const Values& keys, std::int64_t k) const {
        return indices(ops_->top_k(one_row(keys), k));
    }

    /// The largest of one row, lowest index first, taken out one after the other.
    static Indices pick(Values keys, std::int64_t k) {
        Indices picked;
        for (std::int64_t i = 0; i < k; ++i) {
            const auto largest = std::max_element(keys.begin(), keys.end());
            picked.push_back(largest - keys.begin());
            *largest = -std::numeric_limits<double>::infinity();
        }
        return picked;
    }
    /// The picks of every row of kRows, one after the other.
    static Indices pick_rows(const Values& keys, std::int64_t k) {
        Indices picked;
        const std::int64_t count = std::int64_t(keys.size()) / kRows;
        for (auto row = keys.begin(); row != keys.end(); row += count)
            for (std::int64_t index : pick({row, row + count}, k))
                picked.push_back(index);
        return picked;
    }

    const std::unique_ptr<RouterOps> ops_ = make_router_ops(GetParam());
};

TEST_P(TopKTest, TakesTheLargestAndOfEqualsTheFirst) {
    EXPECT_EQ(top_k({1, 3, 2, 3}, 3), (Indices{1, 3, 2}));
    EXPECT_EQ(top_k({-0.0, 0.0}, 2), (Indices{0, 1})) << "zeros are equal";
    EXPECT_EQ(top_k({5}, 1), Indices{0});
    EXPECT_EQ(top_k({5, 6}, 0), Indices{});
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        const std::int64_t count = 1 + std::int64_t(seed % 70);
        const Values keys = random_keys(kRows * count, seed, 2 + int(seed % 9));
        for (std::int64_t k : {std::int64_t{1}, (count + 1) / 2, count})
            ASSERT_EQ(indices(ops_->top_k(Tensor::from({kRows, count}, keys), k)),
                      pick_rows(keys, k))
                << seed;
    }
}

TEST_P(TopKTest, LimitsTheChoiceToTheBestGroups) {
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
        const Rng rng(seed, 1);
        const std::int64_t groups = 2 + rng.below(0, 5), size = 1 + rng.below(1, 4);
        const std::int64_t group_topk = 1 + rng.below(2, std::uint32_t(groups));
        const std::int64_t score_topk = 1 + rng.below(3, std::uint32_t(size));
        const std::int64_t k = 1 + rng.below(4, std::uint32_t(group_topk * size));
        const std::int64_t E = groups * size;
        Values keys = random_keys(kRows * E, seed, 5);
        const Indices got = indices(ops_->group_limited_top_k(
            Tensor::from({kRows, E}, keys), k, groups, group_topk, score_topk));

        // Two steps: the groups with the largest sums, then among their experts.
        Values sums;
        for (std::int64_t g = 0; g < kRows * groups; ++g) {
            Values group(&keys[g * size], &keys[g * size] + size);
            std::sort(group.begin(), group.end(), std::greater<>());
            sums.push_back(
                std::accumulate(group.begin(), group.begin() + score_topk, 0.0));
        }
        const Indices best = pick_rows(sums, group_topk);
        for (std::int64_t i = 0; i < kRows * E; ++i) {
            const auto open = best.begin() + i / E * group_topk;
            if (std::count(open, open + group_topk, i % E / size) == 0)
                keys[i] = -std::numeric_limits<double>::infinity();
        }
        ASSERT_EQ(got, pick_rows(keys, k))
            << groups << " groups of " << size << ", " << group_topk
            << " of them by their " << score_topk << " best, K = " << k;
    }
}

TEST_P(TopKTest, ScoresAGroupByItsBest) {
    // Sums of the 1, 2 and 3 best: {9, 9, 9}, {5, 8, 8} and {4, 8, 11}
    const Tensor keys = one_row({9, 0, 0, 0, 5, 3, 0, 0, 4, 4, 3, 0});
    const auto choose = [&](std::int64_t k, std::int64_t groups, std::int64_t score) {
        return indices(ops_->group_limited_top_k(keys, k, 3, groups, score));
    };
    EXPECT_EQ(choose(5, 2, 1), (Indices{0, 4, 5, 1, 2}));
    EXPECT_EQ(choose(5, 2, 2), (Indices{0, 4, 5, 1, 2})) << "a tie of groups";
    EXPECT_EQ(choose(5, 2, 3), (Indices{0, 8, 9, 10, 1}));
    EXPECT_EQ(choose(1, 2, 3), (Indices{0})) << "fewer experts than groups";
    EXPECT_EQ(choose(1, 1, 3), (Indices{8})) << "the best group, not the best expert";
}

INSTANTIATE_TEST_SUITE_P(Tiers, TopKTest,
                         testing::ValuesIn(with_operations(router_suppliers())),
                         instance_name);

/// Two rows, the second of them backwards: as many values, each in another place.
Tensor there_and_back(const std::vector<float>& row) {
    std::vector<float> both = row;
    both.insert(both.end(), row.rbegin(), row.rend());
    return Tensor::from({2, std::int64_t(row.size())}, both);
}

/// The values by their place in the first row: [i] and [2 N - 1 - i] belong together.
struct BothWays {
    explicit BothWays(const Tensor& tensor) : values(to_doubles(tensor)) {}
    Values at(std::size_t i) const {
        return {values.at(i), values.at(values.size() - 1 - i)};
    }
    Values values;
};

/// Scores and what is made of them, fp32 in every supplier.
class Scores : public testing::TestWithParam<ComponentSpec> {
  protected:
    const std::unique_ptr<RouterOps> ops_ = make_router_ops(GetParam());
};

TEST_P(Scores, AreReadByName) {
    const Tensor zero = Tensor::zeros({1, 1}, DType::f32);
    EXPECT_EQ(to_doubles(ops_->compute_scores("softmax", zero)), Values{1.0});
    EXPECT_EQ(to_doubles(ops_->compute_scores("sigmoid", zero)), Values{0.5});
    EXPECT_NEAR(to_doubles(ops_->compute_scores("sqrtsoftplus", zero))[0],
                std::sqrt(std::log(2.0)), 1e-6);
    EXPECT_THROW(ops_->compute_scores("tanh", zero), InternalError);
}

TEST_P(Scores, FollowTheirFormulas) {
    const std::vector<float> x = {-80, -20, -3, -0.5f, 0, 0.25f, 2, 19.5f, 20.5f, 60};
    const auto scores = [&](const std::string& function) {
        return BothWays(ops_->compute_scores(function, there_and_back(x)));
    };
    const BothWays sigmoid = scores("sigmoid"), root = scores("sqrtsoftplus");
    const BothWays softmax = scores("softmax");
    double total = 0.0;
    for (float value : x) total += std::exp(double(value) - 60.0);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double value = x[i];
        const auto expect_near = [&](const BothWays& got, double expected) {
            for (double s : got.at(i)) EXPECT_NEAR(s, expected, 1e-6 * expected) << value;
        };
        expect_near(sigmoid, 1.0 / (1.0 + std::exp(-value)));
        expect_near(root, std::sqrt(std::log1p(std::exp(value))));
        // Very small shares drown: fp32 has nothing below 1e-45.
        for (double s : softmax.at(i))
            EXPECT_NEAR(s, std::exp(value - 60.0) / total, 1e-6);
    }
    const Tensor large = Tensor::from<float>({1, 2}, {1e30f, 1e30f});
    EXPECT_EQ(to_doubles(ops_->compute_scores("softmax", large)), Values(2, 0.5));
}

TEST_P(Scores, HaveTheSlopesOfTheirFormulas) {
    // Central differences in fp64 of f = Σ ds_e s_e(x).
    const std::vector<double> x = {-3, -0.5, 0.25, 2, 4};
    const std::vector<float> ds = {0.5f, -1, 2, 0.25f, -0.75f};
    const auto f = [&](const std::string& function, const std::vector<double>& at) {
        double total = 0.0, sum = 0.0;
        for (double value : at) total += std::exp(value);
        for (std::size_t e = 0; e < at.size(); ++e)
            sum += ds[e] * (function == "softmax" ? std::exp(at[e]) / total
                            : function == "sigmoid"
                                ? 1.0 / (1.0 + std::exp(-at[e]))
                                : std::sqrt(std::log1p(std::exp(at[e]))));
        return sum;
    };
    for (const std::string function : {"softmax", "sigmoid", "sqrtsoftplus"}) {
        const Tensor xf = there_and_back({x.begin(), x.end()});
        const BothWays dx(ops_->compute_scores_backward(
            function, xf, ops_->compute_scores(function, xf), there_and_back(ds)));
        for (std::size_t e = 0; e < x.size(); ++e) {
            auto above = x, below = x;
            above[e] += 1e-5, below[e] -= 1e-5;
            for (double slope : dx.at(e))
                EXPECT_NEAR(slope, (f(function, above) - f(function, below)) / 2e-5,
                            2e-6);
        }
    }
}

TEST_P(Scores, AreNormalisedWithTheirSlopes) {
    const std::vector<float> s = {0.5f, 0.25f, 1.5f}, dp = {1, -2, 0.5f};
    const BothWays p(ops_->normalize(there_and_back(s)));
    const BothWays ds(ops_->normalize_backward(there_and_back(dp), there_and_back(s)));
    const double mean = (0.5 - 0.5 + 0.75) / 2.25;
    for (std::size_t k = 0; k < 3; ++k) {
        for (double share : p.at(k)) EXPECT_NEAR(share, s[k] / 2.25f, 1e-7);
        for (double slope : ds.at(k)) EXPECT_NEAR(slope, (dp[k] - mean) / 2.25, 1e-6);
    }

    // Nothing to share out: no 0 / 0. What the slopes are then multiplied with is 0 as
    // well.
    const Tensor none = there_and_back({0, 0, 0});
    const BothWays zeros(ops_->normalize(none));
    const BothWays slopes(ops_->normalize_backward(there_and_back({1, 2, 3}), none));
    for (std::size_t k = 0; k < 3; ++k) {
        EXPECT_EQ(zeros.at(k), Values(2, 0.0));
        for (double slope : slopes.at(k))
            EXPECT_FLOAT_EQ(float(slope), float(k + 1) * 1e20f);
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, Scores,
                         testing::ValuesIn(with_operations(fp32_suppliers())),
                         instance_name);

}  // namespace
}  // namespace moe::test
