// experts.cu: the routed experts, forward and backward.

#include "naive_gpu/experts.h"

#include "core/recompute.h"
#include "core/transfer.h"
#include "gpu/launch.h"
#include "naive_gpu/activation.h"
#include "naive_gpu/linear.h"

namespace moe::naive {
namespace {

struct ExpertsSaved : Saved {
    RowGroups groups;  // rows of each expert
    Tensor rows;       // (N, H) as they came
    Tensor row_probs;  // (N) f32 as they came
    Tensor x;          // (N, H) input of FC1: rows, or row_probs * rows
    Tensor p;          // (N) f32 weight of the activation: row_probs; undefined means 1
    Tensor h;          // (N, 2F or F) f32 output of FC1
    Tensor a;          // (N, F) input of FC2; undefined with moe_act: made again
};

Tensor find(const TensorMap& parameters, const std::string& name, DType dtype) {
    const auto found = parameters.find(name);
    if (found == parameters.end()) return {};
    return transfer(found->second, {MemorySpace::device, dtype});
}

/// One thread per element of the result (N, H).
template <typename T>
__global__ void scale_rows_kernel(T* result, const T* x, const float* scale,
                                  std::int64_t num_rows, std::int64_t H) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < num_rows * H) result[i] = gpu::narrow<T>(scale[i / H] * gpu::widen(x[i]));
}

/// Row r of the result is scale_r x_r.
template <typename T>
Tensor scale_rows(const Tensor& x, const Tensor& scale) {
    Tensor result = gpu::device_empty<T>(x.shape());
    gpu::launch("scale_rows_kernel", scale_rows_kernel<T>, gpu::one_thread_per(x.numel()),
                gpu::device_data<T>(result), gpu::device_data<T>(x),
                gpu::device_data<float>(scale), x.dim(0), x.dim(1));
    return result;
}

/// One thread per row.
template <typename T>
__global__ void row_dots_kernel(float* dots, const T* x, const T* y,
                                std::int64_t num_rows, std::int64_t H) {
    const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= num_rows) return;
    float sum = 0.0f;
    for (std::int64_t i = row * H; i < (row + 1) * H; ++i)
        sum += gpu::widen(x[i]) * gpu::widen(y[i]);
    dots[row] = sum;
}

/// Element r of the result is <x_r, y_r>. @return (N) f32
template <typename T>
Tensor row_dots(const Tensor& x, const Tensor& y) {
    Tensor dots = gpu::device_empty<float>({x.dim(0)});
    gpu::launch("row_dots_kernel", row_dots_kernel<T>, gpu::one_thread_per(x.dim(0)),
                gpu::device_data<float>(dots), gpu::device_data<T>(x),
                gpu::device_data<T>(y), x.dim(0), x.dim(1));
    return dots;
}

/// One thread per row.
template <typename T>
__global__ void add_bias_dots_kernel(float* dp, const T* bias, const T* dy,
                                     const std::int64_t* row_group, std::int64_t num_rows,
                                     std::int64_t H) {
    const std::int64_t row = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row >= num_rows) return;
    const T* b = bias + row_group[row] * H;
    float sum = 0.0f;
    for (std::int64_t i = 0; i < H; ++i)
        sum += gpu::widen(b[i]) * gpu::widen(dy[row * H + i]);
    dp[row] += sum;
}

/// dp_r += <b_g, dy_r>: the probability weighs the bias as well.
template <typename T>
void add_bias_dots(Tensor& dp, const Tensor& bias, const Tensor& dy,
                   const RowGroups& groups) {
    gpu::launch("add_bias_dots_kernel", add_bias_dots_kernel<T>,
                gpu::one_thread_per(dy.dim(0)), gpu::device_data<float>(dp),
                gpu::device_data<T>(bias), gpu::device_data<T>(dy),
                gpu::device_data<std::int64_t>(groups.row_group), dy.dim(0), dy.dim(1));
}

}  // namespace

template <typename T>
ExpertMLPs<T>::ExpertMLPs(const MoEConfig& config, const TensorMap& parameters)
    : Experts({MemorySpace::device, gpu::device_dtype<T>}),
      config_(config),
      fc1_weight_(find(parameters, "experts.linear_fc1.weight", gpu::device_dtype<T>)),
      fc2_weight_(find(parameters, "experts.linear_fc2.weight", gpu::device_dtype<T>)) {
    if (!config.add_bias_linear) return;
    fc1_bias_ = find(parameters, "experts.linear_fc1.bias", gpu::device_dtype<T>);
    fc2_bias_ = find(parameters, "experts.linear_fc2.bias", gpu::device_dtype<T>);
}

