/// @file
/// The gate of the shared experts, a warp for each token. Rows are bf16, the gate fp32.
/// Source: shared_experts.py, SharedExpertMLP.forward.
#pragma once

#include <cuda_runtime.h>

#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

struct Gated {
    Tensor output;  ///< (T, H), q_t u_t
    Tensor q;       ///< (T) f32, σ(<x_t, g>)
};

/// @param x, u (T, H) @param g (1, H)
Gated gate_forward(const Tensor& x, const Tensor& u, const Tensor& g,
                   cudaStream_t stream = gpu::current_stream());

struct GateGradients {
    Tensor du;       ///< (T, H), q_t dout_t
    Tensor dscores;  ///< (T) f32, by <x_t, g>
};

/// @param dout, u (T, H) @param q (T) f32, from gate_forward()
GateGradients gate_backward(const Tensor& dout, const Tensor& u, const Tensor& q,
                            cudaStream_t stream = gpu::current_stream());

/// dhidden_t += dscore_t g + dx_t, in place, rounded once: what came through the gate and
/// what came through the MLP.
/// @param dhidden, dx (T, H) @param dscores (T) f32, undefined without a gate
/// @param g (1, H) or undefined
void add_gate_gradient(Tensor& dhidden, const Tensor& dx, const Tensor& dscores,
                       const Tensor& g, cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
