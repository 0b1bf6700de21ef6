// experts.cpp: the routed experts, forward and backward.

#include "reference_cpu/experts.h"

#include "core/last_backward.h"
#include "core/recompute.h"
#include "core/transfer.h"
#include "reference_cpu/activation.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/linear.h"

namespace moe::cpu {
namespace {

struct ExpertsSaved : Saved {
    RowGroups groups;  // rows of each expert
    Tensor row_probs;  // (N) as they came
    Tensor p;          // (N) weight of the activation: row_probs, or ones
    // Mutable because the last backward lets them go.
    mutable Tensor rows;  // (N, H) as they came
    mutable Tensor x;     // (N, H) input of FC1: rows, or row_probs * rows
    mutable Tensor h;     // (N, 2F or F) output of FC1
    mutable Tensor a;     // (N, F) input of FC2; undefined with moe_act: made again
};

Tensor find(const TensorMap& parameters, const std::string& name, DType dtype) {
    const auto found = parameters.find(name);
    if (found == parameters.end()) return {};
    return transfer(found->second, {MemorySpace::host, dtype});
}

/// Row r of the result is scale_r x_r.
template <typename Scalar>
Tensor scale_rows(const Tensor& x, const Tensor& scale) {
    Tensor result = Tensor::empty(x.shape(), dtype_of<Scalar>);
    const std::int64_t num_rows = x.dim(0);
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < num_rows; ++row)
        row_at<Scalar>(result, row) = scale.data<Scalar>()[row] * row_at<Scalar>(x, row);
    return result;
}

/// Element r of the result is <x_r, y_r>.
template <typename Scalar>
Tensor row_dots(const Tensor& x, const Tensor& y) {
    Tensor result = Tensor::empty({x.dim(0)}, dtype_of<Scalar>);
    const std::int64_t num_rows = x.dim(0);
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < num_rows; ++row)
        result.data<Scalar>()[row] = row_at<Scalar>(x, row).dot(row_at<Scalar>(y, row));
    return result;
}

template <typename Scalar>
Tensor ones(std::int64_t count) {
    return Tensor::from<Scalar>({count}, std::vector<Scalar>(count, Scalar(1)));
}

}  // namespace

template <typename Scalar>
ExpertMLPs<Scalar>::ExpertMLPs(const MoEConfig& config, const TensorMap& parameters)
    : Experts({MemorySpace::host, dtype_of<Scalar>}),
      config_(config),
      fc1_weight_(find(parameters, "experts.linear_fc1.weight", dtype_of<Scalar>)),
      fc2_weight_(find(parameters, "experts.linear_fc2.weight", dtype_of<Scalar>)) {
    if (!config.add_bias_linear) return;
    fc1_bias_ = find(parameters, "experts.linear_fc1.bias", dtype_of<Scalar>);
    fc2_bias_ = find(parameters, "experts.linear_fc2.bias", dtype_of<Scalar>);
}

//! [experts_forward]
template <typename Scalar>
Experts::Output ExpertMLPs<Scalar>::forward(const Rows& given,
                                            const Tensor& tokens_per_expert,
                                            const Tensor& row_probs,
                                            const RunContext& context) {
    const Tensor on_host = transfer(tokens_per_expert, {MemorySpace::host, DType::i32});
    const std::int32_t* counts = on_host.data<std::int32_t>();
    auto saved = std::make_unique<ExpertsSaved>();
    saved->groups = make_row_groups({counts, counts + on_host.numel()});
    const std::int64_t num_rows = saved->groups.num_rows();
    const Tensor rows = given.plain().first(num_rows);
    saved->rows = rows;
    saved->row_probs = row_probs.first(num_rows);

    // The probability weighs the activation; W2 is linear, so this equals weighing the
    // output. With moe_apply_probs_on_input it weighs the input instead, which differs.
    const bool on_input = config_.moe_apply_probs_on_input;
    saved->x = on_input ? scale_rows<Scalar>(rows, saved->row_probs) : rows;
    saved->p = on_input ? ones<Scalar>(num_rows) : saved->row_probs;

    // ⑦ h = W1 x + b1
    {
        StepTimer timer(context, Step::fc1);
        saved->h =
            linear_forward<Scalar>(saved->x, fc1_weight_, fc1_bias_, {}, saved->groups);
    }
    context.value(Step::fc1, "fc1_output", saved->h);

    // ⑧ a = act(h) p
    const Tensor a = activate(saved->h, saved->p, context);
    context.value(Step::activation, "activation_output", a);
    if (!recomputes(config_, "moe_act")) saved->a = a;

    // ⑨ y = W2 a + p b2
    Tensor y;
    {
        StepTimer timer(context, Step::fc2);
        y = linear_forward<Scalar>(a, fc2_weight_, fc2_bias_, saved->p, saved->groups);
    }
    context.value(Step::fc2, "expert_output", y);
    return {y, std::move(saved)};
}

