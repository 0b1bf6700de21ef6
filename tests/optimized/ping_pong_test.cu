// ping_pong_test.cu: products of rows whose two consumer warpgroups take turns on tiles
// of 64 x 256.

#include "optimized_gpu/grouped_gemm/rung.h"
#include "tests/conformance/modes.h"
#include "tests/optimized/grouped_products.h"

namespace moe::test {
namespace {

using optimized::Consumers;
using Problem = GroupedRows;

class OptimizedPingPong : public testing::Test {
  protected:
    void SetUp() override {
        MOE_NEEDS_HOPPER;
        gpu::register_device_memory();
    }

  private:
    RungGuard rung_{optimized::Rung::scheduler_and_epilogue};
    ConsumersGuard consumers_{Consumers::ping_pong};
};

/// Groups of no row, one, nearly two tiles, a little more, and five; at the end NaN.
const std::vector<std::int32_t> kRagged = {0, 1, 127, 0, 129, 300};

/// y, and the gradient that is summed over the other width.
void expect_rows_products(const Problem& p) {
    expect_forward(p, DType::bf16);
    expect_backward_input(p);
}

TEST_F(OptimizedPingPong, RowsAreAsPlainLoopsHaveThem) {
    for (const Problem& p :
         {Problem{kRagged, 64, 72}, Problem{{129, 0}, 192, 256},
          Problem{{1, 65}, 256, 64}, Problem{{0, 65}, 200, 328},
          Problem{{64, 3}, 72, 192}, Problem{{0, 0}, 64, 64}, Problem{{0}, 64, 64, 0},
          Problem{std::vector<std::int32_t>(71, 1), 16, 8}})
        expect_rows_products(p);
    expect_forward({{2, 130}, 33, 64}, DType::bf16);  // a width of y that TMA could not
}

/// 18 and 5 tiles of rows and two of columns, more than a band of 16.
TEST_F(OptimizedPingPong, EveryTileIsMadeOnce) {
    for (const int multiprocessors : {1, 7}) {
        const MultiprocessorsGuard guard(multiprocessors);
        expect_forward({{3, 1100, 0, 260}, 264, 8}, DType::bf16);
    }
}

/// One pair of blocks, which has no tile, one, two, and so on; of the last pair of an odd
/// number of tiles one block has none.
TEST_F(OptimizedPingPong, AnyNumberOfTilesIsShared) {
    const MultiprocessorsGuard one(1);
    for (int tiles = 0; tiles <= 9; ++tiles)
        expect_forward({{64 * tiles}, 8, 72}, DType::bf16);
}

/// Values whose sums depend on their order: of a depth of one stage, four, and six.
TEST_F(OptimizedPingPong, HasTheBitsOfCooperativeConsumers) {
    const auto fine = [](Matrix m) {
        for (float& value : m.values) value *= 0.3f;
        return m;
    };
    for (const std::int64_t depth : {24, 200, 328}) {
        const Problem p = {{130, 0, 3}, 72, depth, 0};
        const Matrix bias = fine(Matrix(3, p.out, 4)), scale(1, p.rows(), 2);
        const optimized::Bias b = {bias.on_device(),
                                   scale.on_device(DType::f32, {p.rows()})};
        std::vector<std::int32_t> ids;
        for (std::int64_t r = 0; r < p.rows(); ++r)
            ids.push_back(r % 11 == 3 ? -1 : int(r * 17 % 50));
        const Tensor x = fine(Matrix(p.rows(), depth, 3)).on_device(),
                     weight = fine(p.weight()).on_device(DType::bf16, {3, p.out, depth}),
                     back = fine(Matrix(3 * depth, p.out, 5))
                                .on_device(DType::bf16, {3, depth, p.out});
        const auto results = [&] {
            return std::vector{
                on_host(linear_forward(x, weight, b, {}, p.groups(), DType::bf16)),
                on_host(linear_forward(x, weight, b, i32_on_device(ids), p.groups(),
                                       DType::bf16)),
                on_host(linear_backward_input(x, back, p.groups()))};
        };
        const auto in_turns = results();
        EXPECT_EQ(results(), in_turns) << "another run";
        {
            const MultiprocessorsGuard one(1);
            EXPECT_EQ(results(), in_turns) << "one pair of blocks";
        }
        const ConsumersGuard together(Consumers::cooperative);
        EXPECT_EQ(results(), in_turns) << "depth " << depth;
    }
}

/// One pair of blocks: warpgroups go on in mid-ring, where the other's tile ended, after
/// one step, three, and nine, which fill each stage a third time.
TEST_F(OptimizedPingPong, InEveryOrderOfThreadsAndCopies) {
    const MultiprocessorsGuard one(1);
    in_every_mode([] {
        expect_forward({{16, 130, 2}, 8, 24}, DType::bf16);
        expect_forward({{66, 16, 3, 150}, 8, 136}, DType::bf16);
        expect_backward_input({{5, 1, 70}, 520, 8});
        expect_forward({{7, 40}, 264, 8}, DType::bf16);  // warps store five slices
    });
}

TEST(OptimizedConsumers, TakeTurnsWhereDepthIsLittle) {
    using optimized::chosen_consumers;
    EXPECT_EQ(chosen_consumers(8), Consumers::ping_pong);
    EXPECT_EQ(chosen_consumers(1016), Consumers::ping_pong);
    EXPECT_EQ(chosen_consumers(1024), Consumers::cooperative);
    for (const auto consumers : {Consumers::ping_pong, Consumers::cooperative}) {
        const ConsumersGuard guard(consumers);
        EXPECT_EQ(chosen_consumers(8), consumers);
        EXPECT_EQ(chosen_consumers(1024), consumers);
    }
    EXPECT_EQ(chosen_consumers(8), Consumers::ping_pong);
}

}  // namespace
}  // namespace moe::test
