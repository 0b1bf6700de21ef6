// experts.cu: the routed experts, forward and backward.

#include "optimized_gpu/experts.h"

#include "core/buffer_pool.h"
#include "core/transfer.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/rows.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {
namespace {

struct ExpertsSaved : Saved {
    RowGroups groups;  // rows of each expert
    Rows rows;         // (N, H), or ids into (T, H), as they came
    Tensor row_probs;  // (N) f32 as they came
    Rows x;            // input of FC1: rows, or row_probs * rows
    Tensor p;          // (N) f32 weight of the activation: row_probs; undefined means 1
    Tensor h;          // (N, 2F or F) output of FC1
};

Tensor find(const TensorMap& parameters, const std::string& name) {
    const auto found = parameters.find(name);
    if (found == parameters.end()) return {};
    return transfer(found->second, {MemorySpace::device, DType::bf16});
}

/// What an observer sees of rows that may be fewer than there is room for.
class Shown {
  public:
    Shown(const RunContext& context, const RowGroups& groups) : context_(context) {
        if (context.observer != nullptr)
            num_rows_ = gpu::to_host<std::int32_t>(groups.offsets).back();
    }
    void value(Step step, const std::string& name, const Tensor& rows) const {
        if (context_.observer != nullptr)
            context_.value(step, name, rows.first(num_rows_));
    }
    template <typename Make>
    void value_beside(Step step, const std::string& name, Make make) const {
        context_.value_beside(step, name, [&] { return make().first(num_rows_); });
    }

  private:
    const RunContext& context_;
    std::int64_t num_rows_ = 0;
};

}  // namespace

ExpertMLPs::ExpertMLPs(const MoEConfig& config, const TensorMap& parameters)
    : Experts({MemorySpace::device, DType::bf16}),
      config_(config),
      products_(config.moe_grouped_gemm),
      activation_(make_activation(config)),
      fc1_weight_(find(parameters, "experts.linear_fc1.weight")),
      fc2_weight_(find(parameters, "experts.linear_fc2.weight")) {
    if (config.overlap_dispatch_backward_with_experts_wgrad)
        wgrad_stream_ = std::make_unique<gpu::Stream>();
    if (!config.add_bias_linear) return;
    fc1_bias_ = find(parameters, "experts.linear_fc1.bias");
    fc2_bias_ = find(parameters, "experts.linear_fc2.bias");
}

//! [experts_forward]
Experts::Output ExpertMLPs::forward(const Rows& rows, const Tensor& tokens_per_expert,
                                    const Tensor& row_probs, const RunContext& context) {
    auto saved = std::make_unique<ExpertsSaved>();
    saved->groups = rows.offsets.defined() ? RowGroups{rows.offsets}
                                           : make_row_groups(tokens_per_expert);
    const RowGroups& groups = saved->groups;
    MOE_CHECK_EQ(groups.num_groups(), fc1_weight_.dim(0));
    saved->rows = rows;
    saved->row_probs = row_probs;

    // The probability weighs the activation; W2 is linear, so this equals weighing the
    // output. With moe_apply_probs_on_input it weighs the input instead, which differs.
    const bool on_input = config_.moe_apply_probs_on_input;
    saved->x = on_input ? scale_rows(rows.values, row_probs, rows.ids, groups) : rows;
    saved->p = on_input ? Tensor() : row_probs;

    // ⑦ h = W1 x + b1, ⑧ a = act(h) p. Where a clamp bites is a decision, which h in bf16
    // would take otherwise in the backward.
    const DType kept = config_.activation_func_clamp_value ? DType::f32 : DType::bf16;
    UpProjection up;
    {
        StepTimer timer(context, {Step::fc1, Step::activation});
        up = products_.forward_activation(saved->x.values, fc1_weight_, fc1_bias_,
                                          saved->p, saved->x.ids, groups, activation_,
                                          kept);
        saved->h = up.h;
        synchronize_if_watched(context);
    }

    // ⑨ y = W2 a + p b2
    Tensor y;
    {
        StepTimer timer(context, Step::fc2);
        y = products_.forward(up.a, fc2_weight_, {fc2_bias_, saved->p}, groups);
        synchronize_if_watched(context);
    }
    const Shown shown(context, groups);
    shown.value(Step::fc1, "fc1_output", up.h);
    shown.value(Step::activation, "activation_output", up.a);
    shown.value(Step::fc2, "expert_output", y);
    return {y, std::move(saved)};
}
//! [experts_forward]

