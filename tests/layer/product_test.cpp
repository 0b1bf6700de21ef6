// The reference's products: every shape of tile, strided factors, and bits that depend on
// nothing but the element's own row and column.

#include "reference_cpu/product.h"

#include <cmath>
#include <limits>

#include "core/rng.h"
#include "reference_cpu/linear.h"
#include "tests/support.h"

namespace moe::test {
namespace {

template <typename Scalar>
class ProductTest : public testing::Test {
  protected:
    using Matrix = cpu::Matrix<Scalar>;

    /// Values in (-4, 4); whole ones if asked, so that every sum of products is exact.
    static Matrix random(std::int64_t rows, std::int64_t columns, std::uint64_t seed,
                         bool whole) {
        const Rng rng(seed);
        Matrix result(rows, columns);
        for (std::int64_t i = 0; i < result.size(); ++i)
            result.data()[i] =
                whole ? Scalar(rng.below(i, 7)) - 3 : Scalar(rng.normal(i));
        return result;
    }

    /// (rows, columns) of NaN, which nothing may be left of.
    static Matrix unwritten(std::int64_t rows, std::int64_t columns) {
        return Matrix::Constant(rows, columns, std::numeric_limits<Scalar>::quiet_NaN());
    }
};

using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(ProductTest, Scalars);

// Around a tile's edges (4 or 8 rows, up to 48 columns), a sum's parts (256 terms) and
// the columns that are copied at once (up to 768).
const std::int64_t kRows[] = {1, 4, 7, 8, 21}, kColumns[] = {1, 15, 16, 33, 48, 97, 771},
                   kInner[] = {1, 17, 256, 259, 515};

TYPED_TEST(ProductTest, IsTheSumOfProductsForEveryShape) {
    using Matrix = typename TestFixture::Matrix;
    for (std::int64_t m : kRows)
        for (std::int64_t n : kColumns)
            for (std::int64_t k : kInner) {
                const Matrix left = this->random(m, k, 1, true);
                const Matrix right = this->random(k, n, 2, true);
                const Matrix left_t = left.transpose(), right_t = right.transpose();
                const Matrix want = left.lazyProduct(right);
                const auto expect = [&](const char* layout, const auto& a,
                                        const auto& b) {
                    Matrix padded = this->unwritten(m, n + 3);
                    cpu::set_product(padded.leftCols(n), a, b);
                    EXPECT_TRUE(padded.leftCols(n) == want)
                        << layout << " " << m << " " << n << " " << k;
                    EXPECT_TRUE(padded.rightCols(3).array().isNaN().all()) << layout;
                };
                expect("NN", left, right);
                expect("NT", left, right_t.transpose());
                expect("TN", left_t.transpose(), right);
                expect("TT", left_t.transpose(), right_t.transpose());
            }
}

#ifndef MOE_BLAS  // whose sums may depend on the shape
TYPED_TEST(ProductTest, HasTheSameBitsWhereverItIsCut) {
    using Matrix = typename TestFixture::Matrix;
    const std::int64_t m = 29, n = 803, k = 517;
    const Matrix left = this->random(m, k, 1, false), left_t = left.transpose();
    const Matrix right = this->random(k, n, 2, false), right_t = right.transpose();
    Matrix whole = this->unwritten(m, n);
    cpu::set_product(whole, left, right);
    EXPECT_FALSE(whole == left.lazyProduct(right));  // there is something to round
    for (std::int64_t row : {0, 1, 13})
        for (std::int64_t column : {0, 5, 790}) {
            const std::int64_t rows = m - row - 2, columns = n - column - 1;
            Matrix part = this->unwritten(rows, columns);
            cpu::set_product(part, left_t.middleCols(row, rows).transpose(),
                             right_t.middleRows(column, columns).transpose());
            EXPECT_TRUE(part == whole.block(row, column, rows, columns))
                << row << " " << column;
        }
}
#endif

TEST(RowGroups, AreCutEvenly) {
    const std::vector<std::int64_t> rows = {0, 1, 511, 530, 767, 768, 4001, 0};
    const cpu::RowGroups groups = cpu::make_row_groups(rows);
    std::vector<std::int64_t> blocks(rows.size());
    std::int64_t next = 0;
    for (const cpu::RowBlock& block : groups.blocks) {
        const std::int64_t size = block.end - block.begin;
        EXPECT_EQ(block.begin, next);
        EXPECT_LE(block.end, groups.offsets[block.group + 1]);
        EXPECT_LT(size, 768);
        EXPECT_GE(size, std::min<std::int64_t>(rows[block.group], 384));
        ++blocks[block.group];
        next = block.end;
    }
    EXPECT_EQ(next, groups.num_rows());
    EXPECT_EQ(blocks, (std::vector<std::int64_t>{0, 1, 1, 1, 1, 2, 8, 0}));
}

}  // namespace
}  // namespace moe::test
