// gate.cu: the gate of the shared experts.

#include "optimized_gpu/gate.h"

#include "core/error.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/bf16_vector.h"
#include "optimized_gpu/grouped_gemm/launch.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// The token of a warp.
__device__ std::int64_t token_of_warp() {
    return std::int64_t(blockIdx.x) * kWarps + warp_index();
}

template <int N>
__device__ void scale(Bf16Vector<N>* scaled, const Bf16Vector<N>* x, float factor,
                      int width) {
    for (int i = lane_index(); i < width / N; i += kLanes) {
        Bf16Vector<N> values = x[i];
        for (int k = 0; k < N; ++k)
            values.values[k] = __float2bfloat16_rn(factor * values[k]);
        scaled[i] = values;
    }
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    gate_kernel(bf16* output, float* q, const bf16* x, const bf16* u, const bf16* g,
                std::int64_t num_tokens, int H) {
    const std::int64_t t = token_of_warp();
    if (t >= num_tokens) return;
    const float score = dot(vectors_of<N>(x, t, H), vectors_of<N>(g, 0, H), H);
    const float gate = 1.0f / (1.0f + expf(-score));
    scale(vectors_of<N>(output, t, H), vectors_of<N>(u, t, H), gate, H);
    if (lane_index() == 0) q[t] = gate;
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    gate_backward_kernel(bf16* du, float* dscores, const bf16* dout, const bf16* u,
                         const float* q, std::int64_t num_tokens, int H) {
    const std::int64_t t = token_of_warp();
    if (t >= num_tokens) return;
    const float dq = dot(vectors_of<N>(dout, t, H), vectors_of<N>(u, t, H), H);
    const float gate = q[t];
    scale(vectors_of<N>(du, t, H), vectors_of<N>(dout, t, H), gate, H);
    if (lane_index() == 0) dscores[t] = gate * (1.0f - gate) * dq;
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    add_gate_gradient_kernel(bf16* dhidden, const bf16* dx, const float* dscores,
                             const bf16* g, std::int64_t num_tokens, int H) {
    const std::int64_t t = token_of_warp();
    if (t >= num_tokens) return;
    const float dscore = dscores == nullptr ? 0.0f : dscores[t];
    for (int i = lane_index(); i < H / N; i += kLanes) {
        Bf16Vector<N>& sums = vectors_of<N>(dhidden, t, H)[i];
        Bf16Vector<N> sum = sums, gate = {};
        const Bf16Vector<N> term = vectors_of<N>(dx, t, H)[i];
        if (g != nullptr) gate = vectors_of<N>(g, 0, H)[i];
        for (int k = 0; k < N; ++k)
            sum.values[k] = __float2bfloat16_rn(sum[k] + dscore * gate[k] + term[k]);
        sums = sum;
    }
}

gpu::LaunchConfig one_warp_per(std::int64_t tokens, cudaStream_t stream) {
    return {dim3(unsigned((tokens + kWarps - 1) / kWarps)), kThreads, 0, stream};
}

}  // namespace

Gated gate_forward(const Tensor& x, const Tensor& u, const Tensor& g,
                   cudaStream_t stream) {
    const std::int64_t T = x.dim(0), H = x.dim(1);
    MOE_CHECK_EQ(g.numel(), H);
    MOE_CHECK_EQ(u.numel(), T * H);
    Gated gated = {gpu::device_empty<bf16>({T, H}), gpu::device_empty<float>({T})};
    with_vector(H, H, [&](auto vector) {
        gpu::launch("gate_kernel", gate_kernel<decltype(vector)::value>,
                    one_warp_per(T, stream), gpu::device_data<bf16>(gated.output),
                    gpu::device_data<float>(gated.q), gpu::device_data<bf16>(x),
                    gpu::device_data<bf16>(u), gpu::device_data<bf16>(g), T, int(H));
    });
    return gated;
}

GateGradients gate_backward(const Tensor& dout, const Tensor& u, const Tensor& q,
                            cudaStream_t stream) {
    const std::int64_t T = dout.dim(0), H = dout.dim(1);
    MOE_CHECK_EQ(u.numel(), T * H);
    MOE_CHECK_EQ(q.numel(), T);
    GateGradients made = {gpu::device_empty<bf16>({T, H}), gpu::device_empty<float>({T})};
    with_vector(H, H, [&](auto vector) {
        gpu::launch("gate_backward_kernel", gate_backward_kernel<decltype(vector)::value>,
                    one_warp_per(T, stream), gpu::device_data<bf16>(made.du),
                    gpu::device_data<float>(made.dscores), gpu::device_data<bf16>(dout),
                    gpu::device_data<bf16>(u), gpu::device_data<float>(q), T, int(H));
    });
    return made;
}

void add_gate_gradient(Tensor& dhidden, const Tensor& dx, const Tensor& dscores,
                       const Tensor& g, cudaStream_t stream) {
    const std::int64_t T = dhidden.dim(0), H = dhidden.dim(1);
    MOE_CHECK_EQ(dx.numel(), T * H);
    with_vector(H, H, [&](auto vector) {
        gpu::launch("add_gate_gradient_kernel",
                    add_gate_gradient_kernel<decltype(vector)::value>,
                    one_warp_per(T, stream), gpu::device_data<bf16>(dhidden),
                    gpu::device_data<bf16>(dx), gpu::device_data<float>(dscores),
                    gpu::device_data<bf16>(g), T, int(H));
    });
}

}  // namespace moe::optimized
