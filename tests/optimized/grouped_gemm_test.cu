// grouped_gemm_test.cu: the products of groups of rows against plain loops. Operands are
// small whole numbers, so that every sum is exact and equality is to the last bit.

#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "tests/conformance/modes.h"
#include "tests/optimized/grouped_rows_support.h"

namespace moe::test {
namespace {

using optimized::Bias;
using Problem = GroupedRows;

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

void expect_rows(const Problem& p, const Tensor& y, const Matrix& want, DType dtype) {
    const std::vector<float> got = on_host(y);
    ASSERT_EQ(got.size(), want.values.size());
    p.for_each_row([&](std::int64_t, std::int64_t r) {
        for (std::int64_t c = 0; c < want.columns; ++c)
            ASSERT_EQ(got[r * want.columns + c], rounded(want.at(r, c), dtype))
                << "row " << r << ", column " << c;
    });
}

/// y_r = W_g x_r.
Matrix plain_forward(const Problem& p, const Matrix& x) {
    const Matrix w = p.weight();
    Matrix y(x.rows, p.out);
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        for (std::int64_t o = 0; o < p.out; ++o)
            for (std::int64_t i = 0; i < p.in; ++i)
                y.at(r, o) += x.at(r, i) * w.at(g * p.out + o, i);
    });
    return y;
}

TEST(OptimizedGroupedGemm, Forward) {
    gpu::register_device_memory();
    for (const Problem& p : problems())
        for (const DType dtype : {DType::f32, DType::bf16}) {
            SCOPED_TRACE(fmt::format("{} groups, out {}, in {}, {}", p.num_groups(),
                                     p.out, p.in, to_string(dtype)));
            const Matrix x = p.rows_of(p.in, 3);
            const Tensor y = linear_forward(x.on_device(), p.device_weight(), {}, {},
                                            p.groups(), dtype);
            expect_rows(p, y, plain_forward(p, x), dtype);
        }
}

TEST(OptimizedGroupedGemm, ForwardGathersRowsAndAddsAScaledBias) {
    gpu::register_device_memory();
    for (const Problem& p :
         {Problem{{4, 0, 131}, 80, 72, 0}, Problem{{4, 3}, 31, 9, 0}}) {
        const Matrix tokens(50, p.in, 3), w = p.weight(), bias(p.num_groups(), p.out, 4),
                                          scale(1, p.rows(), 2);
        std::vector<std::int32_t> ids;
        for (std::int64_t r = 0; r < p.rows(); ++r) ids.push_back(int(r * 17 % 50));
        Matrix want(p.rows(), p.out);
        p.for_each_row([&](std::int64_t g, std::int64_t r) {
            for (std::int64_t o = 0; o < p.out; ++o) {
                want.at(r, o) = scale.values[r] * bias.at(g, o);
                for (std::int64_t i = 0; i < p.in; ++i)
                    want.at(r, o) += tokens.at(ids[r], i) * w.at(g * p.out + o, i);
            }
        });
        const Bias b = {bias.on_device(), scale.on_device(DType::f32, {p.rows()})};
        const Tensor y = linear_forward(tokens.on_device(), p.device_weight(), b,
                                        i32_on_device(ids), p.groups(), DType::f32);
        expect_rows(p, y, want, DType::f32);
    }
}

/// h exactly, and a = act(h) p in fp64, of a problem whose weights have `out` rows.
void expect_up_projection(const Problem& p, const optimized::ExpertActivation& activation,
                          DType dtype, bool bare) {
    const std::int64_t F = activation.gated ? p.out / 2 : p.out;
    const Matrix tokens(50, p.in, 3), w = p.weight(), bias(p.num_groups(), p.out, 4),
                                      probs(1, p.rows(), 2);
    std::vector<std::int32_t> ids;
    for (std::int64_t r = 0; r < p.rows(); ++r) ids.push_back(int(r * 17 % 50));
    const auto made = linear_forward_activation(
        tokens.on_device(), p.device_weight(), bare ? Tensor() : bias.on_device(),
        bare ? Tensor() : probs.on_device(DType::f32, {p.rows()}), i32_on_device(ids),
        p.groups(), activation, dtype);
    const std::vector<float> h = on_host(made.h), a = on_host(made.a);
    ASSERT_EQ(std::int64_t(h.size()), p.rows() * p.out);
    ASSERT_EQ(std::int64_t(a.size()), p.rows() * F);
    const double c = activation.clamp;
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        std::vector<float> row(p.out);
        for (std::int64_t o = 0; o < p.out; ++o) {
            row[o] = bare ? 0.0f : bias.at(g, o);
            for (std::int64_t i = 0; i < p.in; ++i)
                row[o] += tokens.at(ids[r], i) * w.at(g * p.out + o, i);
            ASSERT_EQ(h[r * p.out + o], rounded(row[o], dtype)) << r << ", " << o;
        }
        for (std::int64_t f = 0; f < F; ++f) {
            double want =
                activation.gated
                    ? activation_of(activation, std::min<double>(row[f], c)) *
                          (std::clamp<double>(row[F + f], -c, c) + activation.offset)
                    : activation_of(activation, row[f]);
            want *= bare ? 1.0 : probs.values[r];
            ASSERT_NEAR(a[r * F + f], want, std::abs(want) / 200.0 + 1e-6)
                << r << ", " << f;
        }
    });
}