template <typename Scalar>
Tensor ExpertMLPs<Scalar>::activate(const Tensor& h, const Tensor& p,
                                    const RunContext& context) const {
    StepTimer timer(context, Step::activation);
    const ExpertActivation<Scalar> activation(config_, config_.local_ffn());
    Tensor a = Tensor::empty({h.dim(0), config_.local_ffn()}, dtype_of<Scalar>);
#pragma omp parallel for schedule(static)
    for (std::int64_t row = 0; row < h.dim(0); ++row)
        activation.forward(row_at<Scalar>(a, row).array(), row_at<Scalar>(h, row).array(),
                           p.data<Scalar>()[row]);
    return a;
}
//! [experts_forward]

//! [experts_backward]
template <typename Scalar>
Experts::Gradients ExpertMLPs<Scalar>::backward(TensorMap& gradients, const Rows& given,
                                                const Saved& saved_base,
                                                const RunContext& context) {
    const auto& saved = saved_as<ExpertsSaved>(saved_base);
    const std::int64_t num_rows = saved.groups.num_rows();
    Tensor doutput = given.plain().first(num_rows);
    const bool on_input = config_.moe_apply_probs_on_input;

    // ⑫ da = W2ᵀ dy, dW2 = Σ dy aᵀ, db2 = Σ p dy
    Tensor da;
    {
        const Tensor a =
            saved.a.defined() ? saved.a : activate(saved.h, saved.p, context);
        StepTimer timer(context, Step::fc2_backward);
        da = linear_backward_input<Scalar>(doutput, fc2_weight_, saved.groups);
        gradients["experts.linear_fc2.weight"] =
            linear_backward_weight<Scalar>(doutput, a, saved.groups);
        if (fc2_bias_.defined())
            gradients["experts.linear_fc2.bias"] =
                linear_backward_bias<Scalar>(doutput, saved.p, saved.groups);
    }
    LastBackward::let_go(saved.a);
    if (!fc2_bias_.defined()) LastBackward::let_go_of_given(doutput);
    context.value(Step::fc2_backward, "d_activation_output", da);

    // ⑬ dh = da p act'(h), dp = <act(h), da> + <b2, dy>
    Tensor dh = Tensor::empty(saved.h.shape(), dtype_of<Scalar>);
    Tensor dp = Tensor::empty({num_rows}, dtype_of<Scalar>);
    {
        StepTimer timer(context, Step::activation_backward);
        const ExpertActivation<Scalar> activation(config_, config_.local_ffn());
#pragma omp parallel for schedule(dynamic)
        for (const RowBlock& block : saved.groups.blocks) {
            for (std::int64_t row = block.begin; row < block.end; ++row) {
                Scalar& dp_row = dp.data<Scalar>()[row];
                dp_row = activation.backward(
                    row_at<Scalar>(dh, row).array(), row_at<Scalar>(saved.h, row).array(),
                    row_at<Scalar>(da, row).array(), saved.p.data<Scalar>()[row]);
                if (fc2_bias_.defined())
                    dp_row += row_at<Scalar>(fc2_bias_, block.group)
                                  .dot(row_at<Scalar>(doutput, row));
            }
        }
    }
    da = {};
    LastBackward::let_go(saved.h);
    LastBackward::let_go_of_given(doutput);
    context.value(Step::activation_backward, "d_fc1_output", dh);
    if (!on_input) context.value(Step::activation_backward, "d_dispatched_probs", dp);

    // ⑭ dx = W1ᵀ dh, dW1 = Σ dh xᵀ, db1 = Σ dh
    Tensor dx;
    {
        StepTimer timer(context, Step::fc1_backward);
        gradients["experts.linear_fc1.weight"] =
            linear_backward_weight<Scalar>(dh, saved.x, saved.groups);
        LastBackward::let_go(saved.x);
        if (!on_input) LastBackward::let_go(saved.rows);
        dx = linear_backward_input<Scalar>(dh, fc1_weight_, saved.groups);
        if (fc1_bias_.defined())
            gradients["experts.linear_fc1.bias"] =
                linear_backward_bias<Scalar>(dh, {}, saved.groups);
    }
    if (on_input) {
        dp = row_dots<Scalar>(saved.rows, dx);
        dx = scale_rows<Scalar>(dx, saved.row_probs);
        context.value(Step::fc1_backward, "d_dispatched_probs", dp);
    }
    context.value(Step::fc1_backward, "d_dispatched_hidden_states", dx);
    return {dx, dp};
}
//! [experts_backward]

template class ExpertMLPs<float>;
template class ExpertMLPs<double>;

}  // namespace moe::cpu
