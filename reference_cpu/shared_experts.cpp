// shared_experts.cpp: the MLP that every token visits, forward and backward.

#include "reference_cpu/shared_experts.h"

#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "reference_cpu/activation.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/linear.h"

namespace moe::cpu {

struct SharedExpertsSaved : Saved {
    Tensor hidden;         // (T, H)
    Tensor gathered;       // (R, H), the tokens of all tp ranks
    RowGroups all_tokens;  // gathered as a single group
    Tensor h;              // (R, 2F_s or F_s)
    Tensor a;              // (R, F_s)
    Tensor u;              // (T, H) before the gate
    Tensor q;              // (T) the gate, undefined without one
};

namespace {

using distributed::gather_from_sequence_parallel_region;
using distributed::reduce_scatter_to_sequence_parallel_region;

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
SavedPtr SharedExpertMLP<Scalar>::pre_forward_comm(const Tensor& hidden,
                                                   const RunContext& context) {
    advance(State::idle, State::pre_forward_comm_done);
    StepTimer timer(context, Step::shared_experts);
    auto saved = std::make_unique<SharedExpertsSaved>();
    saved->hidden = hidden;

    // ① every rank has some columns of the MLP, for the tokens of all tp ranks …
    saved->gathered = gather_from_sequence_parallel_region(*groups_->tp, hidden);
    saved->all_tokens = make_row_groups({saved->gathered.dim(0)});
    forward_ = saved.get();
    return saved;
}

template <typename Scalar>
void SharedExpertMLP<Scalar>::linear_fc1_forward_and_act(const RunContext& context) {
    advance(State::pre_forward_comm_done, State::fc1_forward_done);
    StepTimer timer(context, Step::shared_experts);
    SharedExpertsSaved& saved = *forward_;
    const std::int64_t num_rows = saved.all_tokens.num_rows();
    const std::int64_t ffn = config_.local_shared_ffn();

    // ① a = act(W1 x)
    saved.h =
        linear_forward<Scalar>(saved.gathered, fc1_weight_, {}, {}, saved.all_tokens);
    saved.a = Tensor::empty({num_rows, ffn}, dtype_of<Scalar>);
    const ExpertActivation<Scalar> activation(config_, ffn);
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < num_rows; ++r)
        activation.forward(row_at<Scalar>(saved.a, r).array(),
                           row_at<Scalar>(saved.h, r).array(), Scalar(1));
}

template <typename Scalar>
void SharedExpertMLP<Scalar>::linear_fc2_forward(const RunContext& context) {
    advance(State::fc1_forward_done, State::fc2_forward_done);
    StepTimer timer(context, Step::shared_experts);

    // ① u = W2 a, this rank's part of it
    partial_ =
        linear_forward<Scalar>(forward_->a, fc2_weight_, {}, {}, forward_->all_tokens);
}

template <typename Scalar>
void SharedExpertMLP<Scalar>::post_forward_comm(const RunContext& context) {
    advance(State::fc2_forward_done, State::post_forward_comm_done);
    StepTimer timer(context, Step::shared_experts);

    // ① … so that a token's output is a sum over the ranks
    forward_->u = reduce_scatter_to_sequence_parallel_region(*groups_->tp, partial_);
}

template <typename Scalar>
Tensor SharedExpertMLP<Scalar>::get_output(const RunContext& context) {
    advance(State::post_forward_comm_done, State::idle);
    SharedExpertsSaved& saved = *forward_;
    const std::int64_t num_tokens = saved.hidden.dim(0);

    // ① q u
    Tensor output = saved.u;
    {
        StepTimer timer(context, Step::shared_experts);
        if (gate_weight_.defined()) {
            saved.q = Tensor::empty({num_tokens}, dtype_of<Scalar>);
            output = Tensor::empty(saved.hidden.shape(), dtype_of<Scalar>);
            const auto g = row_at<Scalar>(gate_weight_, 0);
#pragma omp parallel for schedule(static)
            for (std::int64_t t = 0; t < num_tokens; ++t) {
                const Scalar q = sigmoid(row_at<Scalar>(saved.hidden, t).dot(g));
                saved.q.template data<Scalar>()[t] = q;
                row_at<Scalar>(output, t) = q * row_at<Scalar>(saved.u, t);
            }
        }
        partial_ = {};
    }
    context.value(Step::shared_experts, "shared_output", output);
    return output;
}
//! [shared_experts_forward]

//! [shared_experts_backward]
template <typename Scalar>
void SharedExpertMLP<Scalar>::linear_fc2_backward(const Tensor& doutput,
                                                  const Saved& saved_base,
                                                  const RunContext& context) {
    advance(State::idle, State::fc2_backward_done);
    StepTimer timer(context, Step::shared_experts_backward);
    const auto& saved = saved_as<SharedExpertsSaved>(saved_base);
    const std::int64_t num_tokens = saved.hidden.dim(0);
    backward_.saved = &saved;

    // ⑳ the gate: du = q dout, dg = Σ dscore x, with dq through the sigmoid
    Tensor du = doutput;
    if (gate_weight_.defined()) {
        du = Tensor::empty(doutput.shape(), dtype_of<Scalar>);
        backward_.dscores = Tensor::empty({num_tokens}, dtype_of<Scalar>);
        Scalar* dscores = backward_.dscores.template data<Scalar>();
#pragma omp parallel for schedule(static)
        for (std::int64_t t = 0; t < num_tokens; ++t) {
            const Scalar q = saved.q.data<Scalar>()[t];
            const auto dout = row_at<Scalar>(doutput, t);
            dscores[t] = q * (Scalar(1) - q) * dout.dot(row_at<Scalar>(saved.u, t));
            row_at<Scalar>(du, t) = q * dout;
        }
        backward_.dgate = linear_backward_bias<Scalar>(saved.hidden, backward_.dscores,
                                                       make_row_groups({num_tokens}));
    }

    // ⑳ FC2, for the tokens of all tp ranks
    const Tensor dpartial = gather_from_sequence_parallel_region(*groups_->tp, du);
    backward_.da = linear_backward_input<Scalar>(dpartial, fc2_weight_, saved.all_tokens);
    backward_.dw2 = linear_backward_weight<Scalar>(dpartial, saved.a, saved.all_tokens);
}

template <typename Scalar>
void SharedExpertMLP<Scalar>::linear_fc1_backward(const RunContext& context) {
    advance(State::fc2_backward_done, State::fc1_backward_done);
    StepTimer timer(context, Step::shared_experts_backward);
    const SharedExpertsSaved& saved = *backward_.saved;

    // ⑳ activation, FC1
    Tensor dh = Tensor::empty(saved.h.shape(), dtype_of<Scalar>);
    const ExpertActivation<Scalar> activation(config_, config_.local_shared_ffn());
#pragma omp parallel for schedule(static)
    for (std::int64_t r = 0; r < dh.dim(0); ++r)
        activation.backward(row_at<Scalar>(dh, r).array(),
                            row_at<Scalar>(saved.h, r).array(),
                            row_at<Scalar>(backward_.da, r).array(), Scalar(1));
    backward_.dpartial = linear_backward_input<Scalar>(dh, fc1_weight_, saved.all_tokens);
    backward_.dw1 = linear_backward_weight<Scalar>(dh, saved.gathered, saved.all_tokens);
}

template <typename Scalar>
void SharedExpertMLP<Scalar>::pre_forward_comm_backward(Tensor& dhidden,
                                                        TensorMap& gradients,
                                                        const RunContext& context) {
    advance(State::fc1_backward_done, State::idle);
    {
        StepTimer timer(context, Step::shared_experts_backward);
        const Tensor dx =
            reduce_scatter_to_sequence_parallel_region(*groups_->tp, backward_.dpartial);

        // ⑳ dx += dscore g, from the gate, and what came through the MLP
        if (gate_weight_.defined()) {
            const auto g = row_at<Scalar>(gate_weight_, 0);
            const Scalar* dscores = backward_.dscores.template data<Scalar>();
#pragma omp parallel for schedule(static)
            for (std::int64_t t = 0; t < dhidden.dim(0); ++t)
                row_at<Scalar>(dhidden, t) += dscores[t] * g;
            gradients["shared_experts.gate_weight"] = backward_.dgate;
        }
        as_matrix<Scalar>(dhidden) += as_matrix<Scalar>(dx);
        const Tensor &dw1 = backward_.dw1, &dw2 = backward_.dw2;
        gradients["shared_experts.linear_fc1.weight"] =
            dw1.reshaped({dw1.dim(1), dw1.dim(2)});
        gradients["shared_experts.linear_fc2.weight"] =
            dw2.reshaped({dw2.dim(1), dw2.dim(2)});
        backward_ = {};
    }
    context.value(Step::shared_experts_backward, "d_hidden_states", dhidden);
}
//! [shared_experts_backward]

template class SharedExpertMLP<float>;
template class SharedExpertMLP<double>;

}  // namespace moe::cpu
