// grouped_gemm_test.cu: what the products of groups of rows do to memory.

#include <numeric>

#include "core/transfer.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/grouped_gemm/rung.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

using optimized::RowGroups;
using optimized::Rung;

template <typename T>
Tensor on_device(const Shape& shape, const std::vector<T>& values, DType dtype) {
    return transfer(Tensor::from(shape, values), {MemorySpace::device, dtype});
}

Tensor bf16_ones(const Shape& shape) {
    std::int64_t count = 1;
    for (const std::int64_t length : shape) count *= length;
    return on_device(shape, std::vector<float>(std::size_t(count), 1.0f), DType::bf16);
}

struct OnDevice {
    OnDevice() { gpu::register_device_memory(); }
};
/// Three groups, one empty and one of more than a tile.
struct Operands : OnDevice {
    static constexpr std::int64_t kOut = 144, kIn = 208, kRows = 170;
    static constexpr std::uint64_t kRagged = 131 % 16 + 39 % 16;
    Tensor x = bf16_ones({kRows, kIn}), dy = bf16_ones({kRows, kOut}),
           weight = bf16_ones({3, kOut, kIn});
    RowGroups groups{on_device<std::int32_t>({4}, {0, 131, 131, kRows}, DType::i32)};
};

/// Calls visit(rung) while products take that rung; on the fourth, rows' are made by
/// consumers that take turns, as their depth has it, and by others.
template <typename Visit>
void on_each_rung(Visit visit) {
    for (const Rung rung : {Rung::mma_sync, Rung::tma_wgmma, Rung::warp_specialized,
                            Rung::scheduler_and_epilogue}) {
        SCOPED_TRACE(to_string(rung));
        optimized::set_rung(rung);
        visit(rung);
    }
    {
        SCOPED_TRACE("cooperative");
        optimized::set_consumers(optimized::Consumers::cooperative);
        visit(optimized::kHighestRung);
    }
    optimized::set_rung(std::nullopt);
    optimized::set_consumers(std::nullopt);
}

template <typename Work>
Report report_of(Work work, bool races = false) {
    cuda_on_cpu::observe::start({.races = races});
    work();
    gpu::synchronize();
    cuda_on_cpu::observe::stop();
    return cuda_on_cpu::observe::report();
}

/// Each sector of the result is written once, no bank is asked twice, and nothing is read
/// that need not be.
/// @param stored  bytes of `written` that threads write, not TMA
void expect_ideal(const Report& report, std::uint64_t read, std::uint64_t written,
                  std::uint64_t stored) {
    ASSERT_EQ(report.launches.size(), 1);
    const Counters& c = report.launches[0].counters;
    EXPECT_EQ(32 * c.stores.sectors, stored);
    EXPECT_EQ(c.shared.wavefronts, c.shared.ideal_wavefronts);
    EXPECT_LE(c.shared.most_ways, 1);  // 0: TMA and wgmma alone used it
    EXPECT_EQ(report.host_waits, 1);   // ours, at the end
    EXPECT_EQ(c.compulsory_bytes(), read + written + 32);  // and a sector of offsets
}

/// On the fourth rung TMA stores bf16 where the 16 rows of a warp are all the group's.
std::uint64_t rows_by_threads(Rung rung, DType dtype, std::uint64_t rows,
                              std::uint64_t ragged) {
    return rung == Rung::scheduler_and_epilogue && dtype == DType::bf16 ? ragged : rows;
}

TEST(ObserveGroupedGemm, NoBankIsAskedTwiceAndNoSectorInVain) {
    const Operands o;
    const std::uint64_t rows = o.kRows, out = o.kOut, in = o.kIn;
    on_each_rung([&](Rung rung) {
        for (const DType dtype : {DType::bf16, DType::f32}) {
            const std::uint64_t element = dtype == DType::bf16 ? 2 : 4;
            expect_ideal(report_of([&] {
                             linear_forward(o.x, o.weight, {}, {}, o.groups, dtype);
                         }),
                         2 * rows * in + 2 * 2 * out * in, element * rows * out,
                         element * out * rows_by_threads(rung, dtype, rows, o.kRagged));
            expect_ideal(report_of([&] {
                             linear_backward_weight(o.dy, {}, o.x, {}, o.groups, dtype);
                         }),
                         2 * rows * (in + out), element * 3 * out * in,
                         element * in * rows_by_threads(rung, dtype, 3 * out, 0));
        }
        expect_ideal(report_of([&] { linear_backward_input(o.dy, o.weight, o.groups); }),
                     2 * rows * out + 2 * 2 * out * in, 2 * rows * in,
                     2 * in * rows_by_threads(rung, DType::bf16, rows, o.kRagged));
    });
}

TEST(ObserveGroupedGemm, GatheredRowsComeWithoutConflicts) {
    const Operands o;
    std::vector<std::int32_t> ids(o.kRows);
    for (std::size_t r = 0; r < ids.size(); ++r) ids[r] = int(r * 37 % o.kRows);
    const Tensor row_ids = on_device<std::int32_t>({o.kRows}, ids, DType::i32);
    on_each_rung([&](Rung) {
        const auto reports = {report_of([&] {
                                  linear_forward(o.x, o.weight, {}, row_ids, o.groups,
                                                 DType::bf16);
                              }),
                              report_of([&] {
                                  linear_backward_weight(o.dy, row_ids, o.x, row_ids,
                                                         o.groups, DType::bf16);
                              })};
        for (const Report& report : reports) {
            const Counters& c = report.launches[0].counters;
            EXPECT_EQ(c.shared.wavefronts, c.shared.ideal_wavefronts);
            EXPECT_EQ(c.shared.most_ways, 1);
        }
    });
}

