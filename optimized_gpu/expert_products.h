/// @file
/// The products of the routed experts: with moe_grouped_gemm one launch for all of them,
/// without it one for each, as Megatron's SequentialMLP has it. Either way each expert's
/// rows are the same tiles of the same kernel, so the bits are the same; and where an
/// expert's rows begin, the host never learns. Source: experts.py, TEGroupedMLP,
/// SequentialMLP.
#pragma once

#include "optimized_gpu/grouped_gemm/grouped_gemm.h"

namespace moe::optimized {

/// The functions of grouped_gemm.h with the same parameters, for bf16 results. Biases are
/// no products: their gradients are sums of rows, and stay one launch.
class ExpertProducts {
  public:
    explicit ExpertProducts(bool grouped_gemm) : grouped_gemm_(grouped_gemm) {}

    UpProjection forward_activation(const Tensor& x, const Tensor& weight,
                                    const Tensor& bias, const Tensor& row_probs,
                                    const Tensor& row_ids, const RowGroups& groups,
                                    const ExpertActivation& activation,
                                    DType dtype) const;
    Tensor forward(const Tensor& x, const Tensor& weight, const Bias& bias,
                   const RowGroups& groups) const;
    ActivationGradients backward_activation(const Tensor& dy, const Tensor& weight,
                                            const Tensor& h, const Tensor& row_probs,
                                            const Tensor& row_ids,
                                            const RowGroups& groups,
                                            const ExpertActivation& activation) const;
    Tensor backward_input(const Tensor& dy, const Tensor& weight,
                          const RowGroups& groups) const;
    Tensor backward_weight(const Tensor& dy, const Tensor& dy_row_ids, const Tensor& x,
                           const Tensor& x_row_ids, const RowGroups& groups) const;

  private:
    /// The groups that one launch takes: all, or one alone. Calls product(groups, part),
    /// where part(tensor) are those entries of its first axis that belong to them.
    template <typename Product>
    void for_each_launch(const RowGroups& groups, Product product) const;

    bool grouped_gemm_;
};

}  // namespace moe::optimized
