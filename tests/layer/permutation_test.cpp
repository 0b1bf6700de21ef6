// Permutation: row order, round trips, adjoints, chunk sorting.

#include <cmath>
#include <numeric>

#include "core/rng.h"
#include "core/transfer.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

/// A map in which every entry is 1 with probability one third; column 1 stays empty.
Tensor random_map(std::int64_t T, std::int64_t E, std::uint64_t seed) {
    Tensor map = Tensor::zeros({T, E}, DType::u8);
    const Rng rng(seed);
    for (std::int64_t i = 0; i < T * E; ++i)
        map.data<std::uint8_t>()[i] = i % E != 1 && rng.below(i, 3) == 0;
    return map;
}

/// Every token visits `count` neighbouring experts, the first by its number.
Tensor regular_map(std::int64_t T, std::int64_t E, std::int64_t count) {
    Tensor map = Tensor::zeros({T, E}, DType::u8);
    for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t k = 0; k < count; ++k)
            map.data<std::uint8_t>()[t * E + (t + k) % E] = 1;
    return map;
}

double inner_product(const Tensor& a, const Tensor& b) {
    const auto x = to_doubles(a), y = to_doubles(b);
    EXPECT_EQ(a.shape(), b.shape());
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

class PermutationTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static Tensor in_dtype(const Tensor& tensor) {
        return transfer(tensor, {MemorySpace::host, GetParam().dtype});
    }
    static Tensor random(const Shape& shape, std::uint64_t seed) {
        return in_dtype(random_tensor(shape, seed));
    }
    /// Small integers, of which every sum is exact in every dtype.
    static Tensor random_integers(const Shape& shape, std::uint64_t seed) {
        std::vector<double> values = to_doubles(random_tensor(shape, seed, 4.0));
        for (double& value : values) value = std::round(value);
        return in_dtype(Tensor::from(shape, values));
    }
    const std::unique_ptr<RowOps> ops_ = make_row_ops(GetParam());
};

TEST_P(PermutationTest, OrdersRowsByExpertThenToken) {
    for (auto [T, E] : {std::pair<std::int64_t, std::int64_t>{257, 7}, {1, 3}, {31, 2}}) {
        const Tensor routing = random_map(T, E, 1);
        const RowMap map = ops_->make_row_map(routing);
        std::int64_t routed = 0;
        for (double entry : to_doubles(routing)) routed += entry != 0.0;
        ASSERT_EQ(map.num_rows(), routed);
        for (std::int64_t r = 0; r < map.num_rows(); ++r) {
            const std::int64_t at = map.row_token[r] * E + map.row_expert[r];
            EXPECT_EQ(routing.data<std::uint8_t>()[at], 1);
            if (r == 0) continue;
            EXPECT_LT(std::pair(map.row_expert[r - 1], map.row_token[r - 1]),
                      std::pair(map.row_expert[r], map.row_token[r]));
        }
        EXPECT_EQ(map.tokens_per_expert[1], 0);
        EXPECT_EQ(std::accumulate(map.tokens_per_expert.begin(),
                                  map.tokens_per_expert.end(), std::int64_t{0}),
                  routed);
    }
}

TEST_P(PermutationTest, FindsEveryRowOfATokenInOrder) {
    const RowMap map = ops_->make_row_map(random_map(65, 6, 2));
    ASSERT_EQ(map.token_rows.size(), map.row_token.size());
    ASSERT_EQ(map.token_offsets.size(), 66u);
    EXPECT_EQ(map.token_offsets.front(), 0);
    EXPECT_EQ(map.token_offsets.back(), map.num_rows());
    std::int64_t i = 0;
    for (std::int64_t t = 0; t < 65; ++t)
        for (std::int64_t r = 0; r < map.num_rows(); ++r)
            if (map.row_token[r] == t) {
                EXPECT_EQ(map.token_rows[i], r);
                EXPECT_LE(map.token_offsets[t], i);
                EXPECT_GT(map.token_offsets[t + 1], i++);
            }
}

TEST_P(PermutationTest, CopiesEachTokenToItsRows) {
    const Tensor routing = random_map(37, 5, 3);
    const RowMap map = ops_->make_row_map(routing);
    const Tensor x = random({37, 11}, 4), p = random({37, 5}, 5);
    const auto rows = to_doubles(ops_->permute(x, routing));
    const auto row_probs = to_doubles(ops_->permute_probs(p, routing));
    ASSERT_EQ(std::int64_t(rows.size()), map.num_rows() * 11);
    ASSERT_EQ(std::int64_t(row_probs.size()), map.num_rows());
    for (std::int64_t r = 0; r < map.num_rows(); ++r) {
        const std::int64_t t = map.row_token[r];
        EXPECT_EQ(row_probs[r], to_doubles(p)[t * 5 + map.row_expert[r]]);
        for (std::int64_t j = 0; j < 11; ++j)
            ASSERT_EQ(rows[r * 11 + j], to_doubles(x)[t * 11 + j]);
    }
}

