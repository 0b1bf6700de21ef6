// activation.cpp: the activation functions with their slopes, and what they do to a row.

#include "reference_cpu/activation.h"

#include <cmath>
#include <numbers>

#include "core/error.h"

namespace moe::cpu {
namespace {

/// act(x) and act'(x) into the arguments: x σ(x).
template <typename Scalar>
void silu(const RowArray<Scalar>& x, RowArray<Scalar>& value, RowArray<Scalar>& slope) {
    const RowArray<Scalar> s = 1 / (1 + (-x).exp());
    value = x * s;
    slope = s * (1 + x * (1 - s));
}

/// x Φ(x), Φ the normal distribution function: the exact form, not the tanh fit.
template <typename Scalar>
void gelu(const RowArray<Scalar>& x, RowArray<Scalar>& value, RowArray<Scalar>& slope) {
    const Scalar sqrt2 = std::numbers::sqrt2_v<Scalar>;
    const Scalar pdf_of_zero = std::numbers::inv_sqrtpi_v<Scalar> / sqrt2;
    const RowArray<Scalar> cdf =
        x.unaryExpr([&](Scalar v) { return std::erfc(-v / sqrt2) / 2; });
    value = x * cdf;
    slope = cdf + x * pdf_of_zero * (-x * x / 2).exp();
}

/// x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), as x σ(2u). Not Megatron's:
/// torch.nn.functional.gelu with approximate="tanh".
template <typename Scalar>
void gelu_tanh(const RowArray<Scalar>& x, RowArray<Scalar>& value,
               RowArray<Scalar>& slope) {
    const Scalar twice = 2 * std::numbers::sqrt2_v<Scalar> *
                         std::numbers::inv_sqrtpi_v<Scalar>;  // 2 √(2/π)
    const auto cubic = Scalar(0.044715);
    const RowArray<Scalar> s = 1 / (1 + (-twice * x * (1 + cubic * x * x)).exp());
    value = x * s;
    slope = s * (1 + twice * x * (1 + 3 * cubic * x * x) * (1 - s));
}

/// x σ(1.702 x). Source: fusions/fused_bias_geglu.py, quick_gelu.
template <typename Scalar>
void quick_gelu(const RowArray<Scalar>& x, RowArray<Scalar>& value,
                RowArray<Scalar>& slope) {
    const auto steepness = Scalar(1.702);
    const RowArray<Scalar> s = 1 / (1 + (-steepness * x).exp());
    value = x * s;
    slope = s * (1 + steepness * x * (1 - s));
}

/// max(x, 0)². Source: megatron/core/activations.py, squared_relu.
template <typename Scalar>
void squared_relu(const RowArray<Scalar>& x, RowArray<Scalar>& value,
                  RowArray<Scalar>& slope) {
    const RowArray<Scalar> positive = (x < 0).select(Scalar(0), x);
    value = positive * positive;
    slope = 2 * positive;
}

}  // namespace

template <typename Scalar>
auto ExpertActivation<Scalar>::function_at(const RowArray<Scalar>& x) const
    -> ValueAndSlope {
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
RowArray<Scalar> ExpertActivation<Scalar>::gate(ConstRow h) const {
    return (h.head(ffn_) > clamp_).select(clamp_, h.head(ffn_));
}

/// clamp(up half, -c, c) + o.
template <typename Scalar>
RowArray<Scalar> ExpertActivation<Scalar>::up(ConstRow h) const {
    const RowArray<Scalar> low = (h.tail(ffn_) > clamp_).select(clamp_, h.tail(ffn_));
    return (low < -clamp_).select(-clamp_, low) + offset_;
}

template <typename Scalar>
void ExpertActivation<Scalar>::forward(Row a, ConstRow h, Scalar p) const {
    if (gated_)
        a = p * function_at(gate(h)).value * up(h);
    else
        a = p * function_at(h).value;
}

template <typename Scalar>
Scalar ExpertActivation<Scalar>::backward(Row dh, ConstRow h, ConstRow da,
                                          Scalar p) const {
    if (!gated_) {
        const ValueAndSlope act = function_at(h);
        dh = p * da * act.slope;
        return (act.value * da).sum();
    }
    const ValueAndSlope act = function_at(gate(h));
    const RowArray<Scalar> up_half = up(h);
    // A clamped half has no slope; on the bound itself it still has one.
    const auto gate_moves = h.head(ffn_) <= clamp_;
    const auto up_moves = h.tail(ffn_).abs() <= clamp_;
    dh.head(ffn_) = gate_moves.select(p * da * act.slope * up_half, Scalar(0));
    dh.tail(ffn_) = up_moves.select(p * da * act.value, Scalar(0));
    return (act.value * up_half * da).sum();
}

template class ExpertActivation<float>;
template class ExpertActivation<double>;

}  // namespace moe::cpu
