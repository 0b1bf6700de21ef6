// latent_projection.cu: down to ℓ before the dispatch, up to H behind it.

#include "naive_gpu/latent_projection.h"

#include "gpu/launch.h"
#include "naive_gpu/linear.h"

namespace moe::naive {

template <typename T>
Tensor LatentLinear<T>::linear(const Tensor& x, const Tensor& added, const RunContext&) {
    // ⑥ or ⑩ y = W x + b
    Tensor y = linear_forward<T>(x, weight(), bias(), {}, make_row_groups({x.dim(0)}));
    if (added.defined()) add_to<T>(y, added);
    gpu::synchronize();
    return y;
}

template <typename T>
LatentProjection::Gradients LatentLinear<T>::linear_backward(const Tensor& dy,
                                                             const Tensor& x,
                                                             const RunContext&) {
    // ⑪ or ⑮ dx = Wᵀ dy, dW = Σ dy xᵀ, db = Σ dy
    const RowGroups all_tokens = make_row_groups({x.dim(0)});
    Gradients made = {linear_backward_input<T>(dy, weight(), all_tokens),
                      linear_backward_weight<T>(dy, x, all_tokens),
                      {}};
    if (bias().defined()) made.dbias = linear_backward_bias<T>(dy, {}, all_tokens);
    gpu::synchronize();
    return made;
}

template class LatentLinear<float>;
template class LatentLinear<__nv_bfloat16>;

}  // namespace moe::naive
