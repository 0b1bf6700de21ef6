/// @file
/// Between the two forms of a routing: for each token its K experts (ids and weights, as
/// route() writes them), and a dense map with a column for each expert. Source: Megatron,
/// fused_indices_converter.py, fused_indices_to_multihot.
#pragma once

#include <cuda_runtime.h>

#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

/// A routing with a column for each expert.
struct Multihot {
    Tensor map;    ///< (T, E) u8, 1 where the token goes to the expert
    Tensor probs;  ///< (T, E) f32 its weight there, 0 elsewhere
};

/// One launch, which writes the zeros too. An id that names no expert stops the kernel;
/// the experts of one token must differ, as a router's do.
/// @param ids      (T, K) i32; negative: dropped, and nowhere in the result
/// @param weights  (T, K) f32
Multihot indices_to_multihot(const Tensor& ids, const Tensor& weights, int num_experts,
                             cudaStream_t stream = gpu::current_stream());

/// dweights (T, K) f32: the entry of dprobs at each choice, 0 where the id is negative.
/// One launch. @param dprobs (T, E) f32 @param ids (T, K) i32
Tensor indices_to_multihot_backward(const Tensor& dprobs, const Tensor& ids,
                                    cudaStream_t stream = gpu::current_stream());

/// The way back: (T, K) i32, a token's experts in ascending order, then -1. One launch. A
/// token with more than K experts stops the kernel. Their weights are what
/// indices_to_multihot_backward() makes of probs (T, E). @param map (T, E) u8
Tensor multihot_to_indices(const Tensor& map, int topk,
                           cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
