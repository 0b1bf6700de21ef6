// shared_experts.cu: the MLP that every token visits, forward and backward.

#include "naive_gpu/shared_experts.h"

#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "naive_gpu/activation.h"
#include "naive_gpu/linear.h"

namespace moe::naive {

struct SharedExpertsSaved : Saved {
    Tensor hidden;         // (T, H)
    Tensor gathered;       // (R, H), the tokens of all tp ranks
    RowGroups all_tokens;  // gathered as a single group
    Tensor h;              // (R, 2F_s or F_s) f32
    Tensor a;              // (R, F_s)
    Tensor u;              // (T, H) before the gate
    Tensor q;              // (T) f32 the gate, undefined without one
};

namespace {

using distributed::gather_from_sequence_parallel_region;
using distributed::reduce_scatter_to_sequence_parallel_region;

/// A parameter as the only matrix of a group: (R, C) becomes (1, R, C).
Tensor single_group(const TensorMap& parameters, const std::string& name, DType dtype) {
    const Tensor weight = transfer(parameters.at(name), {MemorySpace::device, dtype});
    return weight.reshaped({1, weight.dim(0), weight.dim(1)});
}

/// One thread per token: q = σ(<x, g>), output = q u.
template <typename T>
__global__ void gate_kernel(T* output, float* q, const T* x, const T* u, const T* g,
                            std::int64_t num_tokens, std::int64_t H) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= num_tokens) return;
    float score = 0.0f;
    for (std::int64_t i = 0; i < H; ++i)
        score += gpu::widen(x[t * H + i]) * gpu::widen(g[i]);
    const float gate = sigmoid(score);
    q[t] = gate;
    for (std::int64_t i = t * H; i < (t + 1) * H; ++i)
        output[i] = gpu::narrow<T>(gate * gpu::widen(u[i]));
}

/// One thread per token: du = q dout, and dscore, the gradient by <x, g>.
template <typename T>
__global__ void gate_backward_kernel(T* du, float* dscores, const T* dout, const T* u,
                                     const float* q, std::int64_t num_tokens,
                                     std::int64_t H) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= num_tokens) return;
    float dq = 0.0f;
    for (std::int64_t i = t * H; i < (t + 1) * H; ++i)
        dq += gpu::widen(dout[i]) * gpu::widen(u[i]);
    dscores[t] = q[t] * (1.0f - q[t]) * dq;
    for (std::int64_t i = t * H; i < (t + 1) * H; ++i)
        du[i] = gpu::narrow<T>(q[t] * gpu::widen(dout[i]));
}

/// One thread per element: dx += dscore g.
template <typename T>
__global__ void add_gate_gradient_kernel(T* dx, const float* dscores, const T* g,
                                         std::int64_t count, std::int64_t H) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    dx[i] = gpu::narrow<T>(gpu::widen(dx[i]) + dscores[i / H] * gpu::widen(g[i % H]));
}

}  // namespace

template <typename T>
SharedExpertMLP<T>::SharedExpertMLP(const MoEConfig& config, const TensorMap& parameters,
                                    const GroupsPtr& groups)
    : SharedExperts({MemorySpace::device, gpu::device_dtype<T>}),
      config_(config),
      groups_(groups),
      fc1_weight_(single_group(parameters, "shared_experts.linear_fc1.weight",
                               gpu::device_dtype<T>)),
      fc2_weight_(single_group(parameters, "shared_experts.linear_fc2.weight",
                               gpu::device_dtype<T>)) {
    if (config.moe_shared_expert_gate)
        gate_weight_ = transfer(parameters.at("shared_experts.gate_weight"), placement());
    if (config.moe_shared_expert_overlap) side_stream_ = std::make_unique<gpu::Stream>();
}