TEST_P(PermutationTest, IsIdentityOnTheWayBackWithEqualWeights) {
    for (std::int64_t K : {1, 2, 4}) {
        const Tensor routing = regular_map(33, 6, K), x = random({33, 20}, 2);
        std::vector<double> shares = to_doubles(ops_->permute(x, routing));
        for (double& share : shares) share /= double(K);  // exact: powers of two
        const Tensor rows = in_dtype(Tensor::from({33 * K, 20}, shares));
        EXPECT_TRUE(BitwiseEqual(ops_->unpermute(rows, routing), x));
        EXPECT_TRUE(BitwiseEqual(ops_->permute_backward(rows, routing), x));
    }
}

TEST_P(PermutationTest, BackwardsAreAdjoint) {
    const Tensor map = random_map(37, 5, 3);
    const std::int64_t N = ops_->make_row_map(map).num_rows();
    const Tensor x = random_integers({37, 11}, 4), y = random_integers({N, 11}, 5);
    EXPECT_EQ(inner_product(ops_->permute(x, map), y),
              inner_product(x, ops_->permute_backward(y, map)));
    EXPECT_EQ(inner_product(ops_->unpermute(y, map), x),
              inner_product(y, ops_->unpermute_backward(x, map)));
    const Tensor p = random_integers({37, 5}, 6), dp = random_integers({N}, 7);
    EXPECT_EQ(inner_product(ops_->permute_probs(p, map), dp),
              inner_product(p, ops_->permute_probs_backward(dp, map)));
}

TEST_P(PermutationTest, TakesNoTokensAndNoRows) {
    const Tensor none = Tensor::zeros({0, 4}, DType::u8);
    EXPECT_EQ(ops_->permute(random({0, 3}, 1), none).shape(), (Shape{0, 3}));
    EXPECT_EQ(ops_->unpermute(random({0, 3}, 1), none).shape(), (Shape{0, 3}));
    EXPECT_EQ(ops_->make_row_map(none).tokens_per_expert, std::vector<std::int64_t>(4));
    const Tensor unrouted = Tensor::zeros({5, 4}, DType::u8);
    const Tensor sums = ops_->unpermute(random({0, 3}, 1), unrouted);
    EXPECT_EQ(sums.shape(), (Shape{5, 3}));
    for (double value : to_doubles(sums)) EXPECT_EQ(value, 0.0);
    const Tensor dprobs = ops_->permute_probs_backward(random({0}, 1), unrouted);
    EXPECT_EQ(to_doubles(dprobs), std::vector<double>(20));
}

// The orders that Megatron's dispatcher uses for ETP = 2, EP = 2, two local experts.
TEST_P(PermutationTest, SortsChunksThereAndBack) {
    const std::vector<std::int64_t> sizes = {3, 0, 1, 4, 2, 5, 0, 1};
    const std::vector<std::int64_t> there = {0, 2, 4, 6, 1, 3, 5, 7};
    const std::vector<std::int64_t> back = {0, 4, 1, 5, 2, 6, 3, 7};
    const Tensor rows = random({16, 3}, 8);
    const Tensor sorted = ops_->sort_chunks_by_idxs(rows, sizes, there);

    // Row by row: chunks begin at 0, 3, 3, 4, 8, 10, 15 and 15.
    const std::vector<std::int64_t> expected = {0, 1, 2, 3, 8,  9,  // 0, 2, 4 (6: none)
                                                4, 5, 6, 7, 10, 11, 12, 13, 14, 15};
    for (std::size_t r = 0; r < expected.size(); ++r)
        for (std::int64_t j = 0; j < 3; ++j)
            ASSERT_EQ(to_doubles(sorted)[r * 3 + j],
                      to_doubles(rows)[expected[r] * 3 + j]);

    std::vector<std::int64_t> sorted_sizes;
    for (std::int64_t chunk : there) sorted_sizes.push_back(sizes[chunk]);
    EXPECT_TRUE(
        BitwiseEqual(ops_->sort_chunks_by_idxs(sorted, sorted_sizes, back), rows));
}

TEST_P(PermutationTest, UndoesAnyOrderOfChunks) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const Rng rng(seed);
        const std::int64_t count = 1 + rng.below(0, 9);
        std::vector<std::int64_t> sizes(count), order(count), sorted_sizes,
            inverse(count);
        for (std::int64_t i = 0; i < count; ++i) {
            sizes[i] = rng.below(100 + i, 5);
            order[i] = i;
            std::swap(order[i], order[rng.below(200 + i, std::uint32_t(i + 1))]);
        }
        for (std::int64_t i = 0; i < count; ++i) {
            sorted_sizes.push_back(sizes[order[i]]);
            inverse[order[i]] = i;
        }
        const Tensor rows = random(
            {std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}), 3}, seed);
        const Tensor sorted = ops_->sort_chunks_by_idxs(rows, sizes, order);
        EXPECT_TRUE(
            BitwiseEqual(ops_->sort_chunks_by_idxs(sorted, sorted_sizes, inverse), rows));
    }
    const Tensor rows = random({4, 3}, 1);
    EXPECT_THROW(ops_->sort_chunks_by_idxs(rows, {2, 1}, {0, 1}), InternalError);
    EXPECT_THROW(ops_->sort_chunks_by_idxs(rows, {2, 2}, {0}), InternalError);
}

INSTANTIATE_TEST_SUITE_P(Tiers, PermutationTest,
                         testing::ValuesIn(with_operations(available_suppliers())),
                         instance_name);

}  // namespace
}  // namespace moe::test
