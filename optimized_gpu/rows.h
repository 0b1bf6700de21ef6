/// @file
/// Rows scaled, and their inner products: a warp for each row. Rows outside of all groups
/// are left as they are; where groups end, only the device needs to know.
///
/// Where row_ids are given, x is (T, H) and its row r is x[row_ids[r]]; a negative id, of
/// padding, is a row of zeros. All are bf16, sums fp32, in one order whatever the run.
#pragma once

#include "optimized_gpu/grouped_gemm/grouped_gemm.h"

namespace moe::optimized {

/// scale_r x_r, for moe_apply_probs_on_input. Source: Megatron, moe/experts.py,
/// TEGroupedMLP.forward.
/// @param x        (R, H), or (T, H) with row_ids
/// @param scale    (R) f32
/// @param row_ids  (R) i32 or undefined
/// @return (R, H)
Tensor scale_rows(const Tensor& x, const Tensor& scale, const Tensor& row_ids,
                  const RowGroups& groups, cudaStream_t stream = gpu::current_stream());

/// <x_r, y_r>, the gradient of scale_rows() for its scale.
/// @param x  (R, H), or (T, H) with row_ids @param y (R, H)
/// @param row_ids  of x: (R) i32 or undefined
/// @return (R) f32
Tensor row_dots(const Tensor& x, const Tensor& y, const Tensor& row_ids,
                const RowGroups& groups, cudaStream_t stream = gpu::current_stream());

/// dp_r += <bias_g, dy_r> for the rows of every group g: the probability weighs the bias
/// as well.
/// @param dp       (R) f32
/// @param bias     (G, H)
/// @param dy       (R, H), or (T, H) with row_ids
/// @param row_ids  (R) i32 or undefined
void add_bias_dots(Tensor& dp, const Tensor& bias, const Tensor& dy,
                   const Tensor& row_ids, const RowGroups& groups,
                   cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
