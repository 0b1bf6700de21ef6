// grouped_gemm_test.cu: the products of groups of rows on the first rung.

#include "tests/conformance/modes.h"
#include "tests/optimized/grouped_products.h"

namespace moe::test {
namespace {

using Problem = GroupedRows;

class OptimizedGroupedGemm : public testing::Test {
  protected:
    void SetUp() override { gpu::register_device_memory(); }

  private:
    RungGuard rung_{optimized::Rung::mma_sync};
};

const std::vector<Problem>& problems() {
    static const std::vector<Problem> all = {
        {{0, 1, 127, 0, 129}, 72, 64},  // aligned; tiles of one row, full, and more
        {{300, 0}, 192, 256},
        {{5, 9}, 130, 34},                           // narrow copies
        {{3, 0, 2}, 33, 7},                          // the narrowest
        {{0, 0}, 64, 64},                            // nothing at all
        {std::vector<std::int32_t>(71, 1), 16, 8}};  // more groups than a warp has lanes
    return all;
}

TEST_F(OptimizedGroupedGemm, Forward) {
    for (const Problem& p : problems())
        for (const DType dtype : {DType::f32, DType::bf16}) expect_forward(p, dtype);
}

TEST_F(OptimizedGroupedGemm, ForwardGathersRowsAndAddsAScaledBias) {
    expect_gathered_forward({{4, 0, 131}, 80, 72});
    expect_gathered_forward({{4, 3}, 31, 9, 0});
}

TEST_F(OptimizedGroupedGemm, UpProjectionTakesTheActivationOfItsSums) {
    using optimized::ActivationFunction;
    const std::vector<Problem> shapes = {
        {{3, 0, 130}, 160, 72, 0},  // F = 80: a tile and more
        {{5}, 200, 16, 0},          // F = 100: no multiple of 8
        {{2, 4}, 26, 9, 0}};        // F = 13
    for (const Problem& p : shapes)
        for (const bool gated : {true, false})
            for (const DType dtype : {DType::bf16, DType::f32})
                expect_up_projection(p, {ActivationFunction::silu, gated}, dtype);
    for (const auto function :
         {ActivationFunction::gelu, ActivationFunction::gelu_tanh,
          ActivationFunction::quick_gelu, ActivationFunction::squared_relu})
        expect_up_projection(shapes[2], {function, function != ActivationFunction::gelu},
                             DType::bf16, true);
    expect_up_projection(shapes[2], {ActivationFunction::quick_gelu, true, 1.0f, 3.0f},
                         DType::f32);
}

TEST_F(OptimizedGroupedGemm, BackwardInput) {
    for (const Problem& p : problems()) expect_backward_input(p);
}

TEST_F(OptimizedGroupedGemm, BackwardWeightIsZeroForGroupsWithoutRows) {
    for (const Problem& p : problems()) {
        expect_weight_gradient(p, DType::f32, {false, false});
        expect_weight_gradient(p, DType::bf16, {false, true});
    }
}

TEST_F(OptimizedGroupedGemm, BackwardWeightGathersEitherOperand) {
    for (const Problem& p : {Problem{{3, 0, 70}, 24, 136}, Problem{{4, 9}, 31, 9}}) {
        expect_weight_gradient(p, DType::bf16, {true, false});
        expect_weight_gradient(p, DType::f32, {true, true});
    }
}

TEST_F(OptimizedGroupedGemm, ANegativeRowIdIsARowOfZeros) {
    for (const std::int64_t in : {40, 6, 9}) expect_zeros_of_negative_row_ids(in);
}

TEST_F(OptimizedGroupedGemm, InEveryOrderOfThreadsAndCopies) {
    in_every_mode([&] {
        expect_forward({{2, 130}, 40, 136}, DType::bf16);
        expect_weight_gradient({{70, 0, 3}, 24, 40}, DType::bf16, {true, true});
    });
}

}  // namespace
}  // namespace moe::test
