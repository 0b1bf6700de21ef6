// expert_products_test.cu: the experts' products one after another make the bits that
// they make together, on both rungs, and leave nobody's rows alone.

#include "optimized_gpu/expert_products.h"

#include <cstring>

#include "gpu/counters.h"
#include "tests/optimized/grouped_products.h"

namespace moe::test {
namespace {

using optimized::ExpertProducts;

/// Rows outside of all groups are NaN, which equal nothing; their bits do.
void expect_same_bits(const Tensor& got, const Tensor& want) {
    const Tensor a = transfer(got, {MemorySpace::host, got.dtype()});
    const Tensor b = transfer(want, {MemorySpace::host, want.dtype()});
    ASSERT_EQ(a.shape(), b.shape());
    ASSERT_EQ(a.dtype(), b.dtype());
    EXPECT_EQ(std::memcmp(a.view().bytes, b.view().bytes, a.size_bytes()), 0);
}

class OptimizedExpertProducts : public testing::TestWithParam<optimized::Rung> {
  protected:
    void SetUp() override { gpu::register_device_memory(); }

    /// Calls make(products) for both kinds. @return launches of both
    template <typename Make>
    std::pair<std::int64_t, std::int64_t> both(Make make) {
        const std::int64_t start = gpu::counters().launches;
        const auto together = make(ExpertProducts(true));
        const std::int64_t middle = gpu::counters().launches;
        const auto in_turn = make(ExpertProducts(false));
        const std::int64_t end = gpu::counters().launches;
        EXPECT_EQ(in_turn.size(), together.size());
        for (std::size_t i = 0; i < together.size(); ++i) {
            SCOPED_TRACE(i);
            expect_same_bits(in_turn[i], together[i]);
            if (together[i].dim(0) == rows_.all_rows())
                expect_left(rows_, on_host(in_turn[i]));
        }
        return {middle - start, end - middle};
    }

    using Results = std::vector<Tensor>;
    // Tiles of one row, of none, of all rows and more; F is more than a tile as well
    const GroupedRows rows_ = {{3, 0, 130}, 288, 40};
    const std::int64_t ffn_ = 144;
    const optimized::RowGroups groups_ = rows_.groups();
    const optimized::ExpertActivation silu_ = {optimized::ActivationFunction::silu, true};

  private:
    RungGuard rung_{GetParam()};
};

TEST_P(OptimizedExpertProducts, Forward) {
    const Matrix x = rows_.rows_of(40, 3), bias(3, 288, 4), a = rows_.rows_of(ffn_, 5),
                 w2(3 * 40, ffn_, 6), probs(1, rows_.all_rows(), 2);
    const Tensor p = probs.on_device(DType::f32, {rows_.all_rows()});
    const auto up = both([&](const ExpertProducts& products) {
        const auto made = products.forward_activation(
            x.on_device(), rows_.device_weight(), bias.on_device(), p, {}, groups_, silu_,
            DType::bf16);
        return Results{made.h, made.a};
    });
    EXPECT_EQ(up, std::pair(std::int64_t(1), std::int64_t(3)));
    const Matrix out_bias(3, 40, 8);
    const auto down = both([&](const ExpertProducts& products) {
        return Results{products.forward(a.on_device(),
                                        w2.on_device(DType::bf16, {3, 40, ffn_}),
                                        {out_bias.on_device(), p}, groups_)};
    });
    EXPECT_EQ(down, std::pair(std::int64_t(1), std::int64_t(3)));
}

TEST_P(OptimizedExpertProducts, Backward) {
    const Matrix dy = rows_.rows_of(40, 3), h = rows_.rows_of(288, 4),
                 w2(3 * 40, ffn_, 6), probs(1, rows_.all_rows(), 2);
    const Tensor p = probs.on_device(DType::f32, {rows_.all_rows()});
    const auto through = both([&](const ExpertProducts& products) {
        const auto made = products.backward_activation(
            dy.on_device(), w2.on_device(DType::bf16, {3, 40, ffn_}), h.on_device(), p,
            {}, groups_, silu_);
        return Results{made.dh, made.a, made.dp};
    });
    EXPECT_EQ(through, std::pair(std::int64_t(2), std::int64_t(6))) << "dp has two parts";
    const auto input = both([&](const ExpertProducts& products) {
        return Results{
            products.backward_input(h.on_device(), rows_.device_weight(), groups_)};
    });
    EXPECT_EQ(input, std::pair(std::int64_t(1), std::int64_t(3)));
    const auto weight = both([&](const ExpertProducts& products) {
        return Results{
            products.backward_weight(h.on_device(), {}, dy.on_device(), {}, groups_)};
    });
    EXPECT_EQ(weight, std::pair(std::int64_t(1), std::int64_t(3)));
}

INSTANTIATE_TEST_SUITE_P(Rungs, OptimizedExpertProducts,
                         testing::Values(optimized::Rung::mma_sync,
                                         optimized::Rung::tma_wgmma));

}  // namespace
}  // namespace moe::test
