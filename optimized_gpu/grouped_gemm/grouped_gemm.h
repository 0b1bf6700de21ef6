/// @file
/// Matrix products over groups of consecutive rows, each group with a weight of its own:
/// the routed experts (one group per expert), and, as a single group, whatever is dense.
/// Where groups begin, only the device needs to know: the host neither reads counts nor
/// waits. Weights are (out, in), y = W x, as in PyTorch.
///
/// Operands are bf16, sums fp32 on tensor cores, rounded once. The kernels are a ladder,
/// one idea a rung, see rung.h: 1_mma_sync serves every GPU from sm_80 on, and any
/// widths; the others are for compute capability 9.0, and operands whose rows are
/// multiples of 16 bytes and begin at such. Each rung gives the same bits every run;
/// those of two rungs may differ, as they sum in another order.
///
/// Where products take `into`, a caller may hand in what they return, e.g. from a call
/// with other groups: their rows are written there. Undefined: it is made.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor.h"
#include "gpu/stream.h"
#include "optimized_gpu/activation.h"

namespace moe::optimized {

/// How rows fall into groups.
struct RowGroups {
    Tensor offsets;  ///< (G + 1) i32 on the device: rows [offsets[g], offsets[g + 1])

    std::int64_t num_groups() const { return offsets.dim(0) - 1; }
};

/// Sums up the counts on the device. @param rows_per_group  (G) i32, on the device or on
/// the host, from where it is copied
RowGroups make_row_groups(const Tensor& rows_per_group,
                          cudaStream_t stream = gpu::current_stream());

/// All rows as a single group, for what is dense.
RowGroups make_single_group(std::int64_t num_rows,
                            cudaStream_t stream = gpu::current_stream());

/// What a product adds to its sums.
struct Bias {
    Tensor values = {};     ///< (G, out) bf16, or undefined: nothing
    Tensor row_scale = {};  ///< (R) f32, multiplies the bias of row r; undefined means 1
};

/// y_r = W_g x_r, plus the bias. Rows outside of all groups are left as they are.
/// @param x       (R, in) bf16; with `row_ids` (T, in): row r is x[row_ids[r]]
/// @param weight  (G, out, in) bf16
/// @param row_ids  (R) i32 or undefined; a negative one, of padding, is a row of zeros
/// @param dtype   of y: bf16 or f32
/// @return (R, out)
Tensor linear_forward(const Tensor& x, const Tensor& weight, const Bias& bias,
                      const Tensor& row_ids, const RowGroups& groups, DType dtype,
                      cudaStream_t stream = gpu::current_stream(),
                      const Tensor& into = {});

/// What the up-projection makes.
struct UpProjection {
    Tensor h;  ///< (R, 2F or F) bf16 or f32, before the activation, for the backward
    Tensor a;  ///< (R, F) bf16, weighted by row_probs
};

/// ⑥–⑧: h_r = W_g x_r + b_g, a_r = act(h_r) p_r, in one kernel: the activation is taken
/// of the sums in their registers, before h is rounded.
/// @param weight     (G, 2F or F, in): all gates first, as checkpoints have them
/// @param bias       (G, 2F or F) bf16 or undefined
/// @param row_probs  (R) f32, undefined means 1
/// @param dtype      of h
UpProjection linear_forward_activation(const Tensor& x, const Tensor& weight,
                                       const Tensor& bias, const Tensor& row_probs,
                                       const Tensor& row_ids, const RowGroups& groups,
                                       const ExpertActivation& activation, DType dtype,
                                       cudaStream_t stream = gpu::current_stream(),
                                       const UpProjection& into = {});

/// What the activation gives back.
struct ActivationGradients {
    Tensor dh;        ///< (R, 2F or F) bf16
    Tensor a;         ///< (R, F) bf16, act(h) p once more: FC2's input, for its weight
    Tensor dp;        ///< (R) f32
    Tensor dp_parts;  ///< (column tiles, R) f32, whose sum dp is; undefined for one tile.
                      ///< TUTORIAL: kept, because cudaFree() would wait for the kernels
};

/// ⑫–⑬: da'_r = W_gᵀ dy_r, dh_r = p_r act'(h_r) da'_r, dp_r = <act(h_r), da'_r>, all of
/// the sums in their registers: da' is neither rounded nor written. Rows outside of all
/// groups are left as they are. A kernel, and one that adds up dp where F > 128.
/// @param dy         (R, H) bf16; with `row_ids` (T, H): row r is dy[row_ids[r]]
/// @param weight     (G, H, F) bf16, of FC2
/// @param h          (R, 2F or F) bf16 or f32: where a clamp bites is decided on it
/// @param row_probs  (R) f32, undefined means 1
/// @param row_ids    (R) i32 or undefined
ActivationGradients linear_backward_activation(
    const Tensor& dy, const Tensor& weight, const Tensor& h, const Tensor& row_probs,
    const Tensor& row_ids, const RowGroups& groups, const ExpertActivation& activation,
    cudaStream_t stream = gpu::current_stream(), const ActivationGradients& into = {});

/// dx_r = W_gᵀ dy_r.
/// @param dy  (R, out) bf16 @return (R, in) bf16
Tensor linear_backward_input(const Tensor& dy, const Tensor& weight,
                             const RowGroups& groups,
                             cudaStream_t stream = gpu::current_stream(),
                             const Tensor& into = {});

/// dW_g = sum over its rows of dy_r x_rᵀ; zero for a group without rows.
/// @param dy          (R, out) bf16; with `dy_row_ids` (T, out): row r is
///                    dy[dy_row_ids[r]]
/// @param x           (R, in) bf16; with `x_row_ids` (T, in), likewise
/// @param dy_row_ids, x_row_ids  (R) i32 or undefined
/// @param dtype  of dW: bf16 or f32
/// @return (G, out, in)
Tensor linear_backward_weight(const Tensor& dy, const Tensor& dy_row_ids, const Tensor& x,
                              const Tensor& x_row_ids, const RowGroups& groups,
                              DType dtype, cudaStream_t stream = gpu::current_stream(),
                              const Tensor& into = {});

/// db_g = sum over its rows of row_scale_r dy_r; zero for a group without rows. One order
/// of summing, whatever the run.
/// @param dy         (R, out) bf16; with `row_ids` (T, out): row r is dy[row_ids[r]]
/// @param row_scale  (R) f32, undefined means 1
/// @param row_ids    (R) i32 or undefined
/// @param dtype      of db: bf16 or f32
/// @return (G, out)
Tensor linear_backward_bias(const Tensor& dy, const Tensor& row_scale,
                            const Tensor& row_ids, const RowGroups& groups, DType dtype,
                            cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
