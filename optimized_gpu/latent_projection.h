/// @file
/// The projections around the dispatch.
#pragma once

#include "core/latent_projection.h"
#include "core/tensor.h"
#include "optimized_gpu/grouped_gemm/all_tokens.h"

namespace moe::optimized {

/// See core/latent_projection.h: the experts' products with a single group. bf16.
class LatentLinear : public LatentProjection {
  public:
    LatentLinear(LatentProj which, const TensorMap& parameters)
        : LatentProjection({MemorySpace::device, DType::bf16}, which, parameters) {}

  protected:
    Tensor linear(const Tensor& x, const Tensor& added,
                  const RunContext& context) override;
    Gradients linear_backward(const Tensor& dy, const Tensor& x,
                              const RunContext& context) override;

  private:
    AllTokens all_tokens_;
};

}  // namespace moe::optimized
