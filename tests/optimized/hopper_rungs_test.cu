// hopper_rungs_test.cu: the products of groups of rows on the rungs that use TMA,
// mbarriers and wgmma; for the fourth one's ping-pong see ping_pong_test.cu.

#include "optimized_gpu/grouped_gemm/rung.h"
#include "tests/conformance/modes.h"
#include "tests/optimized/activation_backward_support.h"
#include "tests/optimized/grouped_products.h"

namespace moe::test {
namespace {

using optimized::Rung;
using Problem = GroupedRows;

class OptimizedHopperRungs : public testing::TestWithParam<Rung> {
  protected:
    void SetUp() override {
        MOE_NEEDS_HOPPER;
        gpu::register_device_memory();
    }

  private:
    RungGuard rung_{GetParam()};
    ConsumersGuard consumers_{optimized::Consumers::cooperative};
};

INSTANTIATE_TEST_SUITE_P(Ladder, OptimizedHopperRungs,
                         testing::Values(Rung::tma_wgmma, Rung::warp_specialized,
                                         Rung::scheduler_and_epilogue),
                         [](const auto& rung) { return "Rung" + to_string(rung.param); });

/// Rows that fill no tile, a tile, and more; at the end NaN.
const std::vector<std::int32_t> kRagged = {0, 1, 127, 0, 129, 300};

const std::vector<Problem>& problems() {
    static const std::vector<Problem> all = {
        {kRagged, 64, 72},                           // a stage, and a little of the next
        {{129, 0}, 192, 256},                        // tiles side by side
        {{0, 65}, 200, 328},                         // stages are filled a second time
        {{3}, 72, 8},                                // the narrowest
        {{0, 0}, 64, 64},                            // nothing but rows of nobody
        {{0}, 64, 64, 0},                            // nothing at all
        {std::vector<std::int32_t>(71, 1), 16, 8}};  // more groups than a warp has lanes
    return all;
}

TEST_P(OptimizedHopperRungs, Forward) {
    for (const Problem& p : problems()) {
        expect_forward(p, DType::f32);
        expect_forward(p, DType::bf16);
    }
    expect_forward({{2, 130}, 33, 64}, DType::bf16);  // a width of y that TMA could not
}

/// Nine tiles of rows and two of columns, in bands where a rung has them; groups before
/// and after, so that numbers of tiles and of bands differ.
TEST_P(OptimizedHopperRungs, EveryTileIsMadeOnce) {
    for (const int multiprocessors : {1, 7}) {
        const MultiprocessorsGuard guard(multiprocessors);
        expect_forward({{3, 1100, 0, 260}, 264, 8}, DType::bf16);
    }
    expect_weight_gradient({{3, 0, 5}, 264, 520}, DType::bf16, {});
}

/// What is summed is not exact here, so that another order would show.
TEST_P(OptimizedHopperRungs, EachRunGivesTheSameBits) {
    const GroupedRows p = {{130, 0, 67}, 72, 200, 0};
    const auto fine = [](Matrix m) {
        for (float& value : m.values) value *= 0.3f;
        return m;
    };
    const Tensor x = fine(p.rows_of(p.in, 3)).on_device();
    const Tensor weight = fine(p.weight()).on_device(DType::bf16, {3, p.out, p.in});
    const auto results = [&] {
        const Tensor y = linear_forward(x, weight, {}, {}, p.groups(), DType::f32);
        const auto up =
            linear_forward_activation(x, weight, {}, {}, {}, p.groups(), {}, DType::f32);
        const Tensor dy = transfer(y, {MemorySpace::device, DType::bf16});
        std::vector<std::vector<float>> all = {
            on_host(y), on_host(up.h), on_host(up.a),
            on_host(linear_backward_input(dy, weight, p.groups())),
            on_host(linear_backward_weight(dy, {}, x, {}, p.groups(), DType::f32))};
        const auto back = linear_backward_activation(
            x, fine(Matrix(3 * p.in, p.out, 5)).on_device(DType::bf16, {3, p.in, p.out}),
            fine(Matrix(p.rows(), 2 * p.out, 9)).on_device(), {}, {}, p.groups(), {});
        for (const Tensor& t : {back.dh, back.a, back.dp}) all.push_back(on_host(t));
        return all;
    };
    const auto first = results();
    const MultiprocessorsGuard one(1);
    EXPECT_EQ(results(), first);
}

TEST_P(OptimizedHopperRungs, ForwardGathersRowsAndAddsAScaledBias) {
    expect_gathered_forward({{4, 0, 131}, 80, 72});
    expect_gathered_forward({{127, 129}, 136, 328});
    expect_gathered_forward({{1}, 31, 8, 0});
    for (const std::int64_t in : {40, 136}) expect_zeros_of_negative_row_ids(in);
}

TEST_P(OptimizedHopperRungs, BackwardInput) {
    for (const Problem& p : problems()) expect_backward_input(p);
}

TEST_P(OptimizedHopperRungs, BackwardWeightIsZeroForGroupsWithoutRows) {
    for (const Problem& p : problems()) expect_weight_gradient(p, DType::f32, {});
    expect_weight_gradient(problems()[0], DType::bf16, {});
}

/// NaN lies behind the last row of what is not gathered.
TEST_P(OptimizedHopperRungs, BackwardWeightGathersEitherOperand) {
    for (const Gathers gathers : {Gathers{true, false}, {false, true}, {true, true}})
        expect_weight_gradient({{3, 0, 129, 70}, 24, 136}, DType::bf16, gathers);
    expect_weight_gradient({{200, 64, 63}, 136, 72}, DType::f32, {true, true});
}

TEST_P(OptimizedHopperRungs, UpProjectionTakesTheActivationOfItsSums) {
    const std::vector<Problem> shapes = {
        {{3, 0, 130}, 160, 72},  // F = 80: a tile of gates and more
        {{5}, 200, 16},          // F = 100: no multiple of 8
        {{1, 64}, 256, 136, 0},  // F = 128: whole tiles
        {{2}, 26, 8}};           // F = 13
    for (const Problem& p : shapes)
        for (const bool gated : {true, false})
            for (const DType dtype : {DType::bf16, DType::f32})
                expect_up_projection(p, {ActivationFunction::silu, gated}, dtype);
    expect_up_projection({{2, 4}, 48, 16}, {ActivationFunction::quick_gelu, true, 1, 3},
                         DType::bf16, true);
    expect_up_projection({{15}, 64, 8}, {}, DType::bf16);  // of a warp all rows but one
}

TEST_P(OptimizedHopperRungs, ActivationBackward) {
    const std::vector<Problem> shapes = {{{0, 1, 0, 130}, 24, 40},
                                         {{64}, 328, 136},
                                         {{4}, 72, 264},
                                         {{0, 0}, 16, 8},
                                         {{0}, 16, 8, 0}};
    for (const Problem& rows : shapes)
        for (const bool gated : {true, false})
            for (const DType dtype : {DType::bf16, DType::f32})
                expect_backward({rows, {ActivationFunction::silu, gated}, dtype, gated});
    expect_backward({shapes[0], {ActivationFunction::gelu, true, 1.0f, 2.5f}});
}

TEST_P(OptimizedHopperRungs, WidthsThatTmaCannotReachTakeTheFirstRung) {
    expect_forward({{3}, 16, 12}, DType::bf16);
    expect_up_projection({{3}, 16, 12}, {}, DType::bf16);
    for (const Problem& p : {Problem{{3}, 12, 16}, Problem{{3}, 16, 12}}) {
        expect_backward_input(p);
        expect_weight_gradient(p, DType::bf16, {});
        expect_backward({p});
    }
}

/// Nine steps: each stage is filled a third time, so that its phases come round. One
/// multiprocessor: blocks that stay have all tiles, of which some end in mid-ring. Of the
/// pairs of tiles one shares its weights, one has two experts', one is half a pair.
TEST_P(OptimizedHopperRungs, InEveryOrderOfThreadsAndCopies) {
    const MultiprocessorsGuard one(1);
    in_every_mode([] {
        expect_forward({{130, 2, 1}, 24, 520}, DType::bf16);
        expect_forward({{40, 7}, 200, 8}, DType::bf16);  // warps store four slices
        // A warp stores whole rows, then ragged ones, then whole ones again.
        expect_forward({{16, 16, 3, 3, 16, 16}, 24, 8}, DType::bf16);
        expect_gathered_forward({{3}, 24, 520});
        expect_backward_input({{5}, 520, 40});
    });
}

TEST_P(OptimizedHopperRungs, WeightGradientsInEveryOrderOfThreadsAndCopies) {
    const MultiprocessorsGuard one(1);
    in_every_mode([] {
        expect_weight_gradient({{520, 0, 3}, 8, 24}, DType::bf16, {});
        expect_weight_gradient({{130}, 8, 24}, DType::f32, {true, false});
        expect_weight_gradient({{2, 66}, 8, 24}, DType::f32, {true, true});
    });
}

TEST_P(OptimizedHopperRungs, ActivationsInEveryOrderOfThreadsAndCopies) {
    const MultiprocessorsGuard one(1);
    in_every_mode([] {
        expect_up_projection({{17}, 64, 328}, {}, DType::bf16);
        expect_backward({{{5}, 328, 72}});
        expect_backward({{{21, 18, 16, 20}, 72, 72}});  // tiles take each other's place
    });
}

TEST(OptimizedRung, TheHighestThatWidthsAllow) {
    using optimized::chosen_rung;
    const auto here = [](Rung rung) { return has_hopper() ? rung : Rung::mma_sync; };
    EXPECT_EQ(chosen_rung({64}), here(optimized::kHighestRung));
    EXPECT_EQ(chosen_rung({8, 72}), here(optimized::kHighestRung));
    EXPECT_EQ(chosen_rung({8, 68}), Rung::mma_sync);
    EXPECT_EQ(chosen_rung({0}), Rung::mma_sync);
    for (const Rung rung : {Rung::mma_sync, Rung::tma_wgmma, Rung::warp_specialized,
                            Rung::scheduler_and_epilogue}) {
        const RungGuard guard(rung);
        EXPECT_EQ(chosen_rung({64}), here(rung));
        EXPECT_EQ(chosen_rung({64, 4}), Rung::mma_sync);
    }
    EXPECT_EQ(chosen_rung({64}), here(optimized::kHighestRung));
}

}  // namespace
}  // namespace moe::test
