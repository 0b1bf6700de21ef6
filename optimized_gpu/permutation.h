/// @file
/// Permutation: token rows into expert order and back, at the speed of memory. Rows are
/// bf16 or fp32, probabilities fp32. Nothing waits for the host: how many rows there are
/// only the device knows, see RowMap. Source: moe_utils.py, permute and unpermute;
/// TransformerEngine, common/permutation/permutation.cu.
///
/// InputError for other element types; tensors must have the map's sizes, but for rows
/// that come back: of those, as few as there are will do.
#pragma once

#include "optimized_gpu/row_map.h"

namespace moe::optimized {

/// ⑥ A copy of each token for each of its experts; zeros in padding rows. Rows from
/// offsets[E] on stay as they were allocated.
/// @param tokens (T, H) @return rows (capacity, H)
Tensor permute(const Tensor& tokens, const RowMap& map,
               cudaStream_t stream = gpu::current_stream());

/// ⑩ out_t = the sum of the token's rows in ascending expert order, then of the addend,
/// in fp32, rounded once. A token without rows has the addend, or 0. The rows carry their
/// probability already, since the activation.
/// @param rows    (capacity, H)
/// @param addend  (T, H) what shared experts made of the tokens, or undefined
/// @return (T, H)
Tensor combine(const Tensor& rows, const RowMap& map, const Tensor& addend,
               cudaStream_t stream = gpu::current_stream());

/// The same into memory that is there. Where the map has regions, what is behind their
/// tokens is left as it is. @param output (T, H), as rows
void combine_into(const TensorView& output, const Tensor& rows, const RowMap& map,
                  const Tensor& addend, cudaStream_t stream = gpu::current_stream());

/// ⑪ drow_r = dout of the row's token; zeros in padding rows. The addend's gradient is
/// doutput itself. @param doutput (T, H) @return (capacity, H)
Tensor combine_backward(const Tensor& doutput, const RowMap& map,
                        cudaStream_t stream = gpu::current_stream());

/// ⑮ dtokens_t = the sum of the gradients of its rows.
/// @param drows (capacity, H) @return (T, H)
Tensor permute_backward(const Tensor& drows, const RowMap& map,
                        cudaStream_t stream = gpu::current_stream());

/// ⑮ dweights (T, K) f32, as the ids lay; 0 for dropped choices. A memset and a kernel.
/// @param drow_probs (capacity) f32
Tensor permute_probs_backward(const Tensor& drow_probs, const RowMap& map,
                              cudaStream_t stream = gpu::current_stream());
/// The same into memory that is there. @param dweights (T, K) f32
void permute_probs_backward_into(const TensorView& dweights, const Tensor& drow_probs,
                                 const RowMap& map,
                                 cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
