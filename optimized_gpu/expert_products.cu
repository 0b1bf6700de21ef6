// expert_products.cu: all experts at once, or one after another.

#include "optimized_gpu/expert_products.h"

#include "core/error.h"
#include "gpu/tensor.h"

namespace moe::optimized {
namespace {

/// Entries first … first + count − 1 of axis 0, in the same memory.
Tensor slice(const Tensor& tensor, std::int64_t first, std::int64_t count) {
    if (!tensor.defined()) return {};
    TensorView view = tensor.view();
    const std::size_t bytes = view.size_bytes() / view.dim(0);
    view.bytes = static_cast<std::byte*>(view.bytes) + first * bytes;
    view.shape[0] = count;
    return Tensor::borrow(view);
}

}  // namespace

template <typename Product>
void ExpertProducts::for_each_launch(const RowGroups& groups, Product product) const {
    if (grouped_gemm_)
        return product(groups, [](const Tensor& tensor) { return tensor; });
    // TUTORIAL: an expert's own offsets are two neighbours in the array of all. The host
    // hands out their address, and cannot tell how many rows they mean: each launch has
    // blocks for all rows, of which most find nothing to do.
    for (std::int64_t e = 0; e < groups.num_groups(); ++e)
        product(RowGroups{slice(groups.offsets, e, 2)},
                [e](const Tensor& tensor) { return slice(tensor, e, 1); });
}

//! [expert_products]
UpProjection ExpertProducts::forward_activation(
    const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& row_probs,
    const Tensor& row_ids, const RowGroups& groups, const ExpertActivation& activation,
    DType dtype) const {
    UpProjection made;
    for_each_launch(groups, [&](const RowGroups& own, auto part) {
        made = linear_forward_activation(x, part(weight), part(bias), row_probs, row_ids,
                                         own, activation, dtype, gpu::current_stream(),
                                         made);
    });
    return made;
}

Tensor ExpertProducts::forward(const Tensor& x, const Tensor& weight, const Bias& bias,
                               const RowGroups& groups) const {
    Tensor y;
    for_each_launch(groups, [&](const RowGroups& own, auto part) {
        y = linear_forward(x, part(weight), {part(bias.values), bias.row_scale}, {}, own,
                           DType::bf16, gpu::current_stream(), y);
    });
    return y;
}

ActivationGradients ExpertProducts::backward_activation(
    const Tensor& dy, const Tensor& weight, const Tensor& h, const Tensor& row_probs,
    const Tensor& row_ids, const RowGroups& groups,
    const ExpertActivation& activation) const {
    ActivationGradients made;
    for_each_launch(groups, [&](const RowGroups& own, auto part) {
        made = linear_backward_activation(dy, part(weight), h, row_probs, row_ids, own,
                                          activation, gpu::current_stream(), made);
    });
    return made;
}

Tensor ExpertProducts::backward_input(const Tensor& dy, const Tensor& weight,
                                      const RowGroups& groups) const {
    Tensor dx;
    for_each_launch(groups, [&](const RowGroups& own, auto part) {
        dx = linear_backward_input(dy, part(weight), own, gpu::current_stream(), dx);
    });
    return dx;
}

Tensor ExpertProducts::backward_weight(const Tensor& dy, const Tensor& dy_row_ids,
                                       const Tensor& x, const Tensor& x_row_ids,
                                       const RowGroups& groups) const {
    const Tensor dweight = Tensor::empty({groups.num_groups(), dy.dim(1), x.dim(1)},
                                         DType::bf16, MemorySpace::device);
    for_each_launch(groups, [&](const RowGroups& own, auto part) {
        linear_backward_weight(dy, dy_row_ids, x, x_row_ids, own, DType::bf16,
                               gpu::current_stream(), part(dweight));
    });
    return dweight;
}
//! [expert_products]

}  // namespace moe::optimized