//! [experts_backward]
Experts::Gradients ExpertMLPs::backward(TensorMap& gradients, const Rows& doutput,
                                        const Saved& saved_base,
                                        const RunContext& context) {
    const auto& saved = saved_as<ExpertsSaved>(saved_base);
    const RowGroups& groups = saved.groups;
    const Tensor &dy = doutput.values, &dy_ids = doutput.ids;
    const bool on_input = config_.moe_apply_probs_on_input;

    // ⑫ da = W2ᵀ dy, ⑬ dh = da p act'(h), dp = <act(h), da> + <b2, dy>
    ActivationGradients through;
    {
        StepTimer timer(context, {Step::fc2_backward, Step::activation_backward});
        through = products_.backward_activation(dy, fc2_weight_, saved.h, saved.p, dy_ids,
                                                groups, activation_);
        if (fc2_bias_.defined()) add_bias_dots(through.dp, fc2_bias_, dy, dy_ids, groups);
        synchronize_if_watched(context);
    }
    const Tensor& dh = through.dh;
    // ⑫ dW2 = Σ dy aᵀ, db2 = Σ p dy
    const auto fc2_wgrad = [&] {
        StepTimer timer(context, Step::fc2_backward);
        gradients["experts.linear_fc2.weight"] =
            products_.backward_weight(dy, dy_ids, through.a, {}, groups);
        if (fc2_bias_.defined())
            gradients["experts.linear_fc2.bias"] =
                linear_backward_bias(dy, saved.p, dy_ids, groups, DType::bf16);
        synchronize_if_watched(context);
    };
    // ⑭ dW1 = Σ dh xᵀ, db1 = Σ dh
    const auto fc1_wgrad = [&] {
        StepTimer timer(context, Step::fc1_backward);
        gradients["experts.linear_fc1.weight"] =
            products_.backward_weight(dh, {}, saved.x.values, saved.x.ids, groups);
        if (fc1_bias_.defined())
            gradients["experts.linear_fc1.bias"] =
                linear_backward_bias(dh, {}, {}, groups, DType::bf16);
        synchronize_if_watched(context);
    };
    if (!wgrad_stream_) fc2_wgrad();

    // ⑭ dx = W1ᵀ dh
    Tensor dx, dp = through.dp;
    {
        StepTimer timer(context, Step::fc1_backward);
        dx = products_.backward_input(dh, fc1_weight_, groups);
        if (on_input) {
            dp = row_dots(saved.rows.values, dx, saved.rows.ids, groups);
            dx = scale_rows(dx, saved.row_probs, {}, groups);
        }
        synchronize_if_watched(context);
    }
    if (!wgrad_stream_) {
        fc1_wgrad();
    } else {
        // TUTORIAL: dx is on its way first, since the dispatch backward sends it to other
        // ranks. These products then run while it travels.
        gpu::wait_for(wgrad_stream_->get(), gpu::current_stream());
        const gpu::StreamGuard guard(wgrad_stream_->get());
        const BufferPool::Lane own(wgrad_stream_->get());
        fc2_wgrad();
        fc1_wgrad();
        under_way_ = {doutput, through};
    }
    const Shown shown(context, groups);
    shown.value_beside(Step::fc2_backward, "d_activation_output", [&] {
        return linear_backward_input(doutput.plain(), fc2_weight_, groups);
    });
    shown.value(Step::activation_backward, "d_fc1_output", dh);
    const Step of_dp = on_input ? Step::fc1_backward : Step::activation_backward;
    shown.value(of_dp, "d_dispatched_probs", dp);
    shown.value(Step::fc1_backward, "d_dispatched_hidden_states", dx);
    return {dx, dp};
}

void ExpertMLPs::finish_wgrad(const RunContext&) {
    if (!wgrad_stream_) return;
    gpu::wait_for(gpu::current_stream(), wgrad_stream_->get());
    under_way_ = {};  // to kernels of the current stream, which run later
}
//! [experts_backward]

}  // namespace moe::optimized
