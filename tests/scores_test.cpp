// Score functions, top-k and group-limited top-k of the reference, one row at a time.

#include "reference_cpu/scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Indices = std::vector<std::int64_t>;

template <typename Key>
class TopKTest : public testing::Test {
  protected:
    /// Small integers: ties everywhere.
    static std::vector<Key> random_keys(std::int64_t count, std::uint64_t seed,
                                        int values) {
        const Rng rng(seed);
        std::vector<Key> keys(count);
        for (std::int64_t i = 0; i < count; ++i)
            keys[i] = static_cast<Key>(int(rng.below(i, values)) - values / 2);
        return keys;
    }
    static Indices top_k(const std::vector<Key>& keys, std::int64_t k) {
        return cpu::top_k(std::span<const Key>(keys), k);
    }

    /// The largest, lowest index first, taken out one after the other.
    static Indices pick(std::vector<Key> keys, std::int64_t k) {
        Indices picked;
        for (std::int64_t i = 0; i < k; ++i) {
            const auto largest = std::max_element(keys.begin(), keys.end());
            picked.push_back(largest - keys.begin());
            *largest = -std::numeric_limits<Key>::infinity();
        }
        return picked;
    }
};
using Keys = testing::Types<float, double>;
TYPED_TEST_SUITE(TopKTest, Keys);

TYPED_TEST(TopKTest, TakesTheLargestAndOfEqualsTheFirst) {
    EXPECT_EQ(this->top_k({1, 3, 2, 3}, 3), (Indices{1, 3, 2}));
    EXPECT_EQ(this->top_k({-0.0, 0.0}, 2), (Indices{0, 1})) << "zeros are equal";
    EXPECT_EQ(this->top_k({5}, 1), Indices{0});
    EXPECT_EQ(this->top_k({5, 6}, 0), Indices{});
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        const std::int64_t count = 1 + std::int64_t(seed % 70);
        const auto keys = this->random_keys(count, seed, 2 + int(seed % 9));
        for (std::int64_t k : {std::int64_t{1}, (count + 1) / 2, count})
            ASSERT_EQ(this->top_k(keys, k), this->pick(keys, k)) << seed;
    }
}

TYPED_TEST(TopKTest, LimitsTheChoiceToTheBestGroups) {
    for (std::uint64_t seed = 0; seed < 300; ++seed) {
        const Rng rng(seed, 1);
        const std::int64_t groups = 2 + rng.below(0, 5), size = 1 + rng.below(1, 4);
        const std::int64_t group_topk = 1 + rng.below(2, std::uint32_t(groups));
        const std::int64_t most = group_topk * size;
        const std::int64_t k =
            group_topk + rng.below(3, std::uint32_t(most - group_topk + 1));
        auto keys = this->random_keys(groups * size, seed, 5);

        // Two steps: the groups with the largest sums, then among their experts.
        std::vector<TypeParam> sums;
        for (std::int64_t g = 0; g < groups; ++g) {
            std::vector<TypeParam> group(&keys[g * size], &keys[g * size] + size);
            std::sort(group.begin(), group.end(), std::greater<>());
            sums.push_back(std::accumulate(group.begin(), group.begin() + k / group_topk,
                                           TypeParam(0)));
        }
        const Indices best = this->pick(sums, group_topk);
        const auto got = cpu::group_limited_top_k(std::span<const TypeParam>(keys), k,
                                                  groups, group_topk);
        for (std::int64_t e = 0; e < groups * size; ++e)
            if (std::count(best.begin(), best.end(), e / size) == 0)
                keys[e] = -std::numeric_limits<TypeParam>::infinity();
        ASSERT_EQ(got, this->pick(keys, k)) << groups << " groups of " << size << ", "
                                            << group_topk << " of them, K = " << k;
    }
}

TYPED_TEST(TopKTest, RoundsTheGroupsShareDown) {
    // K = 5 of 2 groups: a group counts by its ⌊5 / 2⌋ = 2 best, {9, 0}, {5, 3} and {4,
    // 3}, so groups 0 and 1 are open. By their three best, group 2 would be.
    const std::vector<TypeParam> keys = {9, 0, 0, 0, 5, 3, 0, 0, 4, 3, 3, 0};
    EXPECT_EQ(cpu::group_limited_top_k(std::span<const TypeParam>(keys), 5, 3, 2),
              (Indices{0, 4, 5, 1, 2}));
}

using cpu::ScoreFunction;

