/// @file
/// The products of groups of rows against plain loops. Operands are small whole numbers,
/// so that every sum is exact and equality is to the last bit.
#pragma once

#include "optimized_gpu/grouped_gemm/rung.h"
#include "tests/optimized/grouped_rows_support.h"

namespace moe::test {
namespace {

/// Products take this rung while it lives.
class RungGuard {
  public:
    explicit RungGuard(optimized::Rung rung) { optimized::set_rung(rung); }
    ~RungGuard() { optimized::set_rung(std::nullopt); }
};
/// Likewise, the consumers of the fourth rung.
class ConsumersGuard {
  public:
    explicit ConsumersGuard(optimized::Consumers consumers) {
        optimized::set_consumers(consumers);
    }
    ~ConsumersGuard() { optimized::set_consumers(std::nullopt); }
};

/// A device of so many multiprocessors while it lives: blocks that stay take many tiles.
class MultiprocessorsGuard {
  public:
#ifdef __CUDACC__
    explicit MultiprocessorsGuard(int) {}
#else
    explicit MultiprocessorsGuard(int count)
        : before_(cuda_on_cpu::options().multiprocessors) {
        cuda_on_cpu::options().multiprocessors = count;
    }
    ~MultiprocessorsGuard() {
        cuda_on_cpu::options().multiprocessors = before_;
    }

  private:
    int before_;
#endif
};

inline void expect_rows(const GroupedRows& p, const Tensor& y, const Matrix& want,
                        DType dtype) {
    const std::vector<float> got = on_host(y);
    ASSERT_EQ(got.size(), want.values.size());
    p.for_each_row([&](std::int64_t, std::int64_t r) {
        for (std::int64_t c = 0; c < want.columns; ++c)
            ASSERT_EQ(got[r * want.columns + c], rounded(want.at(r, c), dtype))
                << "row " << r << ", column " << c;
    });
    expect_left(p, got);
}

/// y_r = W_g x_r.
inline Matrix plain_forward(const GroupedRows& p, const Matrix& x) {
    const Matrix w = p.weight();
    Matrix y(x.rows, p.out);
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        for (std::int64_t o = 0; o < p.out; ++o)
            for (std::int64_t i = 0; i < p.in; ++i)
                y.at(r, o) += x.at(r, i) * w.at(g * p.out + o, i);
    });
    return y;
}

inline void expect_forward(const GroupedRows& p, DType dtype) {
    SCOPED_TRACE(fmt::format("{} groups, out {}, in {}, {}", p.num_groups(), p.out, p.in,
                             to_string(dtype)));
    const Matrix x = p.rows_of(p.in, 3);
    const Tensor y =
        linear_forward(x.on_device(), p.device_weight(), {}, {}, p.groups(), dtype);
    expect_rows(p, y, plain_forward(p, x), dtype);
}

/// Rows of 50 tokens, and a bias that is scaled by row.
inline void expect_gathered_forward(const GroupedRows& p) {
    const Matrix tokens(50, p.in, 3), w = p.weight(), bias(p.num_groups(), p.out, 4),
                                      scale(1, p.all_rows(), 2);
    std::vector<std::int32_t> ids;
    for (std::int64_t r = 0; r < p.all_rows(); ++r) ids.push_back(int(r * 17 % 50));
    Matrix want(p.all_rows(), p.out);
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        for (std::int64_t o = 0; o < p.out; ++o) {
            want.at(r, o) = scale.values[r] * bias.at(g, o);
            for (std::int64_t i = 0; i < p.in; ++i)
                want.at(r, o) += tokens.at(ids[r], i) * w.at(g * p.out + o, i);
        }
    });
    const optimized::Bias b = {bias.on_device(),
                               scale.on_device(DType::f32, {p.all_rows()})};
    const Tensor y = linear_forward(tokens.on_device(), p.device_weight(), b,
                                    i32_on_device(ids), p.groups(), DType::f32);
    expect_rows(p, y, want, DType::f32);
}

/// h exactly, and a = act(h) p in fp64, of a problem whose weights have `out` rows.
inline void expect_up_projection(const GroupedRows& p,
                                 const optimized::ExpertActivation& activation,
                                 DType dtype, bool bare = false) {
    SCOPED_TRACE(fmt::format("{} x {}, gated {}, {}", p.out, p.in, activation.gated,
                             to_string(dtype)));
    const std::int64_t F = activation.gated ? p.out / 2 : p.out;
    const Matrix tokens(50, p.in, 3), w = p.weight(), bias(p.num_groups(), p.out, 4),
                                      probs(1, p.all_rows(), 2);
    std::vector<std::int32_t> ids;
    for (std::int64_t r = 0; r < p.all_rows(); ++r) ids.push_back(int(r * 17 % 50));
    const auto made = linear_forward_activation(
        tokens.on_device(), p.device_weight(), bare ? Tensor() : bias.on_device(),
        bare ? Tensor() : probs.on_device(DType::f32, {p.all_rows()}), i32_on_device(ids),
        p.groups(), activation, dtype);
    const std::vector<float> h = on_host(made.h), a = on_host(made.a);
    ASSERT_EQ(std::int64_t(h.size()), p.all_rows() * p.out);
    ASSERT_EQ(std::int64_t(a.size()), p.all_rows() * F);
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
    expect_left(p, h);
    expect_left(p, a);
}

inline void expect_backward_input(const GroupedRows& p) {
    SCOPED_TRACE(fmt::format("out {}, in {}", p.out, p.in));
    const Matrix dy = p.rows_of(p.out, 3), w = p.weight();
    Matrix want(dy.rows, p.in);
    p.for_each_row([&](std::int64_t g, std::int64_t r) {
        for (std::int64_t o = 0; o < p.out; ++o)
            for (std::int64_t i = 0; i < p.in; ++i)
                want.at(r, i) += dy.at(r, o) * w.at(g * p.out + o, i);
    });
    expect_rows(p, linear_backward_input(dy.on_device(), p.device_weight(), p.groups()),
                want, DType::bf16);
}

/// Which operand's rows are gathered.
struct Gathers {
    bool dy, x;
};

inline void expect_weight_gradient(const GroupedRows& p, DType dtype, Gathers gathers) {
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

/// Padding rows belong to a group, but to no token.
inline void expect_zeros_of_negative_row_ids(std::int64_t in) {
    SCOPED_TRACE(in);
    const Tensor ids = i32_on_device({-1, 2, -1});
    const GroupedRows p = {{3}, 16, in, 0};
    const Matrix x(3, in, 3), dy(3, p.out, 4);
    Matrix gathered(3, in);
    for (std::int64_t i = 0; i < in; ++i) gathered.at(1, i) = x.at(2, i);
    expect_rows(
        p,
        linear_forward(x.on_device(), p.device_weight(), {}, ids, p.groups(), DType::f32),
        plain_forward(p, gathered), DType::f32);
    const auto weight_gradient = [&](const Matrix& of, const Tensor& row_ids) {
        return on_host(linear_backward_weight(dy.on_device(), {}, of.on_device(), row_ids,
                                              p.groups(), DType::f32));
    };
    EXPECT_EQ(weight_gradient(x, ids), weight_gradient(gathered, {}));
}

}  // namespace
}  // namespace moe::test