//! [experts_forward]
template <typename T>
Experts::Output ExpertMLPs<T>::forward(const Rows& given, const Tensor& tokens_per_expert,
                                       const Tensor& row_probs,
                                       const RunContext& context) {
    const Tensor on_host = transfer(tokens_per_expert, {MemorySpace::host, DType::i32});
    const std::int32_t* counts = on_host.data<std::int32_t>();
    auto saved = std::make_unique<ExpertsSaved>();
    saved->groups = make_row_groups({counts, counts + on_host.numel()});
    const Tensor rows = given.plain().first(saved->groups.num_rows());
    saved->rows = rows;
    saved->row_probs = row_probs.first(saved->groups.num_rows());

    // The probability weighs the activation; W2 is linear, so this equals weighing the
    // output. With moe_apply_probs_on_input it weighs the input instead, which differs.
    const bool on_input = config_.moe_apply_probs_on_input;
    saved->x = on_input ? scale_rows<T>(rows, saved->row_probs) : rows;
    saved->p = on_input ? Tensor() : saved->row_probs;

    // ⑦ h = W1 x + b1
    {
        StepTimer timer(context, Step::fc1);
        saved->h =
            linear_forward<T, float>(saved->x, fc1_weight_, fc1_bias_, {}, saved->groups);
        gpu::synchronize();
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
        y = linear_forward<T>(a, fc2_weight_, fc2_bias_, saved->p, saved->groups);
        gpu::synchronize();
    }
    context.value(Step::fc2, "expert_output", y);
    return {y, std::move(saved)};
}

template <typename T>
Tensor ExpertMLPs<T>::activate(const Tensor& h, const Tensor& p,
                               const RunContext& context) const {
    StepTimer timer(context, Step::activation);
    const Tensor a = activation_forward<T>({config_, config_.local_ffn()}, h, p);
    gpu::synchronize();
    return a;
}
//! [experts_forward]

//! [experts_backward]
template <typename T>
Experts::Gradients ExpertMLPs<T>::backward(TensorMap& gradients, const Rows& given,
                                           const Saved& saved_base,
                                           const RunContext& context) {
    const auto& saved = saved_as<ExpertsSaved>(saved_base);
    const Tensor doutput = given.plain().first(saved.groups.num_rows());
    const bool on_input = config_.moe_apply_probs_on_input;

    // ⑫ da = W2ᵀ dy, dW2 = Σ dy aᵀ, db2 = Σ p dy
    Tensor da;
    {
        const Tensor a =
            saved.a.defined() ? saved.a : activate(saved.h, saved.p, context);
        StepTimer timer(context, Step::fc2_backward);
        da = linear_backward_input<T>(doutput, fc2_weight_, saved.groups);
        gradients["experts.linear_fc2.weight"] =
            linear_backward_weight<T>(doutput, a, saved.groups);
        if (fc2_bias_.defined())
            gradients["experts.linear_fc2.bias"] =
                linear_backward_bias<T>(doutput, saved.p, saved.groups);
        gpu::synchronize();
    }
    context.value(Step::fc2_backward, "d_activation_output", da);

    // ⑬ dh = da p act'(h), dp = <act(h), da> + <b2, dy>
    ActivationGradients through;
    {
        StepTimer timer(context, Step::activation_backward);
        through =
            activation_backward<T>({config_, config_.local_ffn()}, saved.h, da, saved.p);
        if (fc2_bias_.defined())
            add_bias_dots<T>(through.dp, fc2_bias_, doutput, saved.groups);
        gpu::synchronize();
    }
    const Tensor& dh = through.dh;
    Tensor dp = through.dp;
    context.value(Step::activation_backward, "d_fc1_output", dh);
    if (!on_input) context.value(Step::activation_backward, "d_dispatched_probs", dp);

    // ⑭ dx = W1ᵀ dh, dW1 = Σ dh xᵀ, db1 = Σ dh
    Tensor dx;
    {
        StepTimer timer(context, Step::fc1_backward);
        dx = linear_backward_input<T>(dh, fc1_weight_, saved.groups);
        gradients["experts.linear_fc1.weight"] =
            linear_backward_weight<T>(dh, saved.x, saved.groups);
        if (fc1_bias_.defined())
            gradients["experts.linear_fc1.bias"] =
                linear_backward_bias<T>(dh, {}, saved.groups);
        if (on_input) {
            dp = row_dots<T>(saved.rows, dx);
            dx = scale_rows<T>(dx, saved.row_probs);
        }
        gpu::synchronize();
    }
    if (on_input) context.value(Step::fc1_backward, "d_dispatched_probs", dp);
    context.value(Step::fc1_backward, "d_dispatched_hidden_states", dx);
    return {dx, dp};
}
//! [experts_backward]

template class ExpertMLPs<float>;
template class ExpertMLPs<__nv_bfloat16>;

}  // namespace moe::naive