TEST(OptimizedGroupedGemm, UpProjectionTakesTheActivationOfItsSums) {
    gpu::register_device_memory();
    using optimized::ActivationFunction;
    const std::vector<Problem> shapes = {
        {{3, 0, 130}, 160, 72, 0},  // F = 80: a tile and more
        {{5}, 200, 16, 0},          // F = 100: no multiple of 8
        {{2, 4}, 26, 9, 0}};        // F = 13
    for (const Problem& p : shapes)
        for (const bool gated : {true, false})
            for (const DType dtype : {DType::bf16, DType::f32}) {
                SCOPED_TRACE(fmt::format("{} x {}, gated {}, {}", p.out, p.in, gated,
                                         to_string(dtype)));
                expect_up_projection(p, {ActivationFunction::silu, gated}, dtype, false);
            }
    for (const auto function : {ActivationFunction::gelu, ActivationFunction::quick_gelu,
                                ActivationFunction::squared_relu})
        expect_up_projection(shapes[2], {function, function != ActivationFunction::gelu},
                             DType::bf16, true);
    expect_up_projection(shapes[2], {ActivationFunction::quick_gelu, true, 1.0f, 3.0f},
                         DType::f32, false);
}

TEST(OptimizedGroupedGemm, BackwardInput) {
    gpu::register_device_memory();
    for (const Problem& p : problems()) {
        SCOPED_TRACE(fmt::format("out {}, in {}", p.out, p.in));
        const Matrix dy = p.rows_of(p.out, 3), w = p.weight();
        Matrix want(dy.rows, p.in);
        p.for_each_row([&](std::int64_t g, std::int64_t r) {
            for (std::int64_t o = 0; o < p.out; ++o)
                for (std::int64_t i = 0; i < p.in; ++i)
                    want.at(r, i) += dy.at(r, o) * w.at(g * p.out + o, i);
        });
        expect_rows(p,
                    linear_backward_input(dy.on_device(), p.device_weight(), p.groups()),
                    want, DType::bf16);
    }
}

/// Which operand's rows are gathered.
struct Gathers {
    bool dy, x;
};

void expect_weight_gradient(const Problem& p, DType dtype, Gathers gathers) {
    SCOPED_TRACE(fmt::format("out {}, in {}, {}, gathers {} {}", p.out, p.in,
                             to_string(dtype), gathers.dy, gathers.x));
    const Matrix dy = gathers.dy ? Matrix(50, p.out, 3) : p.rows_of(p.out, 3);
    const Matrix x = gathers.x ? Matrix(50, p.in, 2) : p.rows_of(p.in, 2);
    std::vector<std::int32_t> dy_ids, x_ids;
    for (std::int64_t r = 0; r < p.all_rows(); ++r) {
        dy_ids.push_back(gathers.dy ? int(r * 23 % 50) : int(r));
        x_ids.push_back(gathers.x ? int(r * 17 % 50) : int(r));
    }
    Matrix want(p.num_groups() * p.out, p.in);
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        for (std::int64_t o = 0; o < p.out; ++o)
            for (std::int64_t i = 0; i < p.in; ++i)
                want.at(g * p.out + o, i) += dy.at(dy_ids[r], o) * x.at(x_ids[r], i);
    });
    const std::vector<float> got = on_host(linear_backward_weight(
        dy.on_device(), gathers.dy ? i32_on_device(dy_ids) : Tensor(), x.on_device(),
        gathers.x ? i32_on_device(x_ids) : Tensor(), p.groups(), dtype));
    ASSERT_EQ(got.size(), want.values.size());
    for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_EQ(got[i], rounded(want.values[i], dtype)) << "element " << i;
}

TEST(OptimizedGroupedGemm, BackwardWeightIsZeroForGroupsWithoutRows) {
    gpu::register_device_memory();
    for (const Problem& p : problems()) {
        expect_weight_gradient(p, DType::f32, {false, false});
        expect_weight_gradient(p, DType::bf16, {false, true});
    }
}

TEST(OptimizedGroupedGemm, BackwardWeightGathersEitherOperand) {
    gpu::register_device_memory();
    for (const Problem& p : {Problem{{3, 0, 70}, 24, 136}, Problem{{4, 9}, 31, 9}}) {
        expect_weight_gradient(p, DType::bf16, {true, false});
        expect_weight_gradient(p, DType::f32, {true, true});
    }
}

/// Padding rows belong to a group, but to no token.
TEST(OptimizedGroupedGemm, ANegativeRowIdIsARowOfZeros) {
    gpu::register_device_memory();
    const Tensor ids = i32_on_device({-1, 2, -1});
    for (const std::int64_t in : {40, 6, 9}) {
        const Problem p = {{3}, 16, in, 0};
        const Matrix x(3, in, 3), dy(3, p.out, 4);
        Matrix gathered(3, in);
        for (std::int64_t i = 0; i < in; ++i) gathered.at(1, i) = x.at(2, i);
        expect_rows(p,
                    linear_forward(x.on_device(), p.device_weight(), {}, ids, p.groups(),
                                   DType::f32),
                    plain_forward(p, gathered), DType::f32);
        const auto weight_gradient = [&](const Matrix& of, const Tensor& row_ids) {
            return on_host(linear_backward_weight(dy.on_device(), {}, of.on_device(),
                                                  row_ids, p.groups(), DType::f32));
        };
        EXPECT_EQ(weight_gradient(x, ids), weight_gradient(gathered, {}));
    }
}

TEST(OptimizedGroupedGemm, InEveryOrderOfThreadsAndCopies) {
    gpu::register_device_memory();
    const Problem p = {{2, 130}, 40, 136};
    const Matrix x = p.rows_of(p.in, 3), want = plain_forward(p, x);
    in_every_mode([&] {
        expect_rows(p,
                    linear_forward(x.on_device(), p.device_weight(), {}, {}, p.groups(),
                                   DType::bf16),
                    want, DType::bf16);
        expect_weight_gradient({{70, 0, 3}, 24, 40}, DType::bf16, {true, true});
    });
}

}  // namespace
}  // namespace moe::test
