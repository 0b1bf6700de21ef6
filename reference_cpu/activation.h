/// @file
/// Activation functions of the experts, with their slopes, and the row functions that the
/// routed and the shared experts share.
#pragma once

#include <cmath>
#include <limits>

#include "core/config.h"
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
    void forward(Row a, ConstRow h, Scalar p) const;

    /// dh (2F or F) from da (F); returns dp = Σ_f da_f a_f / p.
    Scalar backward(Row dh, ConstRow h, ConstRow da, Scalar p) const;

  private:
    // A row is taken in pieces, whose values in between stay in the cache and need no
    // memory from the heap.
    static constexpr std::int64_t kPiece = 256;
    using Piece = Eigen::Array<Scalar, 1, Eigen::Dynamic, Eigen::RowMajor, 1, kPiece>;

    bool is_clamped() const { return std::isfinite(clamp_); }

    /// act(x) and act'(x).
    struct ValueAndSlope {
        Piece value, slope;
    };
    ValueAndSlope function_at(const Piece& x) const;
    Piece gate(ConstRow h) const;
    Piece up(ConstRow h) const;
    Scalar backward_piece(Row dgate, Row dup, ConstRow gate_half, ConstRow up_half,
                          ConstRow da, Scalar p) const;

    std::int64_t ffn_;
    std::string name_;
    bool gated_;
    Scalar offset_, clamp_;
};

}  // namespace moe::cpu
