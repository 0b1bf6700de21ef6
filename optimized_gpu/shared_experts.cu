// shared_experts.cu: the MLP that every token visits, forward and backward.

#include "optimized_gpu/shared_experts.h"

#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "gpu/tensor.h"
#include "optimized_gpu/gate.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {

struct SharedExpertsSaved : Saved {
    Tensor hidden;         // (T, H)
    Tensor gathered;       // (R, H), the tokens of all tp ranks
    RowGroups all_tokens;  // gathered as a single group
    Tensor h;              // (R, 2F_s or F_s)
    Tensor u;              // (T, H) before the gate; undefined without one
    Tensor q;              // (T) f32 the gate, undefined without one
};

namespace {

using distributed::gather_from_sequence_parallel_region;
using distributed::reduce_scatter_to_sequence_parallel_region;

/// A parameter as the only matrix of a group: (R, C) becomes (1, R, C).
Tensor single_group(const TensorMap& parameters, const std::string& name) {
    const Tensor weight =
        transfer(parameters.at(name), {MemorySpace::device, DType::bf16});
    return weight.reshaped({1, weight.dim(0), weight.dim(1)});
}

/// The only matrix of a group as a parameter's gradient.
Tensor ungrouped(const Tensor& gradient) {
    return gradient.reshaped({gradient.dim(1), gradient.dim(2)});
}

}  // namespace

SharedExpertMLP::SharedExpertMLP(const MoEConfig& config, const TensorMap& parameters,
                                 const GroupsPtr& groups)
    : SharedExperts({MemorySpace::device, DType::bf16}),
      config_(config),
      groups_(groups),
      activation_(make_activation(config)),
      fc1_weight_(single_group(parameters, "shared_experts.linear_fc1.weight")),
      fc2_weight_(single_group(parameters, "shared_experts.linear_fc2.weight")) {
    if (config.moe_shared_expert_gate)
        gate_weight_ = transfer(parameters.at("shared_experts.gate_weight"), placement());
    if (config.moe_shared_expert_overlap) side_stream_ = std::make_unique<gpu::Stream>();
}

//! [shared_experts_forward]
SavedPtr SharedExpertMLP::pre_forward_comm(const Tensor& hidden,
                                           const RunContext& context) {
    advance(State::idle, State::pre_forward_comm_done);
    StepTimer timer(context, Step::shared_experts);
    auto saved = std::make_unique<SharedExpertsSaved>();
    saved->hidden = hidden;
    // ① every rank has some columns of the MLP, for the tokens of all tp ranks …
    saved->gathered = gather_from_sequence_parallel_region(*groups_->tp, hidden);
    saved->all_tokens = all_tokens_.of(saved->gathered.dim(0));
    forward_ = saved.get();
    return saved;
}

void SharedExpertMLP::linear_fc1_forward_and_act(const RunContext& context) {
    advance(State::pre_forward_comm_done, State::fc1_forward_done);
    StepTimer timer(context, Step::shared_experts);
    SharedExpertsSaved& saved = *forward_;
    gpu::wait_for(stream(), gpu::current_stream());
    const BufferPool::Lane own = lane();

    // ① a = act(W1 x); see ExpertMLPs::forward() for the dtype of h
    const DType kept = config_.activation_func_clamp_value ? DType::f32 : DType::bf16;
    const UpProjection up =
        linear_forward_activation(saved.gathered, fc1_weight_, {}, {}, {},
                                  saved.all_tokens, activation_, kept, stream());
    saved.h = up.h;
    a_ = up.a;
}

void SharedExpertMLP::linear_fc2_forward(const RunContext& context) {
    advance(State::fc1_forward_done, State::fc2_forward_done);
    StepTimer timer(context, Step::shared_experts);
    const BufferPool::Lane own = lane();

    // ① u = W2 a, this rank's part of it
    partial_ = linear_forward(a_, fc2_weight_, {}, {}, forward_->all_tokens, DType::bf16,
                              stream());
}

