#include "core/latent_projection.h"

#include "core/transfer.h"

namespace moe {

LatentProjection::LatentProjection(const Placement& placement, LatentProj which,
                                   const TensorMap& parameters)
    : Component(placement),
      name_(which == LatentProj::fc1_latent_proj ? "fc1_latent_proj" : "fc2_latent_proj"),
      step_(which == LatentProj::fc1_latent_proj ? Step::dispatch : Step::combine) {
    // As the only matrix of a group, which is how tiers multiply
    weight_ = transfer(parameters.at(name_ + ".weight"), placement);
    weight_ = weight_.reshaped({1, weight_.dim(0), weight_.dim(1)});
    const auto bias = parameters.find(name_ + ".bias");
    if (bias == parameters.end()) return;
    bias_ = transfer(bias->second, placement);
    bias_ = bias_.reshaped({1, bias_.dim(0)});
}

Tensor LatentProjection::forward(const Tensor& x, const Tensor& added,
                                 const RunContext& context) {
    StepTimer timer(context, step_);
    return linear(x, added, context);
}

Tensor LatentProjection::backward(TensorMap& gradients, const Tensor& dy, const Tensor& x,
                                  const RunContext& context) {
    StepTimer timer(context, Step(kNumSteps + 1 - int(step_)));
    const Gradients made = linear_backward(dy, x, context);
    const Tensor& dweight = made.dweight;
    gradients[name_ + ".weight"] = dweight.reshaped({dweight.dim(1), dweight.dim(2)});
    if (bias_.defined())
        gradients[name_ + ".bias"] = made.dbias.reshaped({made.dbias.dim(1)});
    return made.dx;
}

}  // namespace moe
