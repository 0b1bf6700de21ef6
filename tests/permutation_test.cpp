// Permutation: row order, round trips, adjoints, chunk sorting.

#include "reference_cpu/permutation.h"

#include <numeric>

#include "core/rng.h"
#include "core/transfer.h"
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

double inner_product(const Tensor& a, const Tensor& b) {
    const auto x = to_doubles(a), y = to_doubles(b);
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

template <typename Scalar>
class PermutationTest : public testing::Test {
  protected:
    static Tensor random(const Shape& shape, std::uint64_t seed) {
        return transfer(random_tensor(shape, seed),
                        {MemorySpace::host, dtype_of<Scalar>});
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(PermutationTest, Scalars);

TEST(RowMap, OrdersRowsByExpertThenToken) {
    const Tensor routing = random_map(257, 7, 1);
    const cpu::RowMap map = cpu::make_row_map(routing);
    std::int64_t routed = 0;
    for (double entry : to_doubles(routing)) routed += entry != 0.0;
    ASSERT_EQ(map.num_rows(), routed);
    for (std::int64_t r = 0; r < map.num_rows(); ++r) {
        EXPECT_EQ(routing.data<std::uint8_t>()[map.row_token[r] * 7 + map.row_expert[r]],
                  1);
        if (r == 0) continue;
        EXPECT_LT(std::pair(map.row_expert[r - 1], map.row_token[r - 1]),
                  std::pair(map.row_expert[r], map.row_token[r]));
    }
    EXPECT_EQ(map.tokens_per_expert[1], 0);
    EXPECT_EQ(std::accumulate(map.tokens_per_expert.begin(), map.tokens_per_expert.end(),
                              std::int64_t{0}),
              routed);
}

TYPED_TEST(PermutationTest, IsIdentityOnTheWayBackWithEqualWeights) {
    // Every token visits experts t mod 5 and t mod 5 + 1: K = 2.
    constexpr std::int64_t T = 33, E = 6, H = 20;
    Tensor routing = Tensor::zeros({T, E}, DType::u8);
    for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t k = 0; k < 2; ++k)
            routing.data<std::uint8_t>()[t * E + t % 5 + k] = 1;
    const cpu::RowMap map = cpu::make_row_map(routing);
    const Tensor x = this->random({T, H}, 2);
    Tensor rows = cpu::permute<TypeParam>(x, map);
    for (std::int64_t i = 0; i < rows.numel(); ++i)
        rows.template data<TypeParam>()[i] *= TypeParam(0.5);
    EXPECT_TRUE(BitwiseEqual(cpu::unpermute<TypeParam>(rows, map), x));
}

TYPED_TEST(PermutationTest, BackwardsAreAdjoint) {
    const cpu::RowMap map = cpu::make_row_map(random_map(37, 5, 3));
    const std::int64_t N = map.num_rows();
    const Tensor x = this->random({37, 11}, 4), y = this->random({N, 11}, 5);
    EXPECT_NEAR(inner_product(cpu::permute<TypeParam>(x, map), y),
                inner_product(x, cpu::permute_backward<TypeParam>(y, map)), 1e-3);
    EXPECT_NEAR(inner_product(cpu::unpermute<TypeParam>(y, map), x),
                inner_product(y, cpu::unpermute_backward<TypeParam>(x, map)), 1e-3);
    const Tensor p = this->random({37, 5}, 6), dp = this->random({N}, 7);
    EXPECT_NEAR(inner_product(cpu::permute_probs<TypeParam>(p, map), dp),
                inner_product(p, cpu::permute_probs_backward<TypeParam>(dp, map)), 1e-4);
}

TYPED_TEST(PermutationTest, TakesNoTokensAndNoRows) {
    const cpu::RowMap none = cpu::make_row_map(Tensor::zeros({0, 4}, DType::u8));
    EXPECT_EQ(cpu::permute<TypeParam>(this->random({0, 3}, 1), none).shape(),
              (Shape{0, 3}));
    const cpu::RowMap unrouted = cpu::make_row_map(Tensor::zeros({5, 4}, DType::u8));
    const Tensor sums = cpu::unpermute<TypeParam>(this->random({0, 3}, 1), unrouted);
    for (double value : to_doubles(sums)) EXPECT_EQ(value, 0.0);
}

// The orders that Megatron's dispatcher uses for ETP = 2, EP = 2, two local experts.
TYPED_TEST(PermutationTest, SortsChunksThereAndBack) {
    const std::vector<std::int64_t> sizes = {3, 0, 1, 4, 2, 5, 0, 1};
    const std::vector<std::int64_t> there = {0, 2, 4, 6, 1, 3, 5, 7};
    const std::vector<std::int64_t> back = {0, 4, 1, 5, 2, 6, 3, 7};
    std::vector<std::int64_t> sorted_sizes;
    for (std::int64_t chunk : there) sorted_sizes.push_back(sizes[chunk]);
    const Tensor rows = this->random({16, 3}, 8);
    const Tensor sorted = cpu::sort_chunks_by_idxs<TypeParam>(rows, sizes, there);
    // The second chunk there is chunk 2, whose only row is row 3.
    for (int j = 0; j < 3; ++j)
        EXPECT_EQ(sorted.template data<TypeParam>()[3 * 3 + j],
                  rows.template data<TypeParam>()[3 * 3 + j]);
    // The third is chunk 4: rows 8 and 9.
    for (int j = 0; j < 6; ++j)
        EXPECT_EQ(sorted.template data<TypeParam>()[4 * 3 + j],
                  rows.template data<TypeParam>()[8 * 3 + j]);
    EXPECT_TRUE(BitwiseEqual(
        cpu::sort_chunks_by_idxs<TypeParam>(sorted, sorted_sizes, back), rows));
}

}  // namespace
}  // namespace moe::test
