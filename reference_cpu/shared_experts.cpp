// shared_experts.cpp: the MLP that every token visits, forward and backward.

#include "reference_cpu/shared_experts.h"

#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "reference_cpu/activation.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/linear.h"

namespace moe::cpu {
namespace {

using distributed::gather_from_sequence_parallel_region;
using distributed::reduce_scatter_to_sequence_parallel_region;

struct SharedExpertsSaved : Saved {
    Tensor hidden;         // (T, H)
    Tensor gathered;       // (R, H), the tokens of all tp ranks
    RowGroups all_tokens;  // gathered as a single group
    Tensor h;              // (R, 2F_s or F_s)
    Tensor a;              // (R, F_s)
    Tensor u;              // (T, H) before the gate
    Tensor q;              // (T) the gate, undefined without one
};

/// A parameter as the only matrix of a group: (R, C) becomes (1, R, C).
Tensor single_group(const TensorMap& parameters, const std::string& name, DType dtype) {
    const Tensor weight = transfer(parameters.at(name), {MemorySpace::host, dtype});
    return weight.reshaped({1, weight.dim(0), weight.dim(1)});
}

}  // namespace

template <typename Scalar>
SharedExpertMLP<Scalar>::SharedExpertMLP(const MoEConfig& config,
                                         const TensorMap& parameters,
                                         const GroupsPtr& groups)
    : SharedExperts({MemorySpace::host, dtype_of<Scalar>}),
      config_(config),
      groups_(groups),
      fc1_weight_(
          single_group(parameters, "shared_experts.linear_fc1.weight", dtype_of<Scalar>)),
      fc2_weight_(single_group(parameters, "shared_experts.linear_fc2.weight",
                               dtype_of<Scalar>)) {
    if (config.moe_shared_expert_gate)
        gate_weight_ = transfer(parameters.at("shared_experts.gate_weight"), placement());
}

//! [shared_experts_forward]
template <typename Scalar>
SharedExperts::Output SharedExpertMLP<Scalar>::forward(const Tensor& hidden,
                                                       const RunContext& context) {
    const std::int64_t num_tokens = hidden.dim(0), ffn = config_.local_shared_ffn();
    auto saved = std::make_unique<SharedExpertsSaved>();
    saved->hidden = hidden;

    // ① u = W2 act(W1 x), then q u
    Tensor output;
    {
        StepTimer timer(context, Step::shared_experts);
        // ① every rank has some columns of the MLP, for the tokens of all tp ranks …
        saved->gathered = gather_from_sequence_parallel_region(*groups_->tp, hidden);
        const std::int64_t num_rows = saved->gathered.dim(0);
        saved->all_tokens = make_row_groups({num_rows});
        saved->h = linear_forward<Scalar>(saved->gathered, fc1_weight_, {}, {},
                                          saved->all_tokens);
        saved->a = Tensor::empty({num_rows, ffn}, dtype_of<Scalar>);
        const ExpertActivation<Scalar> activation(config_, ffn);
#pragma omp parallel for schedule(static)
        for (std::int64_t r = 0; r < num_rows; ++r)
            activation.forward(row_at<Scalar>(saved->a, r).array(),
                               row_at<Scalar>(saved->h, r).array(), Scalar(1));
        const Tensor partial =
            linear_forward<Scalar>(saved->a, fc2_weight_, {}, {}, saved->all_tokens);

        // ① … so that a token's output is a sum over the ranks
        saved->u = reduce_scatter_to_sequence_parallel_region(*groups_->tp, partial);
        output = saved->u;
        if (gate_weight_.defined()) {
            saved->q = Tensor::empty({num_tokens}, dtype_of<Scalar>);
            output = Tensor::empty(hidden.shape(), dtype_of<Scalar>);
            const auto g = row_at<Scalar>(gate_weight_, 0);
#pragma omp parallel for schedule(static)
            for (std::int64_t t = 0; t < num_tokens; ++t) {
                const Scalar q = sigmoid(row_at<Scalar>(hidden, t).dot(g));
                saved->q.template data<Scalar>()[t] = q;
                row_at<Scalar>(output, t) = q * row_at<Scalar>(saved->u, t);
            }
        }
    }
    context.value(Step::shared_experts, "shared_output", output);
    return {output, std::move(saved)};
}
//! [shared_experts_forward]

//! [shared_experts_backward]
template <typename Scalar>
void SharedExpertMLP<Scalar>::backward(Tensor& dhidden, TensorMap& gradients,
                                       const Tensor& doutput, const Saved& saved_base,
                                       const RunContext& context) {
    const auto& saved = saved_as<SharedExpertsSaved>(saved_base);
    const std::int64_t num_tokens = saved.hidden.dim(0);
    StepTimer timer(context, Step::shared_experts_backward);

    // ⑳ the gate: du = q dout, dx += dq g, dg = Σ dq x, with dq through the sigmoid
    Tensor du = doutput;
    if (gate_weight_.defined()) {
        du = Tensor::empty(doutput.shape(), dtype_of<Scalar>);
        Tensor dq = Tensor::empty({num_tokens}, dtype_of<Scalar>);
        const auto g = row_at<Scalar>(gate_weight_, 0);
#pragma omp parallel for schedule(static)
        for (std::int64_t t = 0; t < num_tokens; ++t) {
            const Scalar q = saved.q.data<Scalar>()[t];
            const auto dout = row_at<Scalar>(doutput, t);
            const Scalar dscore =
                q * (Scalar(1) - q) * dout.dot(row_at<Scalar>(saved.u, t));
            dq.data<Scalar>()[t] = dscore;
            row_at<Scalar>(du, t) = q * dout;
            row_at<Scalar>(dhidden, t) += dscore * g;
        }
        gradients["shared_experts.gate_weight"] =
            linear_backward_bias<Scalar>(saved.hidden, dq, make_row_groups({num_tokens}));
    }

    // ⑳ the MLP: FC2, activation, FC1, for the tokens of all tp ranks
    const Tensor dpartial = gather_from_sequence_parallel_region(*groups_->tp, du);
    const Tensor da =
        linear_backward_input<Scalar>(dpartial, fc2_weight_, saved.all_tokens);
    const Tensor dw2 =
        linear_backward_weight<Scalar>(dpartial, saved.a, saved.all_tokens);
    Tensor dh = Tensor::empty(saved.h.shape(), dtype_of<Scalar>);
    const ExpertActivation<Scalar> activation(config_, config_.local_shared_ffn());
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < dh.dim(0); ++r)
        activation.backward(row_at<Scalar>(dh, r).array(),
                            row_at<Scalar>(saved.h, r).array(),
                            row_at<Scalar>(da, r).array(), Scalar(1));
    const Tensor dx = reduce_scatter_to_sequence_parallel_region(
        *groups_->tp, linear_backward_input<Scalar>(dh, fc1_weight_, saved.all_tokens));
    const Tensor dw1 =
        linear_backward_weight<Scalar>(dh, saved.gathered, saved.all_tokens);

    as_matrix<Scalar>(dhidden) += as_matrix<Scalar>(dx);
    gradients["shared_experts.linear_fc1.weight"] =
        dw1.reshaped({dw1.dim(1), dw1.dim(2)});
    gradients["shared_experts.linear_fc2.weight"] =
        dw2.reshaped({dw2.dim(1), dw2.dim(2)});
    context.value(Step::shared_experts_backward, "d_hidden_states", dhidden);
}
//! [shared_experts_backward]

template class SharedExpertMLP<float>;
template class SharedExpertMLP<double>;

}  // namespace moe::cpu
