// latent_projection.cpp: down to ℓ before the dispatch, up to H behind it.

#include "reference_cpu/latent_projection.h"

#include "reference_cpu/eigen.h"
#include "reference_cpu/linear.h"

namespace moe::cpu {

template <typename Scalar>
Tensor LatentLinear<Scalar>::linear(const Tensor& x, const Tensor& added,
                                    const RunContext&) {
    // ⑥ or ⑩ y = W x + b
    Tensor y =
        linear_forward<Scalar>(x, weight(), bias(), {}, make_row_groups({x.dim(0)}));
    if (added.defined()) as_matrix<Scalar>(y) += as_matrix<Scalar>(added);
    return y;
}

template <typename Scalar>
LatentProjection::Gradients LatentLinear<Scalar>::linear_backward(const Tensor& dy,
                                                                  const Tensor& x,
                                                                  const RunContext&) {
    // ⑪ or ⑮ dx = Wᵀ dy, dW = Σ dy xᵀ, db = Σ dy
    const RowGroups all_tokens = make_row_groups({x.dim(0)});
    return {
        linear_backward_input<Scalar>(dy, weight(), all_tokens),
        linear_backward_weight<Scalar>(dy, x, all_tokens),
        bias().defined() ? linear_backward_bias<Scalar>(dy, {}, all_tokens) : Tensor()};
}

template class LatentLinear<float>;
template class LatentLinear<double>;

}  // namespace moe::cpu
