/// @file
/// The projections around the dispatch.
#pragma once

#include "core/latent_projection.h"
#include "core/tensor.h"
#include "gpu/tensor.h"

namespace moe::naive {

/// See core/latent_projection.h. T is float or __nv_bfloat16.
template <typename T>
class LatentLinear : public LatentProjection {
  public:
    LatentLinear(LatentProj which, const TensorMap& parameters)
        : LatentProjection({MemorySpace::device, gpu::device_dtype<T>}, which,
                           parameters) {}

  protected:
    Tensor linear(const Tensor& x, const Tensor& added,
                  const RunContext& context) override;
    Gradients linear_backward(const Tensor& dy, const Tensor& x,
                              const RunContext& context) override;
};

}  // namespace moe::naive
