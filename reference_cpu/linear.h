/// @file
/// Linear layers over groups of consecutive rows, each group with a weight of its own:
/// the routed experts (one group per expert), and, as a single group, the router's gate
/// and the shared experts. Weights are (out, in), y = W x, as in PyTorch.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace moe::cpu {

/// Rows [begin, end) of one group.
struct RowBlock {
    std::int64_t group, begin, end;
};

/// How rows fall into groups, and into blocks that one thread works on.
struct RowGroups {
    std::vector<std::int64_t> offsets;  ///< (G + 1), rows [offsets[g], offsets[g + 1])
    std::vector<RowBlock> blocks;       ///< all groups, cut evenly, about 512 rows each

    std::int64_t num_groups() const { return std::int64_t(offsets.size()) - 1; }
    std::int64_t num_rows() const { return offsets.back(); }
};

RowGroups make_row_groups(const std::vector<std::int64_t>& rows_per_group);

/// y_r = W_g x_r (+ b_g) (* row_scale_r for the bias alone).
/// @param x          (R, in)
/// @param weight     (G, out, in)
/// @param bias       (G, out) or undefined
/// @param row_scale  (R), multiplies the bias; undefined means 1
/// @return (R, out)
template <typename Scalar>
Tensor linear_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& row_scale, const RowGroups& groups);

/// dx_r = W_gᵀ dy_r. @return (R, in)
template <typename Scalar>
Tensor linear_backward_input(const Tensor& dy, const Tensor& weight,
                             const RowGroups& groups);

/// dW_g = sum over its rows of dy_r x_rᵀ; zero for a group without rows.
/// @return (G, out, in)
template <typename Scalar>
Tensor linear_backward_weight(const Tensor& dy, const Tensor& x, const RowGroups& groups);

/// db_g = sum over its rows of row_scale_r dy_r. @return (G, out)
template <typename Scalar>
Tensor linear_backward_bias(const Tensor& dy, const Tensor& row_scale,
                            const RowGroups& groups);

}  // namespace moe::cpu
