/// @file
/// Activation functions of the experts, with their slopes, and the row functions that the
/// routed and the shared experts share.
#pragma once

#include <cmath>
#include <limits>
#include <numbers>

#include "core/config.h"
#include "core/error.h"
#include "reference_cpu/eigen.h"

namespace moe::cpu {

/// σ(x).
template <typename Scalar>
Scalar sigmoid(Scalar x) {
    return Scalar(1) / (Scalar(1) + std::exp(-x));
}

/// A row of values on which arithmetic is element by element.
template <typename Scalar>
using RowArray = Eigen::Array<Scalar, 1, Eigen::Dynamic>;

/// act(x) and act'(x).
template <typename Scalar>
struct ValueAndSlope {
    RowArray<Scalar> value, slope;
};

/// x σ(x).
struct Silu {
    template <typename Scalar>
    static ValueAndSlope<Scalar> at(const RowArray<Scalar>& x) {
        const RowArray<Scalar> s = 1 / (1 + (-x).exp());
        return {x * s, s * (1 + x * (1 - s))};
    }
};

/// x Φ(x), Φ the normal distribution function: the exact form, not the tanh fit.
struct Gelu {
    template <typename Scalar>
    static ValueAndSlope<Scalar> at(const RowArray<Scalar>& x) {
        const Scalar sqrt2 = std::numbers::sqrt2_v<Scalar>;
        const Scalar pdf_of_zero = std::numbers::inv_sqrtpi_v<Scalar> / sqrt2;
        const RowArray<Scalar> cdf =
            x.unaryExpr([&](Scalar v) { return std::erfc(-v / sqrt2) / 2; });
        return {x * cdf, cdf + x * pdf_of_zero * (-x * x / 2).exp()};
    }
};

/// x σ(1.702 x). Source: fusions/fused_bias_geglu.py, quick_gelu.
struct QuickGelu {
    template <typename Scalar>
    static ValueAndSlope<Scalar> at(const RowArray<Scalar>& x) {
        const auto steepness = Scalar(1.702);
        const RowArray<Scalar> s = 1 / (1 + (-steepness * x).exp());
        return {x * s, s * (1 + steepness * x * (1 - s))};
    }
};

/// max(x, 0)². Source: megatron/core/activations.py, squared_relu.
struct SquaredRelu {
    template <typename Scalar>
    static ValueAndSlope<Scalar> at(const RowArray<Scalar>& x) {
        const RowArray<Scalar> positive = (x < 0).select(Scalar(0), x);
        return {positive * positive, 2 * positive};
    }
};

/// The non-linear part of an expert's MLP for one row: h (2F or F) to a (F), weighted by
/// the row's probability p.
///
///     gated      a_f = p * act(min(h_f, c)) * (clamp(h_{F+f}, -c, c) + o)
///     otherwise  a_f = p * act(h_f)
///
/// c = activation_func_clamp_value (none: no clamp), o = glu_linear_offset; both belong
/// to gated units only. Source: mlp.py, MLP.forward; fusions/fused_bias_swiglu.py.
template <typename Scalar>
class ExpertActivation {
  public:
    using Row = Eigen::Ref<RowArray<Scalar>>;
    using ConstRow = const Eigen::Ref<const RowArray<Scalar>>&;

    ExpertActivation(const MoEConfig& config, std::int64_t ffn)
        : ffn_(ffn),
          name_(config.activation_func),
          gated_(config.gated_linear_unit),
          offset_(static_cast<Scalar>(config.glu_linear_offset)),
          clamp_(static_cast<Scalar>(config.activation_func_clamp_value.value_or(
              std::numeric_limits<double>::infinity()))) {}

    /// a (F) from h (2F or F).
    void forward(Row a, ConstRow h, Scalar p) const {
        with_function([&](auto act) {
            if (gated_)
                a = p * act.at(gate(h)).value * up(h);
            else
                a = p * act.at(RowArray<Scalar>(h)).value;
        });
    }

    /// dh (2F or F) from da (F); returns dp = Σ_f da_f a_f / p.
    Scalar backward(Row dh, ConstRow h, ConstRow da, Scalar p) const {
        return with_function([&](auto act) {
            if (gated_) return glu_backward(act.at(gate(h)), dh, h, da, p);
            const auto [value, slope] = act.at(RowArray<Scalar>(h));
            dh = p * da * slope;
            return (value * da).sum();
        });
    }

  private:
    // select(), unlike Eigen's min() and max(), lets a NaN through.
    /// min(gate half, c).
    RowArray<Scalar> gate(ConstRow h) const {
        return (h.head(ffn_) > clamp_).select(clamp_, h.head(ffn_));
    }
    /// clamp(up half, -c, c) + o.
    RowArray<Scalar> up(ConstRow h) const {
        const RowArray<Scalar> low = (h.tail(ffn_) > clamp_).select(clamp_, h.tail(ffn_));
        return (low < -clamp_).select(-clamp_, low) + offset_;
    }

    Scalar glu_backward(const ValueAndSlope<Scalar>& act, Row dh, ConstRow h, ConstRow da,
                        Scalar p) const {
        const RowArray<Scalar> up_half = up(h);
        // A clamped half has no slope; on the bound itself it still has one.
        const auto gate_moves = h.head(ffn_) <= clamp_;
        const auto up_moves = h.tail(ffn_).abs() <= clamp_;
        dh.head(ffn_) = gate_moves.select(p * da * act.slope * up_half, Scalar(0));
        dh.tail(ffn_) = up_moves.select(p * da * act.value, Scalar(0));
        return (act.value * up_half * da).sum();
    }

    template <typename Body>
    auto with_function(Body body) const {
        if (name_ == "silu") return body(Silu{});
        if (name_ == "gelu") return body(Gelu{});
        if (name_ == "quick_gelu") return body(QuickGelu{});
        MOE_CHECK_EQ(name_, "squared_relu");
        return body(SquaredRelu{});
    }

    std::int64_t ffn_;
    std::string name_;
    bool gated_;
    Scalar offset_, clamp_;
};

}  // namespace moe::cpu
