// sinkhorn.cu: balanced affinities between tokens and experts, and the choice by them.

#include "optimized_gpu/sinkhorn.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "core/sinkhorn_rounds.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/scores.h"
#include "optimized_gpu/token_range.h"

namespace moe::optimized {

//! [sinkhorn]
namespace {

constexpr float kEpsilon = 1e-8f;

/// The loop's state on the device.
struct SinkhornPointers {
    const float* logits;    // (T, E)
    float* row_factors;     // (T) d0
    float* column_factors;  // (E) d1
    float* moved;           // (E) how far d1 moved
    int* too_large;         // (1) bits of the largest logit that exp() cannot hold, or 0
    float* partial_sums;    // (blocks, E)
};

/// One thread per expert, and one more.
__global__ void begin_sinkhorn_kernel(SinkhornPointers to, int E) {
    const int e = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (e < E) to.column_factors[e] = 1.0f;
    if (e == E) *to.too_large = 0;
}

/// exp(x) of a token. TUTORIAL: computed again each round. Kept, it would have to be read
/// instead of x, which takes as long.
template <int N>
__device__ void load_costs(float (&cost)[N], const SinkhornPointers& from, std::int64_t t,
                           int E, int lane) {
    load_row(cost, from.logits + t * E, E, lane);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const float x = cost[j];
        cost[j] = expf(x);  // 0 past the end
        // Bits of positive floats are in their order, and those of NaN above them.
        if (!isfinite(cost[j])) atomicMax(from.too_large, __float_as_int(fabsf(x)));
    }
}

template <int N>
struct RowsSmem {
    float sums[kWarps][N * kLanes];
};

/// The first half of a round: for each token the factor that makes its row sum to 1/T,
/// and the block's part of the columns' sums. One warp per token.
template <int N>
__global__ void __launch_bounds__(kThreads)
    scale_rows_kernel(SinkhornPointers to, TokenRange range, int E) {
    const int lane = lane_index(), warp = warp_index();
    auto& s = gpu::shared_memory<RowsSmem<N>>();
    float factors[N], sums[N] = {};
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        factors[j] = e < E ? to.column_factors[e] : 0.0f;
    }
    for (int round = 0; round < range.rounds; ++round) {
        const std::int64_t t = range.token(round, warp);
        if (t >= range.num_tokens) break;
        float cost[N], sum = 0.0f;
        load_costs(cost, to, t, E, lane);
#pragma unroll
        for (int j = 0; j < N; ++j) sum += cost[j] * factors[j];
        const float factor = 1.0f / float(range.num_tokens) / (warp_sum(sum) + kEpsilon);
        if (lane == 0) to.row_factors[t] = factor;
#pragma unroll
        for (int j = 0; j < N; ++j) sums[j] += factor * cost[j];
    }
    store_row(s.sums[warp], sums, E, lane);
    __syncthreads();
    for (int e = int(threadIdx.x); e < E; e += kThreads) {
        float sum = 0.0f;
        for (int w = 0; w < kWarps; ++w) sum += s.sums[w][e];
        to.partial_sums[std::int64_t(blockIdx.x) * E + e] = sum;
    }
}

struct ColumnsSmem {
    float sums[kWarps][kLanes];
};

/// The second half: for each expert the factor that makes its column sum to 1/E, and how
/// far it moved. A block for 32 experts, one for each lane; a warp for every eighth part.
__global__ void __launch_bounds__(kThreads)
    scale_columns_kernel(SinkhornPointers to, int num_parts, int E) {
    const int lane = lane_index(), warp = warp_index();
    const int e = int(blockIdx.x) * kLanes + lane;
    auto& s = gpu::shared_memory<ColumnsSmem>();
    float sum = 0.0f;
    if (e < E)
        for (int i = warp; i < num_parts; i += kWarps)
            sum += to.partial_sums[std::int64_t(i) * E + e];
    s.sums[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || e >= E) return;
    for (int w = 1; w < kWarps; ++w) sum += s.sums[w][lane];
    const float previous = to.column_factors[e];
    const float factor = 1.0f / float(E) / (sum + kEpsilon);
    to.column_factors[e] = factor;
    to.moved[e] = fabsf(previous - factor);
}

float mean(const std::vector<float>& of_experts) {
    return std::accumulate(of_experts.begin(), of_experts.end(), 0.0f) /
           float(of_experts.size());
}

