/// @file
/// The projections around the dispatch.
#pragma once

#include "core/latent_projection.h"
#include "core/tensor.h"

namespace moe::cpu {

/// See core/latent_projection.h.
template <typename Scalar>
class LatentLinear : public LatentProjection {
  public:
    LatentLinear(LatentProj which, const TensorMap& parameters)
        : LatentProjection({MemorySpace::host, dtype_of<Scalar>}, which, parameters) {}

  protected:
    Tensor linear(const Tensor& x, const Tensor& added,
                  const RunContext& context) override;
    Gradients linear_backward(const Tensor& dy, const Tensor& x,
                              const RunContext& context) override;
};

}  // namespace moe::cpu