//! [shared_experts_forward]
template <typename T>
SavedPtr SharedExpertMLP<T>::pre_forward_comm(const Tensor& hidden,
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

template <typename T>
void SharedExpertMLP<T>::linear_fc1_forward_and_act(const RunContext& context) {
    advance(State::pre_forward_comm_done, State::fc1_forward_done);
    StepTimer timer(context, Step::shared_experts);
    SharedExpertsSaved& saved = *forward_;
    gpu::wait_for(stream(), gpu::current_stream());

    // ① a = act(W1 x)
    saved.h = linear_forward<T, float>(saved.gathered, fc1_weight_, {}, {},
                                       saved.all_tokens, stream());
    saved.a = activation_forward<T>({config_, config_.local_shared_ffn()}, saved.h, {},
                                    stream());
}

template <typename T>
void SharedExpertMLP<T>::linear_fc2_forward(const RunContext& context) {
    advance(State::fc1_forward_done, State::fc2_forward_done);
    StepTimer timer(context, Step::shared_experts);

    // ① u = W2 a, this rank's part of it
    partial_ = linear_forward<T>(forward_->a, fc2_weight_, {}, {}, forward_->all_tokens,
                                 stream());
}

template <typename T>
void SharedExpertMLP<T>::post_forward_comm(const RunContext& context) {
    advance(State::fc2_forward_done, State::post_forward_comm_done);
    StepTimer timer(context, Step::shared_experts);
    gpu::wait_for(gpu::current_stream(), stream());

    // ① … so that a token's output is a sum over the ranks
    forward_->u = reduce_scatter_to_sequence_parallel_region(*groups_->tp, partial_);
}

template <typename T>
Tensor SharedExpertMLP<T>::get_output(const RunContext& context) {
    advance(State::post_forward_comm_done, State::idle);
    SharedExpertsSaved& saved = *forward_;
    const std::int64_t num_tokens = saved.hidden.dim(0);

    // ① q u
    Tensor output = saved.u;
    {
        StepTimer timer(context, Step::shared_experts);
        if (gate_weight_.defined()) {
            saved.q = gpu::device_empty<float>({num_tokens});
            output = gpu::device_empty<T>(saved.hidden.shape());
            gpu::launch("gate_kernel", gate_kernel<T>, gpu::one_thread_per(num_tokens),
                        gpu::device_data<T>(output), gpu::device_data<float>(saved.q),
                        gpu::device_data<T>(saved.hidden), gpu::device_data<T>(saved.u),
                        gpu::device_data<T>(gate_weight_), num_tokens,
                        saved.hidden.dim(1));
        }
        gpu::synchronize();
        partial_ = {};
    }
    context.value(Step::shared_experts, "shared_output", output);
    return output;
}
//! [shared_experts_forward]

//! [shared_experts_backward]
template <typename T>
void SharedExpertMLP<T>::linear_fc2_backward(const Tensor& doutput,
                                             const Saved& saved_base,
                                             const RunContext& context) {
    advance(State::idle, State::fc2_backward_done);
    StepTimer timer(context, Step::shared_experts_backward);
    const auto& saved = saved_as<SharedExpertsSaved>(saved_base);
    const std::int64_t num_tokens = saved.hidden.dim(0), H = saved.hidden.dim(1);
    backward_.saved = &saved;

    // ⑳ the gate: du = q dout, dg = Σ dscore x, with dq through the sigmoid
    Tensor du = doutput;
    if (gate_weight_.defined()) {
        du = gpu::device_empty<T>(doutput.shape());
        backward_.dscores = gpu::device_empty<float>({num_tokens});
        gpu::launch("gate_backward_kernel", gate_backward_kernel<T>,
                    gpu::one_thread_per(num_tokens), gpu::device_data<T>(du),
                    gpu::device_data<float>(backward_.dscores),
                    gpu::device_data<T>(doutput), gpu::device_data<T>(saved.u),
                    gpu::device_data<float>(saved.q), num_tokens, H);
        backward_.dgate = linear_backward_bias<T>(saved.hidden, backward_.dscores,
                                                  make_row_groups({num_tokens}));
    }

    // ⑳ FC2, for the tokens of all tp ranks
    backward_.du = gather_from_sequence_parallel_region(*groups_->tp, du);
    gpu::wait_for(stream(), gpu::current_stream());
    backward_.da =
        linear_backward_input<T>(backward_.du, fc2_weight_, saved.all_tokens, stream());
    backward_.dw2 =
        linear_backward_weight<T>(backward_.du, saved.a, saved.all_tokens, stream());
}

template <typename T>
void SharedExpertMLP<T>::linear_fc1_backward(const RunContext& context) {
    advance(State::fc2_backward_done, State::fc1_backward_done);
    StepTimer timer(context, Step::shared_experts_backward);
    const SharedExpertsSaved& saved = *backward_.saved;

    // ⑳ activation, FC1
    backward_.activation = activation_backward<T>({config_, config_.local_shared_ffn()},
                                                  saved.h, backward_.da, {}, stream());
    backward_.dpartial = linear_backward_input<T>(backward_.activation.dh, fc1_weight_,
                                                  saved.all_tokens, stream());
    backward_.dw1 = linear_backward_weight<T>(backward_.activation.dh, saved.gathered,
                                              saved.all_tokens, stream());
}

template <typename T>
void SharedExpertMLP<T>::pre_forward_comm_backward(Tensor& dhidden, TensorMap& gradients,
                                                   const RunContext& context) {
    advance(State::fc1_backward_done, State::idle);
    {
        StepTimer timer(context, Step::shared_experts_backward);
        gpu::wait_for(gpu::current_stream(), stream());
        const Tensor dx =
            reduce_scatter_to_sequence_parallel_region(*groups_->tp, backward_.dpartial);

        // ⑳ dx += dscore g, from the gate, and what came through the MLP
        if (gate_weight_.defined()) {
            gpu::launch(
                "add_gate_gradient_kernel", add_gate_gradient_kernel<T>,
                gpu::one_thread_per(dhidden.numel()), gpu::device_data<T>(dhidden),
                gpu::device_data<float>(backward_.dscores),
                gpu::device_data<T>(gate_weight_), dhidden.numel(), dhidden.dim(1));
            gradients["shared_experts.gate_weight"] = backward_.dgate;
        }
        add_to<T>(dhidden, dx);
        const Tensor &dw1 = backward_.dw1, &dw2 = backward_.dw2;
        gradients["shared_experts.linear_fc1.weight"] =
            dw1.reshaped({dw1.dim(1), dw1.dim(2)});
        gradients["shared_experts.linear_fc2.weight"] =
            dw2.reshaped({dw2.dim(1), dw2.dim(2)});
        gpu::synchronize();
        backward_ = {};
    }
    context.value(Step::shared_experts_backward, "d_hidden_states", dhidden);
}
//! [shared_experts_backward]

template class SharedExpertMLP<float>;
template class SharedExpertMLP<__nv_bfloat16>;

}  // namespace moe::naive