/// Waits for the round; true when the factors rest.
bool is_settled(int round, const Tensor& moved, const Tensor& factors,
                cudaStream_t stream) {
    const auto fetch = [stream](const Tensor& from) {
        std::vector<float> values(from.numel());
        gpu::check(cudaMemcpyAsync(values.data(), gpu::device_data<float>(from),
                                   from.size_bytes(), cudaMemcpyDeviceToHost, stream),
                   "cudaMemcpyAsync");
        return values;
    };
    std::vector<float> moves = fetch(moved), sizes = {0.0f};
    if (round >= kManySinkhornRounds) sizes = fetch(factors);
    gpu::count_host_wait(stream);
    gpu::check(cudaStreamSynchronize(stream), "sinkhorn");
    const float too_large = moves.back();
    if (too_large != 0.0f)
        reject("logits", too_large, "must be at most 88 with sinkhorn (exp in fp32)");
    moves.pop_back();
    return sinkhorn_rests(round, mean(moves), mean(sizes));
}

[[noreturn]] void reject_uneven(const Tensor& logits) {
    const std::vector<float> x = gpu::to_host<float>(logits);
    const auto [smallest, largest] = std::minmax_element(x.begin(), x.end());
    reject_sinkhorn_logits(*smallest, *largest);
}

/// Scales rows, then columns, until the column factors rest.
void balance(SinkhornRouting& routing, const Tensor& logits, cudaStream_t stream) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    const TokenRange range = make_token_range(T, 1);
    const std::int64_t blocks = range.num_blocks();
    Tensor moved = gpu::device_empty<float>({E + 1});  // and the logit that is too large
    Tensor partial_sums = gpu::device_empty<float>({blocks, E});
    float* const moves = gpu::device_data<float>(moved);
    const SinkhornPointers to = {
        gpu::device_data<float>(logits),
        gpu::device_data<float>(routing.row_factors),
        gpu::device_data<float>(routing.column_factors),
        moves,
        reinterpret_cast<int*>(moves + E),
        gpu::device_data<float>(partial_sums),
    };
    gpu::launch("begin_sinkhorn_kernel", begin_sinkhorn_kernel,
                gpu::one_thread_per(E + 1, stream), to, int(E));
    for (int round = 1;; ++round) {
        with_slots(E, [&](auto slots) {
            constexpr int N = decltype(slots)::value;
            gpu::launch("scale_rows_kernel", scale_rows_kernel<N>,
                        {dim3(unsigned(blocks)), kThreads, sizeof(RowsSmem<N>), stream},
                        to, range, int(E));
        });
        gpu::launch("scale_columns_kernel", scale_columns_kernel,
                    {dim3(unsigned((E + kLanes - 1) / kLanes)), kThreads,
                     sizeof(ColumnsSmem), stream},
                    to, int(blocks), int(E));
        if (is_settled(round, moved, routing.column_factors, stream)) return;
        if (round == kMostSinkhornRounds) reject_uneven(logits);
    }
}

}  // namespace
//! [sinkhorn]

//! [route_sinkhorn]
namespace {

struct ChoicePointers {
    int* ids;
    float* weights;
    const float* logits;
    const float *row_factors, *column_factors;  // null outside training
};

/// One warp per token.
template <int N>
__global__ void __launch_bounds__(kThreads)
    choose_experts_kernel(ChoicePointers to, std::int64_t num_tokens, int E, int K) {
    const int lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    float x[N];
    load_row(x, to.logits + t * E, E, lane);
    const SoftmaxSums sums = K > 1 ? softmax_sums(x) : SoftmaxSums{};
    const auto score = [&](float logit) {
        return K > 1 ? sums.softmax(logit) : sigmoid(logit);
    };
    const bool training = to.row_factors != nullptr;
    const float row_factor = training ? to.row_factors[t] : 0.0f;
    unsigned keys[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        const float factor = training && e < E ? to.column_factors[e] : 0.0f;
        keys[j] = key_of(training ? row_factor * expf(x[j]) * factor : score(x[j]));
    }
    const int id = top_k(keys, slots_below(E, lane), K, lane).index;
    if (lane >= K) return;
    to.ids[t * K + lane] = id;
    to.weights[t * K + lane] = score(to.logits[t * E + id]);
}

/// K = 1, one thread per token: only the chosen logit has a gradient.
__global__ void sigmoid_backward_kernel(float* dlogits, const float* dweights,
                                        const int* ids, const float* logits,
                                        std::int64_t num_tokens, int E) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= num_tokens) return;
    const std::int64_t at = t * E + ids[t];
    const float s = sigmoid(logits[at]);
    dlogits[at] += dweights[t] * s * (1.0f - s);
}