TEST(ObserveGroupedGemm, TheActivationCostsTheWritingOfItsResults) {
    const Operands o;
    const std::uint64_t rows = o.kRows, F = 80, in = o.kIn;
    const Tensor weight = bf16_ones({3, 160, o.kIn});
    const Tensor probs =
        on_device<float>({o.kRows}, std::vector<float>(rows, 0.5f), DType::f32);
    on_each_rung([&](Rung rung) {
        expect_ideal(report_of([&] {
                         linear_forward_activation(o.x, weight, {}, {}, {}, o.groups, {},
                                                   DType::bf16);
                     }),
                     2 * rows * in + 2 * 2 * 2 * F * in, 2 * rows * 3 * F,
                     2 * 3 * F * rows_by_threads(rung, DType::bf16, rows, o.kRagged));
        EXPECT_EQ(findings_of(report_of(
                      [&] {
                          linear_forward_activation(o.x, weight, {}, probs, {}, o.groups,
                                                    {}, DType::bf16);
                      },
                      true)),
                  "");
    });
}

/// Groups begin at multiples of 8 rows, so that no two blocks share a sector of dp; the
/// last 8 rows belong to none.
struct BackwardOperands : OnDevice {
    static constexpr std::int64_t kRows = 176, kAllRows = 184, kHidden = 208;
    std::int64_t ffn;
    Tensor dy = bf16_ones({kAllRows, kHidden}), weight = bf16_ones({3, kHidden, ffn}),
           h = bf16_ones({kAllRows, 2 * ffn});
    Tensor probs =
        on_device<float>({kAllRows}, std::vector<float>(kAllRows, 0.5f), DType::f32);
    RowGroups groups{on_device<std::int32_t>({4}, {0, 136, 136, kRows}, DType::i32)};

    explicit BackwardOperands(std::int64_t F) : ffn(F) {}
    void work(const Tensor& p = {}) const {
        linear_backward_activation(dy, weight, h, p, {}, groups, {});
    }
};

TEST(ObserveGroupedGemm, TheGradientOfTheActivationIsNeverInMemory) {
    const BackwardOperands o(80);
    const std::uint64_t rows = o.kRows, F = 80, H = o.kHidden;
    on_each_rung([&](Rung rung) {
        // TMA knows no groups: it brings the rows behind the last one as well.
        const std::uint64_t dy_rows = rung == Rung::mma_sync ? rows : o.kAllRows;
        expect_ideal(
            report_of([&] { o.work(); }),
            2 * dy_rows * H + 2 * 2 * H * F + 2 * rows * 2 * F,
            2 * rows * 3 * F + 4 * rows,
            2 * 3 * F * rows_by_threads(rung, DType::bf16, rows, 8 + 8) + 4 * rows);
    });
}

TEST(ObserveGroupedGemm, PartsOfASumOverColumnTilesAreAddedInAKernelOfTheirOwn) {
    const BackwardOperands o(144);
    on_each_rung([&](Rung) {
        const Report report = report_of([&] { o.work(o.probs); }, true);
        EXPECT_EQ(findings_of(report), "");
        ASSERT_EQ(report.launches.size(), 2);
        EXPECT_EQ(32 * report.launches[1].counters.stores.sectors, 4u * o.kRows);
    });
}

/// FC2 where F is little, and FC1's input gradient where 2F is; results in bf16.
TEST(ObserveGroupedGemm, LittleDepthTakesTurns) {
    const OnDevice device;
    const RowGroups group{on_device<std::int32_t>({2}, {0, 1}, DType::i32)};
    const auto kernel_of = [](auto work) {
        return report_of(work).launches.at(0).kernel;
    };
    for (const std::int64_t depth : {1016, 1024}) {
        const std::string want =
            depth < 1024 ? "ping_pong_rows_kernel" : "scheduled_rows_kernel";
        const Tensor x = bf16_ones({1, depth});
        EXPECT_EQ(
            kernel_of([&] {
                linear_forward(x, bf16_ones({1, 8, depth}), {}, {}, group, DType::bf16);
            }),
            want);
        EXPECT_EQ(kernel_of([&] {
                      linear_backward_input(x, bf16_ones({1, depth, 8}), group);
                  }),
                  want);
        EXPECT_EQ(
            kernel_of([&] {
                linear_forward(x, bf16_ones({1, 8, depth}), {}, {}, group, DType::f32);
            }),
            "scheduled_rows_kernel");
    }
}

TEST(ObserveGroupedGemm, ABiasReadsItsRowsOnce) {
    const Operands o;
    for (const DType dtype : {DType::bf16, DType::f32}) {
        const std::uint64_t written = (dtype == DType::bf16 ? 2 : 4) * 3 * o.kOut;
        expect_ideal(
            report_of([&] { linear_backward_bias(o.dy, {}, {}, o.groups, dtype); }),
            2 * o.kRows * o.kOut, written, written);
    }
}

TEST(ObserveGroupedGemm, NothingRaces) {
    const Operands o;
    const Tensor ids = on_device<std::int32_t>(
        {o.kRows}, std::vector<std::int32_t>(o.kRows, 5), DType::i32);
    on_each_rung([&](Rung) {
        const Report report = report_of(
            [&] {
                linear_forward(o.x, o.weight, {}, ids, o.groups, DType::bf16);
                linear_backward_input(o.dy, o.weight, o.groups);
                linear_backward_weight(o.dy, ids, o.x, {}, o.groups, DType::bf16);
                linear_backward_bias(o.dy, {}, ids, o.groups, DType::bf16);
            },
            true);
        EXPECT_EQ(findings_of(report), "");
    });
}

}  // namespace
}  // namespace moe::test
