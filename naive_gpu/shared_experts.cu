// shared_experts.cu: the MLP that every token visits, forward and backward.

#include "naive_gpu/shared_experts.h"

#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "naive_gpu/activation.h"
#include "naive_gpu/linear.h"

namespace moe::naive {
namespace {

using distributed::gather_from_sequence_parallel_region;
using distributed::reduce_scatter_to_sequence_parallel_region;

struct SharedExpertsSaved : Saved {
    Tensor hidden;         // (T, H)
    Tensor gathered;       // (R, H), the tokens of all tp ranks
    RowGroups all_tokens;  // gathered as a single group
    Tensor h;              // (R, 2F_s or F_s) f32
    Tensor a;              // (R, F_s)
    Tensor u;              // (T, H) before the gate
    Tensor q;              // (T) f32 the gate, undefined without one
};

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

/// One thread per token: du = q dout, dx += dscore g, and dscore, the gradient by <x, g>.
template <typename T>
__global__ void gate_backward_kernel(T* du, T* dx, float* dscores, const T* dout,
                                     const T* u, const float* q, const T* g,
                                     std::int64_t num_tokens, std::int64_t H) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= num_tokens) return;
    float dq = 0.0f;
    for (std::int64_t i = t * H; i < (t + 1) * H; ++i)
        dq += gpu::widen(dout[i]) * gpu::widen(u[i]);
    const float dscore = q[t] * (1.0f - q[t]) * dq;
    dscores[t] = dscore;
    for (std::int64_t i = 0; i < H; ++i) {
        const std::int64_t at = t * H + i;
        du[at] = gpu::narrow<T>(q[t] * gpu::widen(dout[at]));
        dx[at] = gpu::narrow<T>(gpu::widen(dx[at]) + dscore * gpu::widen(g[i]));
    }
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
}

//! [shared_experts_forward]
template <typename T>
SharedExperts::Output SharedExpertMLP<T>::forward(const Tensor& hidden,
                                                  const RunContext& context) {
    const std::int64_t num_tokens = hidden.dim(0);
    auto saved = std::make_unique<SharedExpertsSaved>();
    saved->hidden = hidden;

    // ① u = W2 act(W1 x), then q u
    Tensor output;
    {
        StepTimer timer(context, Step::shared_experts);
        // ① every rank has some columns of the MLP, for the tokens of all tp ranks …
        saved->gathered = gather_from_sequence_parallel_region(*groups_->tp, hidden);
        saved->all_tokens = make_row_groups({saved->gathered.dim(0)});
        saved->h = linear_forward<T, float>(saved->gathered, fc1_weight_, {}, {},
                                            saved->all_tokens);
        saved->a =
            activation_forward<T>({config_, config_.local_shared_ffn()}, saved->h, {});
        const Tensor partial =
            linear_forward<T>(saved->a, fc2_weight_, {}, {}, saved->all_tokens);

        // ① … so that a token's output is a sum over the ranks
        saved->u = reduce_scatter_to_sequence_parallel_region(*groups_->tp, partial);
        output = saved->u;
        if (gate_weight_.defined()) {
            saved->q = gpu::device_empty<float>({num_tokens});
            output = gpu::device_empty<T>(hidden.shape());
            gpu::launch("gate_kernel", gate_kernel<T>, gpu::one_thread_per(num_tokens),
                        gpu::device_data<T>(output), gpu::device_data<float>(saved->q),
                        gpu::device_data<T>(hidden), gpu::device_data<T>(saved->u),
                        gpu::device_data<T>(gate_weight_), num_tokens, hidden.dim(1));
        }
        gpu::synchronize();
    }
    context.value(Step::shared_experts, "shared_output", output);
    return {output, std::move(saved)};
}
//! [shared_experts_forward]

//! [shared_experts_backward]
template <typename T>
void SharedExpertMLP<T>::backward(Tensor& dhidden, TensorMap& gradients,
                                  const Tensor& doutput, const Saved& saved_base,
                                  const RunContext& context) {
    const auto& saved = saved_as<SharedExpertsSaved>(saved_base);
    const std::int64_t num_tokens = saved.hidden.dim(0), H = saved.hidden.dim(1);
    {
        StepTimer timer(context, Step::shared_experts_backward);

        // ⑳ the gate: du = q dout, dx += dq g, dg = Σ dq x, with dq through the sigmoid
        Tensor du = doutput;
        if (gate_weight_.defined()) {
            du = gpu::device_empty<T>(doutput.shape());
            Tensor dscores = gpu::device_empty<float>({num_tokens});
            gpu::launch("gate_backward_kernel", gate_backward_kernel<T>,
                        gpu::one_thread_per(num_tokens), gpu::device_data<T>(du),
                        gpu::device_data<T>(dhidden), gpu::device_data<float>(dscores),
                        gpu::device_data<T>(doutput), gpu::device_data<T>(saved.u),
                        gpu::device_data<float>(saved.q),
                        gpu::device_data<T>(gate_weight_), num_tokens, H);
            gradients["shared_experts.gate_weight"] = linear_backward_bias<T>(
                saved.hidden, dscores, make_row_groups({num_tokens}));
        }

        // ⑳ the MLP: FC2, activation, FC1, for the tokens of all tp ranks
        const Tensor dpartial = gather_from_sequence_parallel_region(*groups_->tp, du);
        const Tensor da =
            linear_backward_input<T>(dpartial, fc2_weight_, saved.all_tokens);
        const Tensor dw2 = linear_backward_weight<T>(dpartial, saved.a, saved.all_tokens);
        const Tensor dh =
            activation_backward<T>({config_, config_.local_shared_ffn()}, saved.h, da, {})
                .dh;
        const Tensor dx = reduce_scatter_to_sequence_parallel_region(
            *groups_->tp, linear_backward_input<T>(dh, fc1_weight_, saved.all_tokens));
        const Tensor dw1 =
            linear_backward_weight<T>(dh, saved.gathered, saved.all_tokens);

        add_to<T>(dhidden, dx);
        gradients["shared_experts.linear_fc1.weight"] =
            dw1.reshaped({dw1.dim(1), dw1.dim(2)});
        gradients["shared_experts.linear_fc2.weight"] =
            dw2.reshaped({dw2.dim(1), dw2.dim(2)});
        gpu::synchronize();
    }
    context.value(Step::shared_experts_backward, "d_hidden_states", dhidden);
}
//! [shared_experts_backward]

template class SharedExpertMLP<float>;
template class SharedExpertMLP<__nv_bfloat16>;

}  // namespace moe::naive