void SharedExpertMLP::post_forward_comm(const RunContext& context) {
    advance(State::fc2_forward_done, State::post_forward_comm_done);
    StepTimer timer(context, Step::shared_experts);
    gpu::wait_for(gpu::current_stream(), stream());

    // ① … so that a token's output is a sum over the ranks
    forward_->u = reduce_scatter_to_sequence_parallel_region(*groups_->tp, partial_);
}

Tensor SharedExpertMLP::get_output(const RunContext& context) {
    advance(State::post_forward_comm_done, State::idle);
    SharedExpertsSaved& saved = *forward_;

    // ① q u
    Tensor output = saved.u;
    {
        StepTimer timer(context, Step::shared_experts);
        if (gate_weight_.defined()) {
            const Gated gated = gate_forward(saved.hidden, saved.u, gate_weight_);
            output = gated.output;
            saved.q = gated.q;
        } else {
            saved.u = {};
        }
        synchronize_if_watched(context);
        a_ = partial_ = {};
    }
    context.value(Step::shared_experts, "shared_output", output);
    return output;
}
//! [shared_experts_forward]

//! [shared_experts_backward]
void SharedExpertMLP::linear_fc2_backward(const Tensor& doutput, const Saved& saved_base,
                                          const RunContext& context) {
    advance(State::idle, State::fc2_backward_done);
    StepTimer timer(context, Step::shared_experts_backward);
    const auto& saved = saved_as<SharedExpertsSaved>(saved_base);
    const RowGroups& all = saved.all_tokens;
    backward_.saved = &saved;

    // ⑳ the gate: du = q dout, dg = Σ dscore x, with dq through the sigmoid
    Tensor du = doutput;
    if (gate_weight_.defined()) {
        const GateGradients gate = gate_backward(doutput, saved.u, saved.q);
        du = gate.du;
        backward_.dscores = gate.dscores;
        backward_.dgate =
            linear_backward_bias(saved.hidden, gate.dscores, {},
                                 own_tokens_.of(saved.hidden.dim(0)), DType::bf16);
    }

    // ⑳ FC2 and the activation, for the tokens of all tp ranks
    backward_.du = gather_from_sequence_parallel_region(*groups_->tp, du);
    gpu::wait_for(stream(), gpu::current_stream());
    const BufferPool::Lane own = lane();
    backward_.through = linear_backward_activation(backward_.du, fc2_weight_, saved.h, {},
                                                   {}, all, activation_, stream());
    backward_.dw2 = linear_backward_weight(backward_.du, {}, backward_.through.a, {}, all,
                                           DType::bf16, stream());
}

void SharedExpertMLP::linear_fc1_backward(const RunContext& context) {
    advance(State::fc2_backward_done, State::fc1_backward_done);
    StepTimer timer(context, Step::shared_experts_backward);
    const SharedExpertsSaved& saved = *backward_.saved;
    const BufferPool::Lane own = lane();

    // ⑳ FC1
    const Tensor& dh = backward_.through.dh;
    backward_.dx = linear_backward_input(dh, fc1_weight_, saved.all_tokens, stream());
    backward_.dw1 = linear_backward_weight(dh, {}, saved.gathered, {}, saved.all_tokens,
                                           DType::bf16, stream());
}

void SharedExpertMLP::pre_forward_comm_backward(Tensor& dhidden, TensorMap& gradients,
                                                const RunContext& context) {
    advance(State::fc1_backward_done, State::idle);
    {
        StepTimer timer(context, Step::shared_experts_backward);
        gpu::wait_for(gpu::current_stream(), stream());

        // ⑳ dx += dscore g, from the gate, and what came through the MLP
        const Tensor dx =
            reduce_scatter_to_sequence_parallel_region(*groups_->tp, backward_.dx);
        add_gate_gradient(dhidden, dx, backward_.dscores, gate_weight_);
        if (gate_weight_.defined())
            gradients["shared_experts.gate_weight"] = backward_.dgate;
        gradients["shared_experts.linear_fc1.weight"] = ungrouped(backward_.dw1);
        gradients["shared_experts.linear_fc2.weight"] = ungrouped(backward_.dw2);
        synchronize_if_watched(context);
        backward_ = {};
    }
    context.value(Step::shared_experts_backward, "d_hidden_states", dhidden);
}
//! [shared_experts_backward]

}  // namespace moe::optimized
