// rows_test.cu: gradients of biases, rows scaled, and their inner products, against plain
// loops. Operands are small whole numbers, so that every sum is exact.

#include "optimized_gpu/rows.h"

#include "tests/conformance/modes.h"
#include "tests/optimized/grouped_rows_support.h"

namespace moe::test {
namespace {

/// Of every width of copies; one row, none, many; more groups than a warp has lanes.
const std::vector<GroupedRows>& problems() {
    static const std::vector<GroupedRows> all = [] {
        std::vector<std::int32_t> few_of_many(512);
        few_of_many[0] = few_of_many[31] = few_of_many[32] = few_of_many[511] = 2;
        return std::vector<GroupedRows>{{{0, 1, 40, 0, 129}, 264, 0},
                                        {{3, 0, 9}, 130, 0},
                                        {{257}, 7, 0},
                                        {{5}, 1, 0},
                                        {few_of_many, 40, 0},
                                        {{0, 0}, 8, 0},
                                        {{0}, 8, 0, 0},
                                        {{}, 8, 0},
                                        {{2}, 2064, 0}};
    }();
    return all;
}

/// Rows (width = out), some of them of no token when they are gathered.
struct Gathered {
    Matrix source, rows;  // as given, and as they are meant
    Tensor row_ids;
};

Gathered make_rows(const GroupedRows& p, bool gathers) {
    Gathered made = {p.rows_of(p.out, 3), p.rows_of(p.out, 3), {}};
    if (!gathers) return made;
    made.source = Matrix(50, p.out, 3);
    std::vector<std::int32_t> ids;
    for (std::int64_t r = 0; r < p.all_rows(); ++r) {
        ids.push_back(r % 11 == 4 ? -1 : int(r * 17 % 50));
        for (std::int64_t i = 0; i < p.out; ++i)
            made.rows.at(r, i) = ids[r] < 0 ? 0.0f : made.source.at(ids[r], i);
    }
    made.row_ids = i32_on_device(ids);
    return made;
}

/// Calls test(problem, rows) with and without gathering.
template <typename Test>
void for_each_problem(Test test) {
    gpu::register_device_memory();
    for (const GroupedRows& p : problems())
        for (const bool gathers : {false, true}) {
            SCOPED_TRACE(fmt::format("{} rows, {} groups, width {}, gathers {}", p.rows(),
                                     p.num_groups(), p.out, gathers));
            test(p, make_rows(p, gathers));
        }
}

Tensor numbers_on_device(const Matrix& row) {
    return row.on_device(DType::f32, {row.columns});
}

/// Elements of all rows of groups.
void expect_elements(const GroupedRows& p, const std::vector<float>& got,
                     const Matrix& want) {
    ASSERT_EQ(got.size(), want.values.size());
    for (std::int64_t i = 0; i < p.rows() * want.columns; ++i)
        ASSERT_EQ(got[i], want.values[i]) << "element " << i;
    expect_left(p, got);
}

/// Σ row_scale_r dy_r.
void expect_bias_gradient(const GroupedRows& p, const Gathered& dy, DType dtype,
                          bool scales) {
    const Matrix scale(1, p.all_rows(), 5);
    Matrix want(p.num_groups(), p.out);
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        for (std::int64_t o = 0; o < p.out; ++o)
            want.at(g, o) += (scales ? scale.values[r] : 1.0f) * dy.rows.at(r, o);
    });
    const Tensor made = linear_backward_bias(dy.source.on_device(),
                                             scales ? numbers_on_device(scale) : Tensor(),
                                             dy.row_ids, p.groups(), dtype);
    ASSERT_EQ(made.shape(), (Shape{p.num_groups(), p.out}));
    const std::vector<float> got = on_host(made);
    for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_EQ(got[i], rounded(want.values[i], dtype)) << "element " << i;
}

TEST(OptimizedRows, BiasGradientIsZeroForGroupsWithoutRows) {
    for_each_problem([](const GroupedRows& p, const Gathered& dy) {
        expect_bias_gradient(p, dy, DType::bf16, true);
        expect_bias_gradient(p, dy, DType::f32, false);
    });
}

TEST(OptimizedRows, ScaledRows) {
    for_each_problem([](const GroupedRows& p, const Gathered& x) {
        const Matrix scale(1, p.all_rows(), 5);
        Matrix want(p.all_rows(), p.out);
        for (std::int64_t r = 0; r < want.rows; ++r)
            for (std::int64_t i = 0; i < p.out; ++i)
                want.at(r, i) = scale.values[r] * x.rows.at(r, i);
        expect_elements(p,
                        on_host(scale_rows(x.source.on_device(), numbers_on_device(scale),
                                           x.row_ids, p.groups())),
                        want);
    });
}

/// <x_r, y_r>, y_r a row of `y` by number.
template <typename RowOf>
Matrix plain_dots(const GroupedRows& p, const Matrix& x, const Matrix& y, RowOf row_of) {
    Matrix dots(p.all_rows(), 1);
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        for (std::int64_t i = 0; i < p.out; ++i)
            dots.values[r] += x.at(r, i) * y.at(row_of(g, r), i);
    });
    return dots;
}

TEST(OptimizedRows, Dots) {
    for_each_problem([](const GroupedRows& p, const Gathered& x) {
        const Matrix y = p.rows_of(p.out, 5);
        expect_elements(
            p,
            on_host(row_dots(x.source.on_device(), y.on_device(), x.row_ids, p.groups())),
            plain_dots(p, x.rows, y, [](std::int64_t, std::int64_t r) { return r; }));
    });
}

TEST(OptimizedRows, BiasDotsAreAdded) {
    for_each_problem([](const GroupedRows& p, const Gathered& dy) {
        const Matrix bias(p.num_groups(), p.out, 5);
        Matrix before = p.rows_of(1, 6),
               want = plain_dots(p, dy.rows, bias,
                                 [](std::int64_t g, std::int64_t) { return g; });
        for (std::int64_t r = 0; r < p.rows(); ++r) want.values[r] += before.values[r];
        Tensor dp = before.on_device(DType::f32, {p.all_rows()});
        add_bias_dots(dp, bias.on_device(), dy.source.on_device(), dy.row_ids,
                      p.groups());
        expect_elements(p, on_host(dp), want);
    });
}

TEST(OptimizedRows, InEveryOrderOfThreads) {
    gpu::register_device_memory();
    const GroupedRows p = {{2, 30}, 72, 0};
    in_every_mode([&] {
        expect_bias_gradient(p, make_rows(p, true), DType::bf16, true);
        expect_bias_gradient(p, make_rows(p, false), DType::f32, false);
    });
}

}  // namespace
}  // namespace moe::test
