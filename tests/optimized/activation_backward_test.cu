// activation_backward_test.cu: FC2's input gradient with the activation's backward in it,
// on the first rung.

#include "tests/conformance/modes.h"
#include "tests/optimized/activation_backward_support.h"
#include "tests/optimized/grouped_products.h"

namespace moe::test {
namespace {

class OptimizedActivationBackward : public testing::Test {
  protected:
    void SetUp() override { gpu::register_device_memory(); }

  private:
    RungGuard rung_{optimized::Rung::mma_sync};
};

TEST_F(OptimizedActivationBackward, AnyWidths) {
    std::vector<std::int32_t> few_of_many(512);  // groups, more than a warp has lanes
    few_of_many[31] = few_of_many[32] = few_of_many[511] = 2;
    const std::vector<GroupedRows> shapes = {
        {{0, 1, 0, 130}, 24, 40},  // rows: a tile, and more
        {{2, 0, 1}, 5, 7},         // the narrowest copies
        {{3}, 1, 1},               // one of everything
        {{5, 2}, 34, 130},         // two column tiles, narrow copies
        {{4}, 72, 264},            // three, whole sectors
        {{3, 1}, 9, 257},          // three, the narrowest
        {{2}, 8, 4},               // rows of h, not F, are whole
        {{0, 0}, 16, 8},           // nothing at all
        {{0}, 16, 8, 0},
        {few_of_many, 16, 8}};
    for (const GroupedRows& rows : shapes)
        for (const bool gated : {true, false})
            for (const DType dtype : {DType::bf16, DType::f32})
                expect_backward({rows, {ActivationFunction::silu, gated}, dtype, gated});
}

TEST_F(OptimizedActivationBackward, EveryActivation) {
    const GroupedRows rows = {{3, 0, 20}, 16, 24};
    for (const auto function :
         {ActivationFunction::silu, ActivationFunction::gelu,
          ActivationFunction::gelu_tanh, ActivationFunction::quick_gelu,
          ActivationFunction::squared_relu})
        for (const DType dtype : {DType::bf16, DType::f32}) {
            expect_backward({rows, {function, true}, dtype});
            expect_backward({rows, {function, false}, dtype});
            expect_backward({rows, {function, true, 1.0f, 2.5f}, dtype});
            expect_backward({rows, {function, true, 0.5f, 1.0f}, dtype, false, false});
        }
}

TEST_F(OptimizedActivationBackward, ProbabilitiesMayBeUndefined) {
    for (const bool gathers : {true, false})
        expect_backward({{{3, 150}, 24, 136}, {}, DType::bf16, gathers, false});
}

TEST_F(OptimizedActivationBackward, InEveryOrderOfThreadsAndCopies) {
    in_every_mode([] { expect_backward({{{2, 0, 5}, 72, 136}}); });
}

/// h may hold anything whose activation is no number, or is infinite, next to a tile's
/// last column: in the other half of the row.
TEST_F(OptimizedActivationBackward, WhatLiesBeyondAColumnTileIsNotInTheSum) {
    // F = 4: the gate's tile shows the up half as well. Large there, squared_relu of it
    // is infinite.
    const std::vector<float> h = {1, 1, 1, 1, 3e38f, 1, 1, 1};
    const Tensor zeros = Matrix(8, 4).on_device(DType::bf16, {1, 8, 4});
    const auto made = optimized::linear_backward_activation(
        Matrix(1, 8, 3).on_device(), zeros,
        transfer(Tensor::from({1, 8}, h), {MemorySpace::device, DType::bf16}), {}, {},
        {i32_on_device({0, 1})}, {ActivationFunction::squared_relu});
    EXPECT_EQ(on_host(made.dp), std::vector<float>{0.0f});
}

}  // namespace
}  // namespace moe::test
