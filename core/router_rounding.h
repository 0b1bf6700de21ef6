/// @file
/// What makes a router one of bf16.
#pragma once

#include "core/tensor.h"

namespace moe {

/// Rounds a router's values where Megatron's are bf16, for a layer of bf16 without
/// moe_router_dtype. Every tier holds them in what it computes in, fp32 or more:
///
/// | step | rounded |
/// |---|---|
/// | ② | tokens, weight and bias; their jitter and what it makes; then the logits |
/// | ③ | weights of the chosen: scores are fp32 until then |
/// | ⑰ | gradients of these weights, as they come |
/// | ⑱ | gradient of the logits, once: main loss and losses together |
///
/// Losses and the weight's gradient are sums in fp32. A logit of bf16 has 8 significant
/// bits: experts that fp32 tells apart may tie, and ties go to the lower expert.
/// Source: router.py, Router.gating; moe_utils.py, RouterGatingLinearFunction.
class RouterRounding {
  public:
    explicit RouterRounding(DType router) : rounds_(router == DType::bf16) {}

    bool rounds() const { return rounds_; }
    /// As bf16 has them, in their own dtype and place; the tensor itself where the router
    /// is not of bf16, or the tensor undefined.
    Tensor of(const Tensor& values) const;

  private:
    bool rounds_;
};

}  // namespace moe
