/// @file
/// The router's gate: logits = X Wᵀ + b, exactly in fp32 or fp64, on CUDA cores. Tensor
/// cores take no such factors; where tokens and weight are bf16 alike, linear_forward()
/// of grouped_gemm/ has the same sums sooner. Source: moe_utils.py,
/// RouterGatingLinearFunction.
///
/// The weight's type is that of all sums, of logits and of their gradients, but where it
/// may be bf16 as well; tokens are converted to it as they are read. The same bits every
/// time, and on every GPU. InputError for other element types.
#pragma once

#include <cuda_runtime.h>

#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

/// ② A launch, or two where tokens are few.
/// @param x       (T, H) bf16, f32 or f64
/// @param weight  (E, H) f32 or f64
/// @param bias    (E) as the weight, or undefined
/// @return (T, E) as the weight
Tensor gating_forward(const Tensor& x, const Tensor& weight, const Tensor& bias,
                      cudaStream_t stream = gpu::current_stream());

/// ② Tokens with jitter. One launch.
/// @param x (T, H) bf16, f32 or f64 @param factors (T, H) f32
/// @return (T, H) of `dtype` f32 or f64
Tensor jitter_tokens(const Tensor& x, const Tensor& factors, DType dtype,
                     cudaStream_t stream = gpu::current_stream());

/// ⑲ dhidden += dlogits W, in place, rounded once. One launch.
/// @param dhidden  (T, H) bf16, f32 or f64
/// @param dlogits  (T, E) f32 or f64
/// @param weight   (E, H) as dlogits; or bf16 where those are f32
/// @param factors  (T, H) f32, the tokens' jitter; or undefined
void gating_backward_input(Tensor& dhidden, const Tensor& dlogits, const Tensor& weight,
                           const Tensor& factors = {},
                           cudaStream_t stream = gpu::current_stream());

/// ⑲ dW = dlogitsᵀ X; zeros without tokens. One or two launches.
/// @param dlogits (T, E) f32 or f64 @param x (T, H) bf16, f32 or f64
/// @return (E, H) as dlogits
Tensor gating_backward_weight(const Tensor& dlogits, const Tensor& x,
                              cudaStream_t stream = gpu::current_stream());

/// ⑲ db = Σ_t dlogits_t; zeros without tokens. One or two launches.
/// @param dlogits (T, E) f32 or f64 @return (E) as dlogits
Tensor gating_backward_bias(const Tensor& dlogits,
                            cudaStream_t stream = gpu::current_stream());

/// Logits, or their gradient, as `dtype` f32 or f64: the same tensor where it has it, so
/// that a gate in fp64 can stand before a routing in fp32.
Tensor cast_logits(const Tensor& logits, DType dtype,
                   cudaStream_t stream = gpu::current_stream());

/// What bf16 has nearest to the values; they may be `rounded` themselves. One launch.
/// @param rounded, values  f32 or f64 alike
void round_to_bf16(Tensor& rounded, const Tensor& values,
                   cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
