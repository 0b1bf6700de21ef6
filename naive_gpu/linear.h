/// @file
/// Linear layers over groups of consecutive rows, each group with a weight of its own:
/// the routed experts (one group per expert), and, as a single group, the router's gate
/// and the shared experts. Weights are (out, in), y = W x, as in PyTorch.
///
/// T is the type of the elements: float, double or __nv_bfloat16. Sums are kept in
/// Accumulator<T> and rounded to T once. `stream` is where the kernel runs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::naive {

/// How rows fall into groups, on the host and for kernels.
struct RowGroups {
    std::vector<std::int64_t> offsets;  ///< (G + 1), rows [offsets[g], offsets[g + 1])
    Tensor row_group;                   ///< (R) i64 on the device, group of row r
    Tensor device_offsets;              ///< (G + 1) i64 on the device

    std::int64_t num_groups() const { return std::int64_t(offsets.size()) - 1; }
    std::int64_t num_rows() const { return offsets.back(); }
};

RowGroups make_row_groups(const std::vector<std::int64_t>& rows_per_group);

/// y_r = W_g x_r (+ b_g) (* row_scale_r for the bias alone).
/// @param x          (R, in)
/// @param weight     (G, out, in)
/// @param bias       (G, out) or undefined
/// @param row_scale  (R) Accumulator<T>, multiplies the bias; undefined means 1
/// @tparam Y  type of the result; Accumulator<T> leaves the sum as it is
/// @return (R, out)
template <typename T, typename Y = T>
Tensor linear_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                      const Tensor& row_scale, const RowGroups& groups,
                      cudaStream_t stream = gpu::current_stream());

/// dx_r = W_gᵀ dy_r. @return (R, in)
template <typename T>
Tensor linear_backward_input(const Tensor& dy, const Tensor& weight,
                             const RowGroups& groups,
                             cudaStream_t stream = gpu::current_stream());

/// dW_g = sum over its rows of dy_r x_rᵀ; zero for a group without rows.
/// @return (G, out, in)
template <typename T>
Tensor linear_backward_weight(const Tensor& dy, const Tensor& x, const RowGroups& groups,
                              cudaStream_t stream = gpu::current_stream());

/// db_g = sum over its rows of row_scale_r dy_r. @return (G, out)
/// @param row_scale  (R) Accumulator<T>, or undefined for 1
template <typename T>
Tensor linear_backward_bias(const Tensor& dy, const Tensor& row_scale,
                            const RowGroups& groups);

/// sum += term, element by element.
template <typename T>
void add_to(Tensor& sum, const Tensor& term);

/// a times b, element by element.
template <typename T>
Tensor multiply(const Tensor& a, const Tensor& b);

}  // namespace moe::naive