std::vector<float> scores(ScoreFunction function, const std::vector<float>& x) {
    std::vector<float> s(x.size(), NAN);
    cpu::compute_scores(s, function, x);
    return s;
}

TEST(Scores, AreReadByName) {
    EXPECT_EQ(cpu::parse_score_function("softmax"), ScoreFunction::softmax);
    EXPECT_EQ(cpu::parse_score_function("sigmoid"), ScoreFunction::sigmoid);
    EXPECT_EQ(cpu::parse_score_function("sqrtsoftplus"), ScoreFunction::sqrtsoftplus);
    EXPECT_THROW(cpu::parse_score_function("tanh"), InternalError);
}

TEST(Scores, FollowTheirFormulas) {
    const std::vector<float> x = {-80, -20, -3, -0.5f, 0, 0.25f, 2, 19.5f, 20.5f, 60};
    const auto sigmoid = scores(ScoreFunction::sigmoid, x);
    const auto root = scores(ScoreFunction::sqrtsoftplus, x);
    const auto softmax = scores(ScoreFunction::softmax, x);
    double total = 0.0;
    for (float value : x) total += std::exp(double(value) - 60.0);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double value = x[i];
        const auto expect_near = [&](float got, double expected) {
            EXPECT_NEAR(got, expected, 1e-6 * expected) << value;
        };
        expect_near(sigmoid[i], 1.0 / (1.0 + std::exp(-value)));
        expect_near(root[i], std::sqrt(std::log1p(std::exp(value))));
        // Very small shares drown: fp32 has nothing below 1e-45.
        EXPECT_NEAR(softmax[i], std::exp(value - 60.0) / total, 1e-6);
    }
    for (float s : scores(ScoreFunction::softmax, {1e30f, 1e30f})) EXPECT_EQ(s, 0.5f);
}

TEST(Scores, HaveTheSlopesOfTheirFormulas) {
    // Central differences in fp64 of f = Σ ds_e s_e(x).
    const std::vector<double> x = {-3, -0.5, 0.25, 2, 4};
    const std::vector<float> ds = {0.5f, -1, 2, 0.25f, -0.75f};
    const auto f = [&](ScoreFunction function, const std::vector<double>& at) {
        double total = 0.0, sum = 0.0;
        for (double value : at) total += std::exp(value);
        for (std::size_t e = 0; e < at.size(); ++e)
            sum += ds[e] * (function == ScoreFunction::softmax ? std::exp(at[e]) / total
                            : function == ScoreFunction::sigmoid
                                ? 1.0 / (1.0 + std::exp(-at[e]))
                                : std::sqrt(std::log1p(std::exp(at[e]))));
        return sum;
    };
    for (auto function :
         {ScoreFunction::softmax, ScoreFunction::sigmoid, ScoreFunction::sqrtsoftplus}) {
        const std::vector<float> xf(x.begin(), x.end());
        std::vector<float> dx(x.size(), NAN);
        cpu::compute_scores_backward(dx, function, xf, scores(function, xf), ds);
        for (std::size_t e = 0; e < x.size(); ++e) {
            auto above = x, below = x;
            above[e] += 1e-5, below[e] -= 1e-5;
            EXPECT_NEAR(dx[e], (f(function, above) - f(function, below)) / 2e-5, 2e-6);
        }
    }
}

TEST(Scores, AreNormalisedWithTheirSlopes) {
    const std::vector<float> s = {0.5f, 0.25f, 1.5f}, dp = {1, -2, 0.5f};
    std::vector<float> p = s, ds = dp;
    cpu::normalize(p);
    for (std::size_t k = 0; k < 3; ++k) EXPECT_NEAR(p[k], s[k] / 2.25f, 1e-7);
    cpu::normalize_backward(ds, s);
    const double mean = (0.5 - 0.5 + 0.75) / 2.25;
    for (std::size_t k = 0; k < 3; ++k) EXPECT_NEAR(ds[k], (dp[k] - mean) / 2.25, 1e-6);

    // Nothing to share out: no 0 / 0. What the slopes are then multiplied with is 0 as
    // well.
    std::vector<float> zeros(3, 0.0f), slopes = {1, 2, 3};
    cpu::normalize(zeros);
    cpu::normalize_backward(slopes, std::vector<float>(3, 0.0f));
    for (std::size_t k = 0; k < 3; ++k) {
        EXPECT_EQ(zeros[k], 0.0f);
        EXPECT_FLOAT_EQ(slopes[k], float(k + 1) * 1e20f);
    }
}

}  // namespace
}  // namespace moe::test