/// K > 1, one warp per token: dx_e = s_e (g_e - Σ_j g_j s_j), g 0 where not chosen.
template <int N>
__global__ void __launch_bounds__(kThreads)
    softmax_backward_kernel(float* dlogits, const float* dweights, const int* ids,
                            const float* logits, std::int64_t num_tokens, int E, int K) {
    const int lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    float x[N], dx[N];
    load_row(x, logits + t * E, E, lane);
    const SoftmaxSums sums = softmax_sums(x);
    const int id = lane < K ? ids[t * K + lane] : -1;
    const float g = lane < K ? dweights[t * K + lane] : 0.0f;
    const float s = lane < K ? sums.softmax(logits[t * E + id]) : 0.0f;
    const float mean = warp_sum(g * s), dx_chosen = s * (g - mean);
#pragma unroll
    for (int j = 0; j < N; ++j) dx[j] = -mean * sums.softmax(x[j]);
    for (int k = 0; k < K; ++k)
        set_value(dx, __shfl_sync(kAllLanes, id, k), __shfl_sync(kAllLanes, dx_chosen, k),
                  lane);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        if (e < E) dlogits[t * E + e] += dx[j];
    }
}

unsigned blocks_for_warps(std::int64_t num_tokens) {
    return unsigned((num_tokens + kWarps - 1) / kWarps);
}

}  // namespace

SinkhornRouting route_sinkhorn(const Tensor& logits, const MoEConfig& config,
                               bool training, cudaStream_t stream) {
    check_router_limits(config);
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = config.moe_router_topk;
    MOE_CHECK_EQ(E, config.num_experts());
    SinkhornRouting routing{gpu::device_empty<int>({T, K}),
                            gpu::device_empty<float>({T, K}), Tensor(), Tensor()};
    if (training && T > 0) {
        routing.row_factors = gpu::device_empty<float>({T});
        routing.column_factors = gpu::device_empty<float>({E});
        balance(routing, logits, stream);
    }
    const ChoicePointers to = {
        gpu::device_data<int>(routing.ids),
        gpu::device_data<float>(routing.weights),
        gpu::device_data<float>(logits),
        gpu::device_data<float>(routing.row_factors),
        gpu::device_data<float>(routing.column_factors),
    };
    with_slots(E, [&](auto slots) {
        constexpr int N = decltype(slots)::value;
        gpu::launch("choose_experts_kernel", choose_experts_kernel<N>,
                    {dim3(blocks_for_warps(T)), kThreads, 0, stream}, to, T, int(E),
                    int(K));
    });
    return routing;
}

void route_sinkhorn_backward(Tensor& dlogits, const Tensor& dweights, const Tensor& ids,
                             const Tensor& logits, const MoEConfig& config,
                             cudaStream_t stream) {
    check_router_limits(config);
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = config.moe_router_topk;
    MOE_CHECK(dlogits.shape() == logits.shape());
    MOE_CHECK_EQ(ids.numel(), T * K);
    MOE_CHECK_EQ(dweights.numel(), T * K);
    float* const to = gpu::device_data<float>(dlogits);
    const float* const from = gpu::device_data<float>(dweights);
    const float* const x = gpu::device_data<float>(logits);
    const int* const chosen = gpu::device_data<int>(ids);
    if (K == 1) {
        gpu::launch("sigmoid_backward_kernel", sigmoid_backward_kernel,
                    gpu::one_thread_per(T, stream), to, from, chosen, x, T, int(E));
        return;
    }
    with_slots(E, [&](auto slots) {
        constexpr int N = decltype(slots)::value;
        gpu::launch("softmax_backward_kernel", softmax_backward_kernel<N>,
                    {dim3(blocks_for_warps(T)), kThreads, 0, stream}, to, from, chosen, x,
                    T, int(E), int(K));
    });
}
//! [route_sinkhorn]

}  // namespace moe::optimized
