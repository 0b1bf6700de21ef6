/// @file
/// Activation functions of the experts, with their slopes, one element at a time: what
/// epilogues of products call while the sums are in registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <string>

#include "core/config.h"
#include "core/error.h"

namespace moe::optimized {

/// act(x) and act'(x).
struct ValueAndSlope {
    float value, slope;
};

/// x σ(steepness x): SiLU with 1, quick GELU with 1.702. Source:
/// fusions/fused_bias_geglu.py, quick_gelu.
__device__ inline ValueAndSlope silu(float x, float steepness) {
    const float s = 1.0f / (1.0f + expf(-steepness * x));
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
    const float s = 1.0f / (1.0f + expf(-u2));
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

/// What the backward makes of one element of a.
struct ActivationGradient {
    float value;       ///< act(h), what a is without its weight
    float dgate, dup;  ///< of both halves of h; not gated: dgate is all of it
};

/// The non-linear part of an expert's MLP for one element of a, see naive_gpu's for the
/// formulas. Kernels take it by value. Source: mlp.py, MLP.forward;
/// fusions/fused_bias_swiglu.py.
struct ExpertActivation {
    ActivationFunction function = ActivationFunction::silu;
    bool gated = true;
    float offset = 0.0f, clamp = std::numeric_limits<float>::infinity();

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
    __device__ ValueAndSlope gate_half(float gate) const {
        return act(gate > clamp ? clamp : gate);
    }
    /// clamp(up, -c, c) + o.
    __device__ float up_half(float up) const {
        const float low = up > clamp ? clamp : up;
        return (low < -clamp ? -clamp : low) + offset;
    }

    __device__ float forward(float gate, float up) const {
        return gate_half(gate).value * up_half(up);
    }
    /// act(h), not gated.
    __device__ float forward(float h) const { return act(h).value; }

    /// @param da  gradient of act(h)
    __device__ ActivationGradient backward(float gate, float up, float da) const {
        const auto [value, slope] = gate_half(gate);
        const float other = up_half(up);
        // A clamped half has no slope; on the bound itself it still has one.
        const bool gate_moves = gate <= clamp;
        const bool up_moves = up <= clamp && up >= -clamp;
        return {value * other, gate_moves ? da * slope * other : 0.0f,
                up_moves ? da * value : 0.0f};
    }
    /// Not gated.
    __device__ ActivationGradient backward(float h, float da) const {
        const auto [value, slope] = act(h);
        return {value, da * slope, 0.0f};
    }
};

inline ExpertActivation make_activation(const MoEConfig& config) {
    ExpertActivation result;
    const std::string& name = config.activation_func;
    result.function = name == "silu"         ? ActivationFunction::silu
                      : name == "gelu"       ? ActivationFunction::gelu
                      : name == "gelu_tanh"  ? ActivationFunction::gelu_tanh
                      : name == "quick_gelu" ? ActivationFunction::quick_gelu
                                             : ActivationFunction::squared_relu;
    MOE_CHECK(result.function != ActivationFunction::squared_relu ||
              name == "squared_relu");
    result.gated = config.gated_linear_unit;
    result.offset = float(config.glu_linear_offset);
    if (config.activation_func_clamp_value)
        result.clamp = float(*config.activation_func_clamp_value);
    return result;
}

}  // namespace moe::optimized
