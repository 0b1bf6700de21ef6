/// @file
/// Activation functions of the experts, with their slopes, for one element at a time, and
/// what the routed and the shared experts share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <string>

#include "core/config.h"
#include "core/error.h"
#include "core/tensor.h"
#include "gpu/convert.h"
#include "gpu/stream.h"

namespace moe::naive {

/// σ(x).
template <typename Scalar>
__device__ Scalar sigmoid(Scalar x) {
    return Scalar(1) / (Scalar(1) + exp(-x));
}

/// act(x) and act'(x).
struct ValueAndSlope {
    float value, slope;
};

/// x σ(steepness x): SiLU with 1, quick GELU with 1.702. Source:
/// fusions/fused_bias_geglu.py, quick_gelu.
__device__ inline ValueAndSlope silu(float x, float steepness) {
    const float s = sigmoid(steepness * x);
    return {x * s, s * (1.0f + steepness * x * (1.0f - s))};
}

/// x Φ(x), Φ the normal distribution function: the exact form, not the tanh fit.
__device__ inline ValueAndSlope gelu(float x) {
    constexpr float kInverseSqrt2 = 0.707106781186547524f;
    constexpr float kPdfOfZero = 0.398942280401432678f;  // 1 / √(2π)
    const float cdf = 0.5f * erfcf(-x * kInverseSqrt2);
    return {x * cdf, cdf + x * kPdfOfZero * expf(-0.5f * x * x)};
}

/// x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), as x σ(2u). Not Megatron's:
/// torch.nn.functional.gelu with approximate="tanh".
__device__ inline ValueAndSlope gelu_tanh(float x) {
    constexpr float kTwice = 1.59576912160573071f;  // 2 √(2/π)
    constexpr float kCubic = 0.044715f;
    const float square = x * x;
    const float u2 = kTwice * x * (1.0f + kCubic * square);
    const float s = sigmoid(u2);
    const float du2 = kTwice * (1.0f + 3.0f * kCubic * square);
    return {x * s, s * (1.0f + x * du2 * (1.0f - s))};
}

/// max(x, 0)². Source: megatron/core/activations.py, squared_relu.
__device__ inline ValueAndSlope squared_relu(float x) {
    const float positive = x < 0.0f ? 0.0f : x;
    return {positive * positive, 2.0f * positive};
}

/// activation_func.
enum class ActivationFunction { silu, gelu, gelu_tanh, quick_gelu, squared_relu };

inline ActivationFunction parse_activation_function(const std::string& name) {
    if (name == "silu") return ActivationFunction::silu;
    if (name == "gelu") return ActivationFunction::gelu;
    if (name == "gelu_tanh") return ActivationFunction::gelu_tanh;
    if (name == "quick_gelu") return ActivationFunction::quick_gelu;
    MOE_CHECK_EQ(name, "squared_relu");
    return ActivationFunction::squared_relu;
}

/// The non-linear part of an expert's MLP for one row: h (2F or F) to a (F), weighted by
/// the row's probability p. Kernels take it by value.
///
///     gated      a_f = p * act(min(h_f, c)) * (clamp(h_{F+f}, -c, c) + o)
///     otherwise  a_f = p * act(h_f)
///
/// c = activation_func_clamp_value (none: no clamp), o = glu_linear_offset; both belong
/// to gated units only. h is fp32 whatever the rows are: whether a clamp bites is a
/// decision, and rounding h to bf16 would take it otherwise near the bound. Source:
/// mlp.py, MLP.forward; fusions/fused_bias_swiglu.py.
struct ExpertActivation {
    ActivationFunction function;
    bool gated;
    float offset, clamp;
    std::int64_t ffn;  ///< F

    ExpertActivation(const MoEConfig& config, std::int64_t ffn)
        : function(parse_activation_function(config.activation_func)),
          gated(config.gated_linear_unit),
          offset(static_cast<float>(config.glu_linear_offset)),
          clamp(static_cast<float>(config.activation_func_clamp_value.value_or(
              std::numeric_limits<double>::infinity()))),
          ffn(ffn) {}

    /// Columns of h: 2F or F.
    __host__ __device__ std::int64_t width() const { return gated ? 2 * ffn : ffn; }

    __device__ ValueAndSlope act(float x) const {
        switch (function) {
            case ActivationFunction::silu: return silu(x, 1.0f);
            case ActivationFunction::quick_gelu: return silu(x, 1.702f);
            case ActivationFunction::gelu: return gelu(x);
            case ActivationFunction::gelu_tanh: return gelu_tanh(x);
            case ActivationFunction::squared_relu: return squared_relu(x);
        }
        return {};
    }

    // Comparisons, unlike fminf() and fmaxf(), let a NaN through.
    /// act(min(gate, c)).
    __device__ ValueAndSlope gate(float h) const { return act(h > clamp ? clamp : h); }
    /// clamp(up, -c, c) + o.
    __device__ float up(float h) const {
        const float low = h > clamp ? clamp : h;
        return (low < -clamp ? -clamp : low) + offset;
    }

    /// a_f of the row h.
    __device__ float forward(const float* h, std::int64_t f, float p) const {
        if (!gated) return p * act(h[f]).value;
        return p * gate(h[f]).value * up(h[ffn + f]);
    }

    /// Writes dh_f (and dh_{F+f}) from da_f; returns the element's part of
    /// dp = Σ_f da_f a_f / p.
    template <typename T>
    __device__ float backward(T* dh, const float* h, std::int64_t f, float da,
                              float p) const {
        if (!gated) {
            const auto [value, slope] = act(h[f]);
            dh[f] = gpu::narrow<T>(p * da * slope);
            return value * da;
        }
        const float h_gate = h[f], h_up = h[ffn + f];
        const auto [value, slope] = gate(h_gate);
        const float up_half = up(h_up);
        // A clamped half has no slope; on the bound itself it still has one.
        const bool gate_moves = h_gate <= clamp;
        const bool up_moves = h_up <= clamp && h_up >= -clamp;
        dh[f] = gpu::narrow<T>(gate_moves ? p * da * slope * up_half : 0.0f);
        dh[ffn + f] = gpu::narrow<T>(up_moves ? p * da * value : 0.0f);
        return value * up_half * da;
    }
};

/// a (N, F) = act(h) p. @param h (N, 2F or F) f32 @param p (N) f32, undefined means 1
/// @param stream where the kernel runs
template <typename T>
Tensor activation_forward(const ExpertActivation& activation, const Tensor& h,
                          const Tensor& p, cudaStream_t stream = gpu::current_stream());

/// What the activation gives back.
struct ActivationGradients {
    Tensor dh;  ///< (N, 2F or F)
    Tensor dp;  ///< (N) f32
};

/// @param h (N, 2F or F) f32 @param da (N, F) @param p (N) f32, undefined means 1
/// @param stream where the kernel runs
template <typename T>
ActivationGradients activation_backward(const ExpertActivation& activation,
                                        const Tensor& h, const Tensor& da,
                                        const Tensor& p,
                                        cudaStream_t stream = gpu::current_stream());

}  // namespace moe::naive
