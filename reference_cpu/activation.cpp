// activation.cpp: the activation functions with their slopes, and what they do to a row.

#include "reference_cpu/activation.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace moe::cpu {
namespace {

/// act(x) and act'(x) into the arguments: x σ(x).
template <typename Array>
void silu(const Array& x, Array& value, Array& slope) {
    const Array s = 1 / (1 + (-x).exp());
    value = x * s;
    slope = s * (1 + x * (1 - s));
}

/// x Φ(x), Φ the normal distribution function: the exact form, not the tanh fit.
template <typename Array>
void gelu(const Array& x, Array& value, Array& slope) {
    using Scalar = typename Array::Scalar;
    const Scalar sqrt2 = std::numbers::sqrt2_v<Scalar>;
    const Scalar pdf_of_zero = std::numbers::inv_sqrtpi_v<Scalar> / sqrt2;
    const Array cdf = x.unaryExpr([&](Scalar v) { return std::erfc(-v / sqrt2) / 2; });
    value = x * cdf;
    slope = cdf + x * pdf_of_zero * (-x * x / 2).exp();
}

/// x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), as x σ(2u). Not Megatron's:
/// torch.nn.functional.gelu with approximate="tanh".
template <typename Array>
void gelu_tanh(const Array& x, Array& value, Array& slope) {
    using Scalar = typename Array::Scalar;
    const Scalar twice = 2 * std::numbers::sqrt2_v<Scalar> *
                         std::numbers::inv_sqrtpi_v<Scalar>;  // 2 √(2/π)
    const auto cubic = Scalar(0.044715);
    const Array s = 1 / (1 + (-twice * x * (1 + cubic * x * x)).exp());
    value = x * s;
    slope = s * (1 + twice * x * (1 + 3 * cubic * x * x) * (1 - s));
}

/// x σ(1.702 x). Source: fusions/fused_bias_geglu.py, quick_gelu.
template <typename Array>
void quick_gelu(const Array& x, Array& value, Array& slope) {
    using Scalar = typename Array::Scalar;
    const auto steepness = Scalar(1.702);
    const Array s = 1 / (1 + (-steepness * x).exp());
    value = x * s;
    slope = s * (1 + steepness * x * (1 - s));
}

/// max(x, 0)². Source: megatron/core/activations.py, squared_relu.
template <typename Array>
void squared_relu(const Array& x, Array& value, Array& slope) {
    using Scalar = typename Array::Scalar;
    const Array positive = (x < 0).select(Scalar(0), x);
    value = positive * positive;
    slope = 2 * positive;
}

}  // namespace

template <typename Scalar>
auto ExpertActivation<Scalar>::function_at(const Piece& x) const -> ValueAndSlope {
    ValueAndSlope result;
    if (name_ == "silu") {
        silu(x, result.value, result.slope);
    } else if (name_ == "gelu") {
        gelu(x, result.value, result.slope);
    } else if (name_ == "gelu_tanh") {
        gelu_tanh(x, result.value, result.slope);
    } else if (name_ == "quick_gelu") {
        quick_gelu(x, result.value, result.slope);
    } else {
        MOE_CHECK_EQ(name_, "squared_relu");
        squared_relu(x, result.value, result.slope);
    }
    return result;
}

// select(), unlike Eigen's min() and max(), lets a NaN through.
/// min(gate half, c).
template <typename Scalar>
auto ExpertActivation<Scalar>::gate(ConstRow h) const -> Piece {
    if (!is_clamped()) return h;
    return (h > clamp_).select(clamp_, h);
}

/// clamp(up half, -c, c) + o.
template <typename Scalar>
auto ExpertActivation<Scalar>::up(ConstRow h) const -> Piece {
    if (!is_clamped()) return h + offset_;
    const Piece low = (h > clamp_).select(clamp_, h);
    return (low < -clamp_).select(-clamp_, low) + offset_;
}

template <typename Scalar>
void ExpertActivation<Scalar>::forward(Row a, ConstRow h, Scalar p) const {
    for (std::int64_t f = 0; f < ffn_; f += kPiece) {
        const std::int64_t count = std::min(kPiece, ffn_ - f);
        const auto first_half = h.segment(f, count);
        if (gated_)
            a.segment(f, count) =
                p * function_at(gate(first_half)).value * up(h.segment(ffn_ + f, count));
        else
            a.segment(f, count) = p * function_at(first_half).value;
    }
}

template <typename Scalar>
Scalar ExpertActivation<Scalar>::backward(Row dh, ConstRow h, ConstRow da,
                                          Scalar p) const {
    Scalar dp = 0;
    for (std::int64_t f = 0; f < ffn_; f += kPiece) {
        const std::int64_t count = std::min(kPiece, ffn_ - f);
        if (gated_) {
            dp += backward_piece(dh.segment(f, count), dh.segment(ffn_ + f, count),
                                 h.segment(f, count), h.segment(ffn_ + f, count),
                                 da.segment(f, count), p);
            continue;
        }
        const ValueAndSlope act = function_at(h.segment(f, count));
        dh.segment(f, count) = p * da.segment(f, count) * act.slope;
        dp += (act.value * da.segment(f, count)).sum();
    }
    return dp;
}

/// Of a gated unit, for some f: its part of dp.
template <typename Scalar>
Scalar ExpertActivation<Scalar>::backward_piece(Row dgate, Row dup, ConstRow gate_half,
                                                ConstRow up_half, ConstRow da,
                                                Scalar p) const {
    const ValueAndSlope act = function_at(gate(gate_half));
    const Piece factor = up(up_half);
    dgate = p * da * act.slope * factor;
    dup = p * da * act.value;
    if (is_clamped()) {
        // A clamped half has no slope; on the bound itself it still has one.
        dgate = (gate_half <= clamp_).select(dgate, Scalar(0));
        dup = (up_half.abs() <= clamp_).select(dup, Scalar(0));
    }
    return (act.value * factor * da).sum();
}

template class ExpertActivation<float>;
template class ExpertActivation<double>;

}  // namespace moe::cpu
