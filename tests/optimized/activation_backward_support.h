/// @file
/// FC2's input gradient with the activation's backward in it, against loops in fp64. The
/// gradient of a is a sum of small whole numbers, exact; slopes are differences of the
/// function's values, not a second copy of the formulas.
#pragma once

#include "tests/optimized/grouped_rows_support.h"

namespace moe::test {
namespace {

using optimized::ActivationFunction;
using optimized::ExpertActivation;

/// FC2's weights have `out` = H rows and `in` = F columns.
struct BackwardProblem {
    GroupedRows rows;
    ExpertActivation activation = {};
    DType dtype = DType::bf16;  // of h
    bool gathers = true, has_probs = true;

    std::int64_t F() const { return rows.in; }
    std::int64_t width() const { return activation.gated ? 2 * F() : F(); }
    int token_of(std::int64_t r) const { return gathers ? int(r * 17 % 50) : int(r); }
    Matrix dy() const {
        return gathers ? Matrix(50, rows.out, 3) : rows.rows_of(rows.out, 3);
    }
    /// Multiples of 1/4 up to 3.5: exact in bf16, and clamps lie on some.
    Matrix h() const {
        Matrix result = rows.rows_of(width(), 4);
        const Matrix fine(rows.all_rows(), width(), 5);
        for (std::size_t i = 0; i < result.values.size(); ++i)
            result.values[i] = 1.5f * result.values[i] + 0.25f * fine.values[i];
        return result;
    }
    Matrix probs() const {
        Matrix result(1, rows.all_rows(), 6);
        for (float& p : result.values) p = has_probs ? p * 0.375f : 1.0f;
        return result;
    }
};

struct Want {
    double a, dgate, dup, dp;
};

/// One element: da is the gradient of a before it is weighted by p.
inline Want plain_backward(const ExpertActivation& activation, double gate, double up,
                           double da, double p) {
    const double c = activation.gated ? double(activation.clamp) : INFINITY;
    const double x = std::min(gate, c), step = 1e-7;
    const double act = activation_of(activation, x);
    const double slope =
        (activation_of(activation, x + step) - activation_of(activation, x - step)) /
        (2.0 * step);
    const double other =
        activation.gated ? std::clamp(up, -c, c) + activation.offset : 1.0;
    return {p * act * other, gate > c ? 0.0 : p * da * slope * other,
            std::abs(up) > c ? 0.0 : p * da * act, act * other * da};
}

/// As far from `want` as rounding to bf16 may go, and a little more.
inline double slack(double want) {
    return std::abs(want) / 250.0 + 1e-5;
}

/// What the kernels made, and what of.
struct Backward {
    Matrix h, probs;
    std::vector<float> dh, a, dp;
};

inline void expect_row(const BackwardProblem& b, const Backward& got, std::int64_t r,
                       const std::vector<double>& da) {
    const std::int64_t F = b.F(), width = b.width();
    const bool gated = b.activation.gated;
    double dp = 0.0, magnitude = 0.0;
    for (std::int64_t f = 0; f < F; ++f) {
        const Want want =
            plain_backward(b.activation, got.h.at(r, f), gated ? got.h.at(r, F + f) : 0.0,
                           da[f], got.probs.values[r]);
        const double dup = gated ? got.dh[r * width + F + f] : want.dup;
        ASSERT_NEAR(got.dh[r * width + f], want.dgate, slack(want.dgate))
            << r << ", " << f;
        ASSERT_NEAR(dup, want.dup, slack(want.dup)) << r << ", " << f;
        ASSERT_NEAR(got.a[r * F + f], want.a, slack(want.a)) << r << ", " << f;
        dp += want.dp;
        magnitude += std::abs(want.dp);
    }
    ASSERT_NEAR(got.dp[r], dp, magnitude * 1e-6 + 1e-6) << "row " << r;
}

inline void expect_backward(const BackwardProblem& b) {
    SCOPED_TRACE(fmt::format("H {}, F {}, {} groups, function {}, gated {}, h {}",
                             b.rows.out, b.rows.in, b.rows.num_groups(),
                             int(b.activation.function), b.activation.gated,
                             to_string(b.dtype)));
    const std::int64_t R = b.rows.all_rows(), F = b.F();
    std::vector<std::int32_t> ids(R);
    for (std::int64_t r = 0; r < R; ++r) ids[r] = b.token_of(r);
    const Matrix dy = b.dy(), w = b.rows.weight();
    Backward got = {b.h(), b.probs(), {}, {}, {}};
    const auto made = optimized::linear_backward_activation(
        dy.on_device(), b.rows.device_weight(), got.h.on_device(b.dtype),
        b.has_probs ? got.probs.on_device(DType::f32, {R}) : Tensor(),
        b.gathers ? i32_on_device(ids) : Tensor(), b.rows.groups(), b.activation);
    ASSERT_EQ(made.dh.shape(), (Shape{R, b.width()}));
    ASSERT_EQ(made.a.shape(), (Shape{R, F}));
    ASSERT_EQ(made.dp.shape(), (Shape{R}));
    got.dh = on_host(made.dh);
    got.a = on_host(made.a);
    got.dp = on_host(made.dp);
    b.rows.for_each_row([&](std::int64_t g, std::int64_t r) {
        std::vector<double> da(F);
        for (std::int64_t o = 0; o < b.rows.out; ++o)
            for (std::int64_t f = 0; f < F; ++f)
                da[f] += double(dy.at(ids[r], o)) * w.at(g * b.rows.out + o, f);
        expect_row(b, got, r, da);
    });
    for (const auto* values : {&got.dh, &got.a, &got.dp}) expect_left(b.rows, *values);
}

}  // namespace
}  // namespace moe::test
