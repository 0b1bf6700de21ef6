/// @file
/// The two linear layers around the dispatch with moe_latent_size: tokens go down to ℓ
/// before they are sent, and what is combined comes back up to H. Router and shared
/// experts see H, dispatch and experts ℓ.
#pragma once

#include <string>

#include "core/components.h"
#include "core/config.h"

namespace moe {

/// Which of the two, by Megatron's names.
enum class LatentProj { fc1_latent_proj, fc2_latent_proj };

/// y = W x (+ b): from H to ℓ in ⑥, or from ℓ to H in ⑩. Every rank has the whole weight,
/// and projects its own tokens. Source: moe_layer.py, MoELayer.preprocess, postprocess.
///
/// A tier derives from it and brings its matrix products; times and names are here.
class LatentProjection : public Component {
  public:
    /// @param parameters  with "fc1_latent_proj.weight" and, with a bias, "….bias", or
    ///                    those of fc2_latent_proj
    LatentProjection(const Placement& placement, LatentProj which,
                     const TensorMap& parameters);

    /// @param x      (T, in); the backward wants it again
    /// @param added  (T, out) what is added to y, or undefined
    /// @return (T, out)
    Tensor forward(const Tensor& x, const Tensor& added, const RunContext& context);

    /// Puts the gradients of its parameters, each by its name, into `gradients`.
    /// @param dy (T, out) @param x (T, in) @return dx (T, in)
    Tensor backward(TensorMap& gradients, const Tensor& dy, const Tensor& x,
                    const RunContext& context);

  protected:
    struct Gradients {
        Tensor dx;       ///< (T, in)
        Tensor dweight;  ///< (1, out, in)
        Tensor dbias;    ///< (1, out), undefined without a bias
    };
    virtual Tensor linear(const Tensor& x, const Tensor& added,
                          const RunContext& context) = 0;
    virtual Gradients linear_backward(const Tensor& dy, const Tensor& x,
                                      const RunContext& context) = 0;

    const Tensor& weight() const { return weight_; }  ///< (1, out, in)
    const Tensor& bias() const { return bias_; }      ///< (1, out) or undefined

  private:
    std::string name_;
    Step step_;
    Tensor weight_, bias_;
};

/// What observers see a dispatcher's sums as: the layer's, or, with moe_latent_size, what
/// fc2_latent_proj and the backward of fc1_latent_proj turn into the layer's.
inline const char* name_of_output(const MoEConfig& config) {
    return config.moe_latent_size ? "latent_output" : "output";
}
inline const char* name_of_dhidden(const MoEConfig& config) {
    return config.moe_latent_size ? "d_latent_hidden_states" : "d_hidden_states_routed";
}

}  // namespace moe
