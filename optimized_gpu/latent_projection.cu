// latent_projection.cu: down to ℓ before the dispatch, up to H behind it.

#include "optimized_gpu/latent_projection.h"

#include "optimized_gpu/gate.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {

Tensor LatentLinear::linear(const Tensor& x, const Tensor& added,
                            const RunContext& context) {
    // ⑥ or ⑩ y = W x + b
    Tensor y =
        linear_forward(x, weight(), {bias()}, {}, all_tokens_.of(x.dim(0)), DType::bf16);
    if (added.defined()) add_gate_gradient(y, added, {}, {});  // without a gate, a sum
    synchronize_if_watched(context);
    return y;
}

LatentProjection::Gradients LatentLinear::linear_backward(const Tensor& dy,
                                                          const Tensor& x,
                                                          const RunContext& context) {
    // ⑪ or ⑮ dx = Wᵀ dy, dW = Σ dy xᵀ, db = Σ dy
    const RowGroups& all_tokens = all_tokens_.of(x.dim(0));
    Gradients made = {linear_backward_input(dy, weight(), all_tokens),
                      linear_backward_weight(dy, {}, x, {}, all_tokens, DType::bf16),
                      {}};
    if (bias().defined())
        made.dbias = linear_backward_bias(dy, {}, {}, all_tokens, DType::bf16);
    synchronize_if_watched(context);
    return made;
}

}  // namespace moe::optimized
